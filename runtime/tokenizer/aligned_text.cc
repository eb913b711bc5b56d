#include "runtime/tokenizer/aligned_text.h"

#include <algorithm>
#include <array>

#include "ops/core/check.h"

namespace pesc {
namespace {

using unicode::Changed;

// Of a byte within `text`, the character's first byte and the byte behind it.
ByteOrigin character_of(std::string_view text, size_t at) {
  size_t first = at;
  while (first > 0 && unicode::continues(text[first])) --first;
  size_t end = at + 1;
  while (end < text.size() && unicode::continues(text[end])) ++end;
  return {static_cast<uint32_t>(first), static_cast<uint32_t>(end)};
}

struct Alphabet {
  Alphabet() {
    char32_t next = 256;
    to_byte.fill(-1);
    for (int b = 0; b < 256; ++b) {
      const bool itself = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      to_char[b] = itself ? static_cast<char32_t>(b) : next++;
      to_byte[to_char[b]] = static_cast<int16_t>(b);
    }
  }
  std::array<char32_t, 256> to_char{};
  std::array<int16_t, 512> to_byte{};
};

const Alphabet& alphabet() {
  static const Alphabet table;
  return table;
}

}  // namespace

void check_growth(size_t bytes, size_t source, const char* maker) {
  if (bytes <= most_bytes(source)) return;
  throw DataError(str_cat(maker, ": makes ", bytes, " bytes or more of a text of ", source, "; at most ",
                          most_bytes(source),
                          " are supported; take the tokenizer's file from where the model came from"));
}

Piece Piece::cut(size_t from, size_t to) const {
  Piece part{text.substr(from, to - from), nullptr, 0, 0};
  if (origins != nullptr) {
    part.origins = origins + from;
    part.origin = from < to ? origins[from].begin : from > 0 ? origins[from - 1].end : origin;
  } else {
    part.begin = begin + static_cast<uint32_t>(from);
    part.origin = part.begin;
  }
  return part;
}

TextRange Piece::source_range(size_t from, size_t to) const {
  if (text.empty()) return {origin, origin};
  if (origins != nullptr) return {origins[from].begin, origins[to - 1].end};
  return {begin + character_of(text, from).begin, begin + character_of(text, to - 1).end};
}

AlignedText::AlignedText(const Piece& piece) : text_(piece.text) {
  if (piece.origins != nullptr) {
    origins_.assign(piece.origins, piece.origins + piece.text.size());
    return;
  }
  origins_.reserve(text_.size());
  for (size_t at = 0; at < text_.size();) {
    size_t end = at;
    (void)unicode::next_char(text_, end);
    origins_.insert(origins_.end(), end - at,
                    {piece.begin + static_cast<uint32_t>(at), piece.begin + static_cast<uint32_t>(end)});
    at = end;
  }
}

void AlignedText::transform(std::span<const Changed> changed, size_t skipped) {
  std::string text;
  std::vector<ByteOrigin> origins;
  text.reserve(text_.size());
  origins.reserve(text_.size());
  size_t at = 0;  // of the old text
  const auto skip = [&](size_t characters) {
    for (; characters > 0 && at < text_.size(); --characters) (void)unicode::next_char(text_, at);
  };
  skip(skipped);
  for (const Changed& next : changed) {
    ByteOrigin origin;
    if (next.change > 0) {
      if (at > 0) origin = origins_[at - 1];
    } else {
      PESC_CHECK(at < text_.size(), "more characters stand for old ones than there were");
      origin = origins_[at];
      skip(1 + static_cast<size_t>(-next.change));
    }
    unicode::append_utf8(next.c, text);
    origins.resize(text.size(), origin);
  }
  text_ = std::move(text);
  origins_ = std::move(origins);
}

void AlignedText::check_size(size_t bytes, const char* maker) const {
  const bool some = !origins_.empty() && origins_.back().end > origins_.front().begin;
  check_growth(bytes, some ? origins_.back().end - origins_.front().begin : 0, maker);
}

void AlignedText::prepend(std::string_view text, const char* maker) {
  if (text_.empty()) return;
  check_size(text_.size() + text.size(), maker);
  text_.insert(0, text);
  origins_.insert(origins_.begin(), text.size(), ByteOrigin(origins_.front()));
}

void AlignedText::replace(std::span<const TextRange> ranges, std::string_view content, const char* maker) {
  // No product of two sizes: it could be above SIZE_MAX.
  size_t size = text_.size();
  for (const TextRange& range : ranges) size -= range.end - range.begin;
  for (size_t i = 0; i < ranges.size(); ++i) check_size(size += content.size(), maker);
  std::string text;
  std::vector<ByteOrigin> origins;
  size_t done = 0;
  for (const TextRange& range : ranges) {
    text.append(text_, done, range.begin - done);
    origins.insert(origins.end(), origins_.begin() + static_cast<ptrdiff_t>(done),
                   origins_.begin() + static_cast<ptrdiff_t>(range.begin));
    text += content;
    origins.resize(text.size(), range.end > 0 ? origins_[range.end - 1] : ByteOrigin{});
    done = range.end;
  }
  text.append(text_, done);
  origins.insert(origins.end(), origins_.begin() + static_cast<ptrdiff_t>(done), origins_.end());
  text_ = std::move(text);
  origins_ = std::move(origins);
}

void AlignedText::to_byte_level() {
  check_size(text_.size(), "pre_tokenizer ByteLevel");  // each of several doubles the text
  std::string text;
  std::vector<ByteOrigin> origins;
  text.reserve(text_.size() * 2);
  for (size_t i = 0; i < text_.size(); ++i) {
    unicode::append_utf8(byte_level_char(static_cast<unsigned char>(text_[i])), text);
    origins.resize(text.size(), origins_[i]);
  }
  text_ = std::move(text);
  origins_ = std::move(origins);
}

char32_t byte_level_char(unsigned char byte) {
  return alphabet().to_char[byte];
}

int byte_level_byte(char32_t c) {
  return c < alphabet().to_byte.size() ? alphabet().to_byte[c] : -1;
}

bool from_byte_level(std::string_view name, std::string& bytes) {
  bytes.clear();
  for (size_t at = 0; at < name.size();) {
    const int byte = byte_level_byte(unicode::next_char(name, at));
    if (byte < 0) return false;
    bytes += static_cast<char>(byte);
  }
  return true;
}

}  // namespace pesc
