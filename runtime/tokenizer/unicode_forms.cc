// NFD, NFC and lower case, with the change of each character as the original library counts it.
#include <algorithm>
#include <unordered_map>

#include "runtime/tokenizer/unicode.h"
#include "runtime/tokenizer/unicode_numbers.h"
#include "runtime/tokenizer/unicode_tables.h"

namespace pesc::unicode {
namespace {

// Hangul syllables are computed (The Unicode Standard, section 3.12).
constexpr char32_t kSyllable = 0xAC00, kLead = 0x1100, kVowel = 0x1161, kTrail = 0x11A7;
constexpr char32_t kVowels = 21, kTrails = 28, kLeads = 19, kSyllables = kLeads * kVowels * kTrails;

bool is_syllable(char32_t c) {
  return c >= kSyllable && c < kSyllable + kSyllables;
}

uint64_t two_of(char32_t a, char32_t b) {
  return uint64_t{a} << 32 | b;
}

class Forms {
 public:
  Forms() {
    Numbers classes(unicode_tables::kCombiningClasses);
    for (char32_t at = 0; !classes.done();) {
      const char32_t first = at + classes.next();
      const char32_t last = first + classes.next();
      const auto value = static_cast<uint8_t>(classes.next());
      for (char32_t c = first; c <= last; ++c) classes_.emplace(c, value);
      moves_.push_back({first, last});
      at = last + 1;
    }
    read_decompositions();
    std::vector<CharRange> nfd = moves_;
    nfd.insert(nfd.end(), decomposed_.begin(), decomposed_.end());
    nfd.push_back({kSyllable, kSyllable + kSyllables - 1});
    changed_by_nfd_ = CharSet(nfd);
    std::vector<CharRange> nfc = moves_;
    nfc.insert(nfc.end(), never_composed_.begin(), never_composed_.end());
    nfc.push_back({kVowel, kVowel + kVowels - 1});
    nfc.push_back({kTrail + 1, kTrail + kTrails - 1});
    changed_by_nfc_ = CharSet(nfc);
  }

  [[nodiscard]] uint8_t combining_class(char32_t c) const {
    if (c < 0x300) return 0;
    const auto found = classes_.find(c);
    return found == classes_.end() ? 0 : found->second;
  }

  void decompose(char32_t c, std::vector<char32_t>& out) const {
    out.clear();
    if (is_syllable(c)) {
      const char32_t s = c - kSyllable;
      out.push_back(kLead + s / (kVowels * kTrails));
      out.push_back(kVowel + s % (kVowels * kTrails) / kTrails);
      if (s % kTrails != 0) out.push_back(kTrail + s % kTrails);
      return;
    }
    const auto found = decompositions_.find(c);
    if (found == decompositions_.end()) {
      out.push_back(c);
    } else {
      out = found->second;
    }
  }

  // 0: the two do not compose.
  [[nodiscard]] char32_t compose(char32_t a, char32_t b) const {
    if (a >= kLead && a < kLead + kLeads && b >= kVowel && b < kVowel + kVowels)
      return kSyllable + ((a - kLead) * kVowels + (b - kVowel)) * kTrails;
    if (is_syllable(a) && (a - kSyllable) % kTrails == 0 && b > kTrail && b < kTrail + kTrails)
      return a + (b - kTrail);
    const auto found = compositions_.find(two_of(a, b));
    return found == compositions_.end() ? 0 : found->second;
  }

  [[nodiscard]] const CharSet& changed_by_nfd() const { return changed_by_nfd_; }
  [[nodiscard]] const CharSet& changed_by_nfc() const { return changed_by_nfc_; }

 private:
  void read_decompositions() {
    Numbers numbers(unicode_tables::kDecompositions);
    std::vector<char32_t> again;
    for (char32_t c = 0; !numbers.done();) {
      c += numbers.next();
      const uint32_t kind = numbers.next();
      std::vector<char32_t> to{numbers.next()};
      for (uint32_t i = 0; i < kind / 2; ++i)
        to.push_back(static_cast<char32_t>(0x300 + numbers.next_signed()));
      decomposed_.push_back({c, c});
      (kind % 2 != 0 ? again.push_back(c) : never_composed_.push_back({c, c}));
      decompositions_.emplace(c, std::move(to));
    }
    // A longer one is composed of its start, composed, and its last character.
    std::ranges::stable_sort(again, {}, [&](char32_t c) { return decompositions_.at(c).size(); });
    for (const char32_t c : again) {
      const std::vector<char32_t>& of = decompositions_.at(c);
      char32_t start = of.front();
      for (size_t i = 1; i + 1 < of.size(); ++i) start = compose(start, of[i]);
      compositions_.emplace(two_of(start, of.back()), c);
      never_composed_.push_back({of.back(), of.back()});  // itself may be composed away
    }
  }

  std::unordered_map<char32_t, uint8_t> classes_;
  std::unordered_map<char32_t, std::vector<char32_t>> decompositions_;
  std::unordered_map<uint64_t, char32_t> compositions_;
  std::vector<CharRange> moves_, decomposed_, never_composed_;
  CharSet changed_by_nfd_, changed_by_nfc_;
};

const Forms& forms() {
  static const Forms all;
  return all;
}

bool has_none_of(std::string_view text, const CharSet& set, char32_t from) {
  for (size_t at = 0; at < text.size();) {
    if (static_cast<unsigned char>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    const char32_t c = next_char(text, at);
    if (c >= from && set.contains(c)) return false;
  }
  return true;
}

}  // namespace

bool is_surely_nfd(std::string_view text) {
  return has_none_of(text, forms().changed_by_nfd(), 0x80);
}

bool is_surely_nfc(std::string_view text) {
  return has_none_of(text, forms().changed_by_nfc(), 0x300);
}

std::vector<Changed> nfd(std::string_view text) {
  const Forms& f = forms();
  std::vector<Changed> out;
  std::vector<uint8_t> classes;
  std::vector<char32_t> parts;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    f.decompose(next_char(text, at), parts);
    for (size_t i = 0; i < parts.size(); ++i) {
      out.push_back({parts[i], i == 0 ? 0 : 1});
      classes.push_back(f.combining_class(parts[i]));
    }
  }
  // Each run of combining characters in the order of their classes.
  for (size_t i = 0; i < out.size();) {
    if (classes[i] == 0) {
      ++i;
      continue;
    }
    size_t end = i;
    while (end < out.size() && classes[end] != 0) ++end;
    std::vector<std::pair<uint8_t, Changed>> run;
    for (size_t k = i; k < end; ++k) run.emplace_back(classes[k], out[k]);
    std::ranges::stable_sort(run, {}, [](const auto& entry) { return entry.first; });
    for (size_t k = i; k < end; ++k) out[k] = run[k - i].second;
    i = end;
  }
  return out;
}

std::vector<Changed> nfc(std::string_view text) {
  const Forms& f = forms();
  std::vector<Changed> out, waiting;  // `waiting` stands behind `start`, which may still take from what comes
  Changed start;
  bool has_start = false;
  int last_class = -1;
  const auto flush = [&] {
    if (has_start) out.push_back(start);
    out.insert(out.end(), waiting.begin(), waiting.end());
    waiting.clear();
    last_class = -1;
  };
  for (const Changed& next : nfd(text)) {
    const int its_class = f.combining_class(next.c);
    if (!has_start) {
      if (its_class != 0) {
        out.push_back(next);
      } else {
        start = next;
        has_start = true;
      }
      continue;
    }
    const bool blocked = last_class >= 0 && last_class >= its_class;
    const char32_t composed = blocked ? 0 : f.compose(start.c, next.c);
    if (composed != 0) {
      start = {composed, start.change + next.change - 1};
    } else if (its_class == 0) {
      flush();
      start = next;
    } else {
      waiting.push_back(next);
      last_class = its_class;
    }
  }
  flush();
  return out;
}

std::vector<Changed> lowercase(std::string_view text) {
  static const std::unordered_map<char32_t, std::vector<char32_t>> lower = [] {
    std::unordered_map<char32_t, std::vector<char32_t>> map;
    Numbers numbers(unicode_tables::kLowercase);
    for (char32_t c = 0; !numbers.done();) {
      c += numbers.next();
      std::vector<char32_t> to(numbers.next() + 1);
      for (char32_t& t : to) t = static_cast<char32_t>(static_cast<int32_t>(c) + numbers.next_signed());
      map.emplace(c, std::move(to));
    }
    return map;
  }();
  std::vector<Changed> out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const char32_t c = next_char(text, at);
    const auto found = lower.find(c);
    if (found == lower.end()) {
      out.push_back({c, 0});
    } else {
      for (size_t i = 0; i < found->second.size(); ++i) out.push_back({found->second[i], i == 0 ? 0 : 1});
    }
  }
  return out;
}

}  // namespace pesc::unicode
