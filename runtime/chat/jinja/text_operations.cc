#include "runtime/chat/jinja/text_operations.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

namespace pesc::jinja {
namespace {

constexpr char32_t kCapitalSigma = 0x3A3;
constexpr char32_t kFinalSigma = 0x3C2;

bool is_ascii(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

// Whether the sigma at `at` ends a word, as CPython decides it.
bool sigma_is_final(std::string_view text, size_t at) {
  size_t before = at;
  char32_t code = 0;
  while (before > 0) {
    before = previous(text, before);
    code = character_at(text, before).code;
    if (!is_case_ignorable(code)) break;
    code = 0;
  }
  if (code == 0 || !is_cased(code)) return false;
  for (size_t behind = at + character_at(text, at).size; behind < text.size();) {
    const Character c = character_at(text, behind);
    if (!is_case_ignorable(c.code)) return !is_cased(c.code);
    behind += c.size;
  }
  return true;
}

void append_changed(Text& out, const Text& text, size_t at, const Character& c, Case to) {
  std::string changed;
  if (to == Case::kLower && c.code == kCapitalSigma && sigma_is_final(text.bytes, at)) {
    append_utf8(changed, kFinalSigma);
  } else {
    append_case(changed, c.code, to);
  }
  out.append(changed, text.origin_at(at));
}

// `choose` says of each character which case it gets.
template <class Choose>
Text changed(const Text& text, const Choose& choose) {
  Text out;
  for (size_t at = 0; at < text.bytes.size();) {
    const Character c = character_at(text.bytes, at);
    append_changed(out, text, at, c, choose(c.code));
    at += c.size;
  }
  return out;
}

}  // namespace

size_t find_text(std::string_view text, std::string_view wanted, size_t from) {
  if (from > text.size()) return std::string_view::npos;
  if (wanted.empty()) return from;
  const void* found = ::memmem(text.data() + from, text.size() - from, wanted.data(), wanted.size());
  return found == nullptr ? std::string_view::npos
                          : static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

Text part(const Text& text, size_t begin, size_t end) {
  Text out;
  out.append(text, begin, end);
  return out;
}

Text stripped(const Text& text, const std::optional<std::string_view>& chars, Ends ends) {
  std::u32string set;
  if (chars.has_value()) {
    for (size_t at = 0; at < chars->size(); at += character_at(*chars, at).size)
      set += character_at(*chars, at).code;
  }
  const auto goes = [&](char32_t code) {
    return chars.has_value() ? set.find(code) != set.npos : is_space(code);
  };
  size_t begin = 0;
  size_t end = text.bytes.size();
  while (ends != Ends::kRight && begin < end) {
    const Character c = character_at(text.bytes, begin);
    if (!goes(c.code)) break;
    begin += c.size;
  }
  while (ends != Ends::kLeft && begin < end) {
    const size_t last = previous(text.bytes, end);
    if (!goes(character_at(text.bytes, last).code)) break;
    end = last;
  }
  return part(text, begin, end);
}

std::vector<Text> split(Heap& heap, const Text& text, const std::optional<std::string_view>& separator,
                        int64_t most) {
  std::vector<Text> out;
  const std::string& bytes = text.bytes;
  if (separator.has_value()) {
    size_t begin = 0;
    while (most < 0 || std::ssize(out) < most) {
      const size_t end = find_text(bytes, *separator, begin);
      if (end == std::string_view::npos) break;
      heap.charge(sizeof(Text) + end - begin);
      out.push_back(part(text, begin, end));
      begin = end + separator->size();
    }
    out.push_back(part(text, begin, bytes.size()));
    return out;
  }
  const auto run = [&](size_t at, bool of_spaces) {
    while (at < bytes.size() && is_space(character_at(bytes, at).code) == of_spaces)
      at += character_at(bytes, at).size;
    return at;
  };
  for (size_t at = run(0, true); at < bytes.size();) {
    if (most >= 0 && std::ssize(out) == most) {
      out.push_back(part(text, at, bytes.size()));
      break;
    }
    const size_t end = run(at, false);
    heap.charge(sizeof(Text) + end - at);
    out.push_back(part(text, at, end));
    at = run(end, true);
  }
  return out;
}

std::vector<Text> split_from_right(Heap& heap, const Text& text, std::string_view separator, int64_t most) {
  std::vector<size_t> places;
  for (size_t end = text.bytes.size(); most < 0 || std::ssize(places) < most;) {
    const size_t at = end < separator.size() ? std::string::npos
                                             : std::string_view(text.bytes).substr(0, end).rfind(separator);
    if (at == std::string::npos) break;
    heap.charge(sizeof(Text) + sizeof(size_t) + end - at);
    places.push_back(at);
    end = at;
  }
  std::vector<Text> out;
  size_t begin = 0;
  for (auto place = places.rbegin(); place != places.rend(); ++place) {
    out.push_back(part(text, begin, *place));
    begin = *place + separator.size();
  }
  out.push_back(part(text, begin, text.bytes.size()));
  return out;
}

std::vector<Text> split_lines(Heap& heap, const Text& text) {
  const auto breaks = [](char32_t c) {
    return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
  };
  std::vector<Text> out;
  const std::string& bytes = text.bytes;
  size_t begin = 0;
  for (size_t at = 0; at < bytes.size();) {
    const Character c = character_at(bytes, at);
    const size_t end = at;
    at += c.size;
    if (!breaks(c.code)) continue;
    if (c.code == '\r' && at < bytes.size() && bytes[at] == '\n') ++at;
    heap.charge(sizeof(Text) + end - begin);
    out.push_back(part(text, begin, end));
    begin = at;
  }
  if (begin < bytes.size()) out.push_back(part(text, begin, bytes.size()));
  return out;
}

Text replaced(Heap& heap, const Text& text, std::string_view old, const Text& by, int64_t most) {
  Text out;
  const auto put = [&](size_t begin, size_t end) {
    heap.charge(by.bytes.size());
    out.append(text, begin, end);
  };
  const std::string& bytes = text.bytes;
  size_t begin = 0;
  int64_t done = 0;
  if (old.empty()) {  // between all characters
    for (size_t at = 0; most < 0 || done < most; ++done) {
      put(begin, at);
      out.append(by);
      begin = at;
      if (at == bytes.size()) break;
      at += character_at(bytes, at).size;
    }
  } else {
    for (; most < 0 || done < most; ++done) {
      const size_t at = find_text(bytes, old, begin);
      if (at == std::string_view::npos) break;
      put(begin, at);
      out.append(by);
      begin = at + old.size();
    }
  }
  out.append(text, begin, bytes.size());
  return out;
}

Text joined(Heap& heap, const std::vector<Text>& parts, const Text& between) {
  size_t size = 0;
  for (const Text& part : parts) size += part.bytes.size() + between.bytes.size();
  heap.charge(size);
  heap.scan(size);
  Text out;
  out.bytes.reserve(size);
  for (size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) out.append(between);
    out.append(parts[i]);
  }
  return out;
}

Text in_case(const Text& text, Case to) {
  if (!is_ascii(text.bytes)) return changed(text, [&](char32_t) { return to; });
  Text out = text;
  for (char& c : out.bytes) {
    if (to == Case::kLower && c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (to != Case::kLower && c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  }
  return out;
}

Text titled(const Text& text) {
  bool inside = false;
  return changed(text, [&](char32_t code) {
    const bool begins = !inside;
    inside = is_cased(code);
    return begins ? Case::kTitle : Case::kLower;
  });
}

Text titled_words(const Text& text) {
  const auto separates = [&](size_t at) {
    const char32_t code = character_at(text.bytes, at).code;
    return is_space(code) ||
           (code < 0x80 && std::string_view("-({[<").find(static_cast<char>(code)) != std::string_view::npos);
  };
  Text out;
  for (size_t begin = 0; begin < text.bytes.size();) {
    const size_t second = begin + character_at(text.bytes, begin).size;
    size_t end = second;
    while (end < text.bytes.size() && separates(end) == separates(begin))
      end += character_at(text.bytes, end).size;
    out.append(in_case(part(text, begin, second), Case::kUpper));
    out.append(in_case(part(text, second, end), Case::kLower));
    begin = end;
  }
  return out;
}

Text capitalized(const Text& text) {
  bool first = true;
  return changed(text, [&](char32_t) { return std::exchange(first, false) ? Case::kTitle : Case::kLower; });
}

Text escaped(Heap& heap, const Text& text) {
  Text out;
  size_t begin = 0;
  for (size_t at = 0; at < text.bytes.size(); ++at) {
    std::string_view by;
    switch (text.bytes[at]) {
      case '&':
        by = "&amp;";
        break;
      case '<':
        by = "&lt;";
        break;
      case '>':
        by = "&gt;";
        break;
      case '"':
        by = "&#34;";
        break;
      case '\'':
        by = "&#39;";
        break;
      default:
        continue;
    }
    heap.charge(by.size());
    out.append(text, begin, at);
    out.append(by, text.origin_at(at));
    begin = at + 1;
  }
  out.append(text, begin, text.bytes.size());
  return out;
}

}  // namespace pesc::jinja
