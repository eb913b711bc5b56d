#include "runtime/tokenizer/pre_tokenizer.h"

#include <nlohmann/json.hpp>
#include <string>

#include "ops/core/check.h"
#include "runtime/text/printable.h"
#include "runtime/tokenizer/component_json.h"
#include "runtime/tokenizer/normalizer.h"
#include "runtime/tokenizer/pattern.h"
#include "runtime/tokenizer/split_pieces.h"
#include "runtime/tokenizer/unicode.h"

namespace pesc {
namespace {

using nlohmann::json;

constexpr const char* kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// `invert`: what the pattern does not match are the delimiters.
bool split_at(const Piece& piece, const Pattern& pattern, SplitBehavior behavior, bool invert,
              PieceSink& sink) {
  SplitPieces parts(piece, behavior, sink);
  Pattern::Matches matches(pattern, piece.text);
  size_t done = 0;
  for (TextRange match; matches.next(match); done = match.end) {
    if (done != match.begin && !parts.add(done, match.begin, invert)) return false;
    if (!parts.add(match.begin, match.end, !invert)) return false;
  }
  if (done != piece.text.size() && !parts.add(done, piece.text.size(), invert)) return false;
  return parts.finish();
}

// Each character that `is_delimiter` picks is one.
template <class Picks>
bool split_at_characters(const Piece& piece, const Picks& is_delimiter, SplitBehavior behavior,
                         PieceSink& sink) {
  SplitPieces parts(piece, behavior, sink);
  size_t done = 0;
  for (size_t at = 0; at < piece.text.size();) {
    const size_t begin = at;
    if (!is_delimiter(unicode::next_char(piece.text, at))) continue;
    if (done < begin && !parts.add(done, begin, false)) return false;
    if (!parts.add(begin, at, true)) return false;
    done = at;
  }
  if (done < piece.text.size() && !parts.add(done, piece.text.size(), false)) return false;
  return parts.finish();
}

class Split : public PreTokenizer {
 public:
  Split(Pattern pattern, SplitBehavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}
  bool cut(const Piece& piece, PieceSink& sink) const override {
    return split_at(piece, pattern_, behavior_, invert_, sink);
  }

 private:
  Pattern pattern_;
  SplitBehavior behavior_;
  bool invert_;
};

class Characters : public PreTokenizer {
 public:
  Characters(const unicode::CharSet& set, SplitBehavior behavior) : set_(set), behavior_(behavior) {}
  bool cut(const Piece& piece, PieceSink& sink) const override {
    return split_at_characters(
        piece, [&](char32_t c) { return set_.contains(c); }, behavior_, sink);
  }

 private:
  const unicode::CharSet& set_;
  SplitBehavior behavior_;
};

class ByteLevel : public PreTokenizer {
 public:
  ByteLevel(bool prefix_space, bool use_regex) : prefix_space_(prefix_space) {
    if (use_regex) pattern_.emplace(Pattern::regex(kGpt2));
  }
  [[nodiscard]] bool cuts() const override { return pattern_.has_value(); }
  [[nodiscard]] bool is_byte_level() const override { return true; }
  void keep_bytes() override { keep_bytes_ = true; }

  bool cut(const Piece& piece, PieceSink& sink) const override {
    ToAlphabet to_alphabet(sink);
    PieceSink& next = keep_bytes_ ? sink : to_alphabet;
    if (!prefix_space_ || piece.text.starts_with(' ')) return split(piece, next);
    AlignedText text(piece);
    text.prepend(" ", "pre_tokenizer ByteLevel");
    return split(text.piece(piece.origin), next);
  }

 private:
  class ToAlphabet : public PieceSink {
   public:
    explicit ToAlphabet(PieceSink& sink) : sink_(sink) {}
    bool take(const Piece& piece) override {
      AlignedText text(piece);
      text.to_byte_level();
      return sink_.take(text.piece(piece.origin));
    }

   private:
    PieceSink& sink_;
  };
  bool split(const Piece& piece, PieceSink& sink) const {
    return pattern_ ? split_at(piece, *pattern_, SplitBehavior::kIsolated, false, sink) : sink.take(piece);
  }

  bool prefix_space_;
  bool keep_bytes_ = false;
  std::optional<Pattern> pattern_;
};

class Metaspace : public PreTokenizer {
 public:
  enum class Prepend { kFirst, kNever, kAlways };
  Metaspace(std::string replacement, Prepend prepend, bool split)
      : replacement_(std::move(replacement)),
        prepend_(prepend),
        split_(split),
        spaces_(Pattern::literal(" ")) {
    size_t at = 0;
    mark_ = unicode::next_char(replacement_, at);
  }
  [[nodiscard]] bool cuts() const override { return split_; }
  bool cut(const Piece& piece, PieceSink& sink) const override {
    const std::vector<TextRange> found = all_matches(spaces_, piece.text);
    AlignedText text(piece);
    if (!found.empty()) text.replace(found, replacement_, "pre_tokenizer Metaspace");
    const bool wanted = prepend_ == Prepend::kAlways || (prepend_ == Prepend::kFirst && piece.origin == 0);
    if (wanted && !text.text().starts_with(replacement_))
      text.prepend(replacement_, "pre_tokenizer Metaspace");
    const Piece changed = text.piece(piece.origin);
    if (!split_) return sink.take(changed);
    return split_at_characters(
        changed, [&](char32_t c) { return c == mark_; }, SplitBehavior::kMergedWithNext, sink);
  }

 private:
  std::string replacement_;
  char32_t mark_ = 0;
  Prepend prepend_;
  bool split_;
  Pattern spaces_;
};

SplitBehavior read_behavior(const Component& part) {
  const std::string name = part.text("behavior");
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  part.refuse(str_cat("the behavior '", printable(name),
                      "' is none of Removed, Isolated, MergedWithPrevious, MergedWithNext and Contiguous"));
}

std::unique_ptr<PreTokenizer> read_metaspace(const Component& part) {
  std::string replacement = part.text("replacement");
  size_t end = 0;
  if (!replacement.empty()) (void)unicode::next_char(replacement, end);
  if (replacement.empty() || end != replacement.size()) part.refuse("\"replacement\" is not one character");
  Metaspace::Prepend prepend = Metaspace::Prepend::kAlways;
  if (part.json.contains("prepend_scheme")) {
    const std::string scheme = part.text("prepend_scheme");
    if (scheme == "first") {
      prepend = Metaspace::Prepend::kFirst;
    } else if (scheme == "never") {
      prepend = Metaspace::Prepend::kNever;
    } else if (scheme != "always") {
      part.refuse(str_cat("the prepend_scheme '", printable(scheme), "' is none of first, never and always"));
    }
  }
  if (!part.boolean("add_prefix_space", true)) {
    if (part.json.contains("prepend_scheme") && prepend != Metaspace::Prepend::kNever)
      part.refuse("add_prefix_space is false, but prepend_scheme is not never");
    prepend = Metaspace::Prepend::kNever;
  }
  return std::make_unique<Metaspace>(std::move(replacement), prepend, part.boolean("split", true));
}

void append(const json& j, std::vector<std::unique_ptr<PreTokenizer>>& out, int depth) {
  const std::string type = component_type(j, "pre_tokenizer");
  const Component part{j, "pre_tokenizer", type};
  part.check_count(out.size());
  if (type == "Sequence") {
    part.check_depth(depth);
    for (const json& inner : part.array("pretokenizers")) append(inner, out, depth + 1);
  } else if (type == "Split") {
    out.push_back(std::make_unique<Split>(read_pattern(part.at("pattern"), "pre_tokenizer Split"),
                                          read_behavior(part), part.boolean("invert")));
  } else if (type == "ByteLevel") {
    out.push_back(
        std::make_unique<ByteLevel>(part.boolean("add_prefix_space"), part.boolean("use_regex", true)));
  } else if (type == "Digits") {
    const bool individual = part.boolean("individual_digits");
    out.push_back(std::make_unique<Characters>(
        unicode::numeric(), individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous));
  } else if (type == "Punctuation") {
    out.push_back(std::make_unique<Characters>(
        unicode::punctuation(), j.contains("behavior") ? read_behavior(part) : SplitBehavior::kIsolated));
  } else if (type == "Metaspace") {
    out.push_back(read_metaspace(part));
  } else {
    part.refuse_type("Split, ByteLevel, Digits, Metaspace, Punctuation and Sequence");
  }
}

}  // namespace

std::vector<std::unique_ptr<PreTokenizer>> read_pre_tokenizers(const json& j) {
  std::vector<std::unique_ptr<PreTokenizer>> out;
  if (!j.is_null()) append(j, out, 0);
  return out;
}

}  // namespace pesc
