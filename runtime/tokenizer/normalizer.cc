#include "runtime/tokenizer/normalizer.h"

#include <nlohmann/json.hpp>

#include "ops/core/check.h"
#include "runtime/tokenizer/component_json.h"
#include "runtime/tokenizer/unicode.h"

namespace pesc {
namespace {

using nlohmann::json;

// Makes `storage` the piece, changed by `change`. The piece may be a view of the old storage.
template <class Change>
Piece changed(const Piece& piece, AlignedText& storage, const Change& change) {
  AlignedText text(piece);
  change(text);
  storage = std::move(text);
  return storage.piece(piece.origin);
}

class Form : public Normalizer {
 public:
  explicit Form(bool composed) : composed_(composed) {}
  [[nodiscard]] Piece normalize(const Piece& piece, AlignedText& storage) const override {
    if (composed_ ? unicode::is_surely_nfc(piece.text) : unicode::is_surely_nfd(piece.text)) return piece;
    return changed(piece, storage, [&](AlignedText& text) {
      text.transform(composed_ ? unicode::nfc(piece.text) : unicode::nfd(piece.text));
    });
  }

 private:
  bool composed_;
};

class Lowercase : public Normalizer {
 public:
  [[nodiscard]] Piece normalize(const Piece& piece, AlignedText& storage) const override {
    return changed(piece, storage,
                   [&](AlignedText& text) { text.transform(unicode::lowercase(piece.text)); });
  }
};

class Strip : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  [[nodiscard]] Piece normalize(const Piece& piece, AlignedText& storage) const override {
    size_t begin = 0;
    size_t skipped = 0;
    size_t end = piece.text.size();
    while (left_ && begin < end) {
      size_t at = begin;
      if (!unicode::space().contains(unicode::next_char(piece.text, at))) break;
      begin = at;
      ++skipped;
    }
    while (right_ && end > begin) {
      size_t at = end - 1;
      while (unicode::continues(piece.text[at])) --at;
      size_t behind = at;
      if (!unicode::space().contains(unicode::next_char(piece.text, behind))) break;
      end = at;
    }
    if (begin == 0 && end == piece.text.size()) return piece;
    (void)storage;
    Piece part = piece.cut(begin, end);
    part.origin = piece.origin;  // nothing was cut out of the source
    return part;
  }

 private:
  bool left_, right_;
};

class Prepend : public Normalizer {
 public:
  explicit Prepend(std::string text) : text_(std::move(text)) {}
  [[nodiscard]] Piece normalize(const Piece& piece, AlignedText& storage) const override {
    if (piece.text.empty() || text_.empty()) return piece;
    return changed(piece, storage, [&](AlignedText& text) { text.prepend(text_, "normalizer Prepend"); });
  }

 private:
  std::string text_;
};

class Replace : public Normalizer {
 public:
  Replace(Pattern pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  [[nodiscard]] Piece normalize(const Piece& piece, AlignedText& storage) const override {
    const std::vector<TextRange> found = all_matches(pattern_, piece.text);
    if (found.empty()) return piece;
    return changed(piece, storage,
                   [&](AlignedText& text) { text.replace(found, content_, "normalizer Replace"); });
  }

 private:
  Pattern pattern_;
  std::string content_;
};

void append(const json& j, std::vector<std::unique_ptr<Normalizer>>& out, int depth) {
  const std::string type = component_type(j, "normalizer");
  const Component part{j, "normalizer", type};
  part.check_count(out.size());
  if (type == "Sequence") {
    part.check_depth(depth);
    for (const json& inner : part.array("normalizers")) append(inner, out, depth + 1);
  } else if (type == "NFC" || type == "NFD") {
    out.push_back(std::make_unique<Form>(type == "NFC"));
  } else if (type == "Lowercase") {
    out.push_back(std::make_unique<Lowercase>());
  } else if (type == "Strip") {
    out.push_back(std::make_unique<Strip>(part.boolean("strip_left"), part.boolean("strip_right")));
  } else if (type == "Prepend") {
    out.push_back(std::make_unique<Prepend>(part.text("prepend")));
  } else if (type == "Replace") {
    Pattern pattern = read_pattern(part.at("pattern"), "normalizer Replace");
    if (pattern.can_match_nothing())
      part.refuse("has a pattern that also matches nothing, which is not supported");
    out.push_back(std::make_unique<Replace>(std::move(pattern), part.text("content")));
  } else {
    part.refuse_type("NFC, NFD, Replace, Prepend, Strip, Lowercase and Sequence");
  }
}

}  // namespace

std::vector<std::unique_ptr<Normalizer>> read_normalizers(const json& j) {
  std::vector<std::unique_ptr<Normalizer>> out;
  if (!j.is_null()) append(j, out, 0);
  return out;
}

std::vector<TextRange> all_matches(const Pattern& pattern, std::string_view text) {
  std::vector<TextRange> out;
  if (text.empty()) return out;
  Pattern::Matches matches(pattern, text);
  for (TextRange match; matches.next(match);) out.push_back(match);
  return out;
}

Pattern read_pattern(const json& j, const char* of) {
  if (j.is_object() && j.size() == 1 && j.begin()->is_string()) {
    if (j.begin().key() == "String") return Pattern::literal(j.begin()->get<std::string>());
    if (j.begin().key() == "Regex") return Pattern::regex(j.begin()->get<std::string>());
  }
  throw DataError(str_cat(of, ": its pattern is neither {\"String\": ...} nor {\"Regex\": ...}"));
}

}  // namespace pesc
