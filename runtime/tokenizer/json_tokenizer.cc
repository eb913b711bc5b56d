#include "runtime/tokenizer/json_tokenizer.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "ops/core/check.h"
#include "runtime/text/utf8.h"
#include "runtime/tokenizer/added_tokens.h"
#include "runtime/tokenizer/aligned_text.h"
#include "runtime/tokenizer/bpe.h"
#include "runtime/tokenizer/json_tokenizer_parts.h"
#include "runtime/tokenizer/normalizer.h"
#include "runtime/tokenizer/post_processor.h"
#include "runtime/tokenizer/pre_tokenizer.h"
#include "runtime/tokenizer/token_decoder.h"

namespace pesc {
namespace {

class JsonTokenizer : public Tokenizer {
 public:
  JsonTokenizer(JsonTokenizerParts parts, const std::string& begin, const std::string& end)
      : p_(std::move(parts)) {
    raw_.build(p_.added, false);
    normalized_.build(p_.added, true);
    end_ = std::max(p_.model.end(), p_.post_processor.highest_id() + 1);
    for (const AddedToken& token : p_.added) end_ = std::max(end_, token.id + 1);
    for (const AddedToken& token : p_.added) {
      ids_.insert_or_assign(token.content, token.id);
      added_names_.insert_or_assign(token.id, token.content);
      decoded_names_.insert_or_assign(token.id, token.matched);
      if (token.special) {
        special_ids_.insert(token.id);
        special_names_.insert(token.content);
      }
    }
    begin_id_ = begin.empty() ? p_.post_processor.first_id() : piece_id(begin);
    end_id_ = end.empty() ? -1 : piece_id(end);
    cuts_ = std::ranges::any_of(p_.pre_tokenizers, [](const auto& step) { return step->cuts(); });
    decodes_bytes_ = p_.decoders.size() == 1 && p_.decoders[0]->is_byte_level();
  }

  [[nodiscard]] int mistral_version() const override { return p_.mistral_version; }
  [[nodiscard]] std::vector<int32_t> encode(std::string_view text) const override {
    return run(text, {}, false, SIZE_MAX).encoding.ids;
  }
  [[nodiscard]] Encoding encode_with_ranges(std::string_view text,
                                            const EncodeOptions& options) const override {
    return run(text, options, true, SIZE_MAX).encoding;
  }
  // Where a text is cut into pieces, as many of these as are wanted. Else all of it is one piece: its start
  // is taken, and twice as much as long as that was too little. How far a cut changes what stands before it
  // has no bound in theory; a few tokens are usual, and this many tokens before the cut are left out.
  [[nodiscard]] EncodedStart encode_start(std::string_view text, int64_t limit) const override {
    constexpr size_t kBytesPerToken = 8;
    constexpr size_t kLeast = 64 << 10;
    constexpr size_t kMargin = 4096;
    const auto tokens = static_cast<size_t>(std::clamp<int64_t>(limit, 0, int64_t{1} << 40));
    for (size_t most = cuts_ ? text.size() : std::max(kLeast, (tokens + kMargin) * kBytesPerToken);;
         most *= 2) {
      size_t end = std::min(most, text.size());
      while (end < text.size() && end > 0 && unicode::continues(text[end])) --end;
      Run done = run(text.substr(0, end), {}, false, tokens + (cuts_ ? 0 : kMargin));
      std::vector<int32_t>& ids = done.encoding.ids;
      if (end == text.size()) return {std::move(ids), done.whole ? end : done.bytes};
      if (ids.size() <= tokens + kMargin) continue;
      ids.resize(tokens + 1);
      return {std::move(ids), end};
    }
  }

  [[nodiscard]] std::string decode(std::span<const int32_t> ids) const override { return decoded(ids, true); }
  [[nodiscard]] std::string decode_all(std::span<const int32_t> ids) const override {
    return decoded(ids, false);
  }

  [[nodiscard]] int32_t vocab_size() const override { return end_; }
  [[nodiscard]] int32_t bos_id() const override { return begin_id_; }
  [[nodiscard]] int32_t eos_id() const override { return end_id_; }
  [[nodiscard]] bool is_unknown(int32_t id) const override {
    if (id < 0 || id >= end_ || id == p_.model.unknown()) return true;
    // Asked of every token of every row: most are the model's.
    if (id < p_.model.end() && !p_.model.name(id).empty()) return false;
    return piece(id).empty();
  }
  [[nodiscard]] bool is_control(int32_t id) const override { return special_ids_.contains(id); }
  [[nodiscard]] int32_t piece_id(std::string_view piece) const override {
    const auto found = ids_.find(std::string(piece));
    return found != ids_.end() ? found->second : p_.model.find(piece);
  }
  [[nodiscard]] std::string piece(int32_t id) const override {
    const auto found = added_names_.find(id);
    if (found != added_names_.end()) return found->second;
    return id >= 0 && id < p_.model.end() ? p_.model.name(id) : "";
  }

 private:
  struct Run {
    Encoding encoding;
    std::vector<TokenSpaces> spaces;
    size_t bytes = 0;   // of the text, that were looked at for certain
    bool whole = true;  // all of the text was
  };

  // The model, at the end of the pre-tokenizers.
  class ModelSink : public PieceSink {
   public:
    ModelSink(const JsonTokenizer& tokenizer, size_t source, bool ranges, bool spaces, size_t limit, Run& run)
        : t_(tokenizer), source_(source), ranges_(ranges), spaces_(spaces), limit_(limit), run_(run) {}
    bool take(const Piece& piece) override {
      Encoding& out = run_.encoding;
      if (out.ids.size() > limit_) {
        run_.whole = false;
        run_.bytes = piece.source_range(0, 1).begin;
        return false;
      }
      taken_ += piece.text.size();
      check_growth(taken_, source_, "normalizer and pre_tokenizer");
      const size_t before = out.ids.size();
      lengths_.clear();
      t_.p_.model.tokenize(piece.text, out.ids, ranges_ ? &lengths_ : nullptr);
      size_t at = 0;
      for (size_t i = before; ranges_ && i < out.ids.size(); ++i) {
        const size_t end = at + lengths_[i - before];
        out.ranges.push_back(piece.source_range(at, end));
        at = end;
        if (spaces_) run_.spaces.push_back(spaces_of(t_.p_.model.name(out.ids[i])));
      }
      return true;
    }

   private:
    const JsonTokenizer& t_;
    size_t source_;     // bytes of all of the text
    size_t taken_ = 0;  // bytes of the pieces
    bool ranges_, spaces_;
    size_t limit_;
    Run& run_;
    std::vector<uint32_t> lengths_;
  };

  // A pre-tokenizer, and what comes after it.
  class StepSink : public PieceSink {
   public:
    StepSink(const PreTokenizer& step, PieceSink& next) : step_(step), next_(next) {}
    bool take(const Piece& piece) override { return step_.cut(piece, next_); }

   private:
    const PreTokenizer& step_;
    PieceSink& next_;
  };

  [[nodiscard]] Run run(std::string_view text, const EncodeOptions& options, bool ranges,
                        size_t limit) const {
    check_text(text);
    Run out;
    const bool spaces = ranges && options.trim_offsets && p_.post_processor.trims();
    ModelSink model(*this, text.size(), ranges, spaces, limit, out);
    std::vector<StepSink> steps;  // the last first
    steps.reserve(p_.pre_tokenizers.size());
    PieceSink* first = &model;
    for (size_t i = p_.pre_tokenizers.size(); i-- > 0;) {
      steps.emplace_back(*p_.pre_tokenizers[i], *first);
      first = &steps.back();
    }
    const auto take_token = [&](const Piece& piece, int32_t id) {
      out.encoding.ids.push_back(id);
      if (ranges) out.encoding.ranges.push_back(piece.source_range(0, piece.text.size()));
      if (spaces) out.spaces.push_back(spaces_of(piece.text));
    };
    AlignedText storage;
    raw_.cut(Piece{text, nullptr, 0, 0}, options, [&](const Piece& part, int32_t token) {
      if (!out.whole) return;
      if (token >= 0) return take_token(part, token);
      Piece changed = part;
      for (const auto& normalizer : p_.normalizers) changed = normalizer->normalize(changed, storage);
      normalized_.cut(changed, options, [&](const Piece& piece, int32_t its_token) {
        if (!out.whole) return;
        if (its_token >= 0) return take_token(piece, its_token);
        (void)first->take(piece);
      });
    });
    if (ranges && out.whole) p_.post_processor.apply(text, options, std::move(out.spaces), out.encoding);
    return out;
  }

  static void check_text(std::string_view text) {
    if (text.size() >= UINT32_MAX)
      throw DataError(str_cat("a text of ", text.size(), " bytes is too long to be tokenised"));
    if (const size_t valid = valid_utf8_prefix(text); valid != text.size()) {
      throw DataError(str_cat("a text cannot be tokenised: byte ", valid, " of ", text.size(),
                              " begins no UTF-8 character; write it as UTF-8"));
    }
  }

  [[nodiscard]] std::string decoded(std::span<const int32_t> ids, bool without_special) const {
    std::vector<std::string> names;
    std::string bytes;
    for (const int32_t id : ids) {
      const auto added = decoded_names_.find(id);
      const bool in_model = id >= 0 && id < p_.model.end() && !p_.model.name(id).empty();
      if (added == decoded_names_.end() && !in_model) continue;
      const std::string& name = added != decoded_names_.end() ? added->second : p_.model.name(id);
      if (without_special && special_names_.contains(name)) continue;
      if (decodes_bytes_) {
        append_byte_level(name, bytes);
      } else {
        names.push_back(name);
      }
    }
    if (decodes_bytes_) return with_replacements(std::move(bytes));
    size_t source = 0;
    for (const std::string& name : names) source += name.size();
    for (const auto& decoder : p_.decoders) decoder->decode(names, source);
    std::string text;
    for (size_t i = 0; i < names.size(); ++i) {
      if (i > 0 && p_.decoders.empty()) text += ' ';
      text += names[i];
    }
    return text;
  }

  JsonTokenizerParts p_;
  AddedTokenFinder raw_, normalized_;
  std::unordered_map<std::string, int32_t> ids_;          // of added tokens
  std::unordered_map<int32_t, std::string> added_names_;  // their contents
  std::unordered_map<int32_t, std::string> decoded_names_;
  std::unordered_set<int32_t> special_ids_;
  std::unordered_set<std::string> special_names_;
  int32_t end_ = 0;
  int32_t begin_id_ = -1;
  int32_t end_id_ = -1;
  bool cuts_ = false;  // a text into pieces
  bool decodes_bytes_ = false;
};

}  // namespace

std::unique_ptr<Tokenizer> parse_json_tokenizer(std::string_view text, const std::string& path,
                                                const SpecialPieces& special, const std::string& begin,
                                                const std::string& end, const ConfiguredTokens& configured) {
  try {
    return std::make_unique<JsonTokenizer>(read_json_tokenizer_parts(text, special, configured), begin, end);
  } catch (const DataError& error) {
    throw DataError(str_cat(path, ": ", error.what()));
  }
}

std::unique_ptr<Tokenizer> parse_tekken_tokenizer(std::string_view text, const std::string& path) {
  try {
    return std::make_unique<JsonTokenizer>(read_tekken_parts(text), "<s>", "</s>");
  } catch (const DataError& error) {
    throw DataError(str_cat(path, ": ", error.what()));
  }
}

}  // namespace pesc
