#include "runtime/tokenizer/sentencepiece_tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "ops/core/check.h"
#include "runtime/filesystem/file_kind.h"
#include "runtime/hf/mapped_file.h"
#include "runtime/text/utf8.h"
#include "runtime/tokenizer/added_tokens.h"
#include "runtime/tokenizer/piece_borders.h"
#include "runtime/tokenizer/sentencepiece_file.h"

namespace pesc {
namespace {

constexpr uint64_t kMaxTokenizerBytes = uint64_t{256} << 20;

// Begin, end and padding are the file's own by name, whatever type it gives them; what other files name
// special is so where its piece is one that a text would match before all others.
std::string with_special_tokens(std::string_view bytes, const SentencePieceFacts& facts,
                                const SpecialPieces& special) {
  return with_control_pieces(bytes, [&](int32_t id, std::string_view piece, PieceType type) {
    if (type != PieceType::kNormal && type != PieceType::kUserDefined) return false;
    if (piece == facts.begin_piece || piece == facts.end_piece || piece == facts.padding_piece) return true;
    if (type != PieceType::kUserDefined) return false;
    return std::ranges::find(special.ids, int64_t{id}) != special.ids.end() ||
           std::ranges::find(special.texts, piece) != special.texts.end();
  });
}

class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(const std::string& path, const SpecialPieces& special)
      : SentencePieceTokenizer(path, read_whole(path), special) {}

  [[nodiscard]] std::vector<int32_t> encode(std::string_view text) const override {
    check_text(text);
    std::vector<int> ids;
    if (const auto status = processor_.Encode(text, &ids); !status.ok()) {
      throw DataError(str_cat("a text of ", text.size(), " bytes cannot be tokenised: ", status.ToString()));
    }
    return ids;
  }

  // Starts with about as much text as so many tokens have, and takes twice as much as long as that was too
  // little: of unknown characters any number is one token.
  [[nodiscard]] EncodedStart encode_start(std::string_view text, int64_t limit) const override {
    constexpr size_t kBytesPerToken = 8;
    constexpr size_t kLeast = 4096;
    // Where the text had to be cut off its borders, what is kept ends this many tokens before the cut. How
    // far a cut changes what stands before it has no bound in theory; a few tokens are usual.
    constexpr size_t kMargin = 4096;
    const auto tokens = static_cast<size_t>(std::clamp<int64_t>(limit, 0, int64_t{1} << 40));
    for (size_t most = std::max(kLeast, tokens * kBytesPerToken);; most *= 2) {
      const PieceBorders::Cut cut = borders_.next(text, most);
      EncodedStart start{encode(text.substr(0, cut.bytes)), cut.bytes};
      if (cut.bytes == text.size()) return start;
      if (start.ids.size() > tokens + (cut.at_border ? 0 : kMargin)) {
        // The last ones, and with them bytes, only where they are sure.
        if (!cut.at_border) start.ids.resize(tokens + 1);
        return start;
      }
    }
  }

  // Control pieces are this file's special added tokens; its user-defined pieces are always found.
  [[nodiscard]] Encoding encode_with_ranges(std::string_view text,
                                            const EncodeOptions& options) const override {
    check_text(text);
    Encoding out;
    if (options.post_processor && bos_id() >= 0) {
      out.ids.push_back(bos_id());
      out.ranges.push_back({});
    }
    controls_.cut(Piece{text, nullptr, 0, 0}, options, [&](const Piece& part, int32_t control) {
      if (control >= 0) {
        out.ids.push_back(control);
        out.ranges.push_back(part.source_range(0, part.text.size()));
      } else {
        append_part(part, out);
      }
    });
    return out;
  }

  [[nodiscard]] std::string decode_all(std::span<const int32_t> ids) const override {
    std::string text;
    for (auto at = ids.begin(); at != ids.end();) {
      const auto control = std::find_if(at, ids.end(), [&](int32_t id) { return is_control(id); });
      text += decoded(processor_for(at == ids.begin() ? 0 : 1), std::span(at, control));
      at = control;
      if (at != ids.end()) text += piece(*at++);
    }
    return text;
  }

  [[nodiscard]] std::string decode(std::span<const int32_t> ids) const override {
    return decoded(processor_, ids);
  }

  [[nodiscard]] int32_t vocab_size() const override { return processor_.GetPieceSize(); }
  [[nodiscard]] int32_t bos_id() const override { return processor_.bos_id(); }
  [[nodiscard]] int32_t eos_id() const override { return processor_.eos_id(); }
  [[nodiscard]] bool is_unknown(int32_t id) const override {
    return id < 0 || id >= vocab_size() || processor_.IsUnknown(id);
  }
  [[nodiscard]] bool is_control(int32_t id) const override {
    return id >= 0 && id < vocab_size() && processor_.IsControl(id);
  }
  [[nodiscard]] std::string piece(int32_t id) const override {
    return id >= 0 && id < vocab_size() ? processor_.IdToPiece(id) : std::string();
  }
  [[nodiscard]] int32_t piece_id(std::string_view piece) const override {
    const int id = processor_.PieceToId(piece);
    return id >= 0 && id < vocab_size() && processor_.IdToPiece(id) == piece ? id : -1;
  }

 private:
  static void check_text(std::string_view text) {
    if (const size_t valid = valid_utf8_prefix(text); valid != text.size()) {
      throw DataError(str_cat("a text cannot be tokenised: byte ", valid, " of ", text.size(),
                              " begins no UTF-8 character; write it as UTF-8"));
    }
  }

  static std::string read_whole(const std::string& path) {
    const MappedFile file(path);
    check_first_bytes(file.first_bytes(), path, FileUse::kSentencePiece);
    if (file.size() == 0 || file.size() > kMaxTokenizerBytes) {
      throw DataError(str_cat(path, ": has ", file.size(), " bytes; that is no sentencepiece model", kAgain));
    }
    std::string bytes(file.size(), '\0');
    file.read_at(0, std::as_writable_bytes(std::span(bytes.data(), bytes.size())));
    if (!is_whole_sentencepiece_file(bytes)) {
      throw DataError(str_cat(path, ": is cut off, damaged, or no sentencepiece model", kAgain));
    }
    return bytes;
  }

  SentencePieceTokenizer(const std::string& path, const std::string& bytes, const SpecialPieces& special)
      : borders_(sentencepiece_facts(bytes)) {
    // Damage that the library would refuse is not to be mended: it sees the file as it is first.
    if (const auto status = processor_.LoadFromSerializedProto(bytes); !status.ok()) {
      throw DataError(str_cat(path, ": sentencepiece cannot load it: ", status.ToString(), kAgain));
    }
    const std::string changed = with_special_tokens(bytes, sentencepiece_facts(bytes), special);
    if (changed.size() != bytes.size()) {
      if (const auto status = processor_.LoadFromSerializedProto(changed); !status.ok()) {
        throw DataError(str_cat(path, ": sentencepiece cannot load it: ", status.ToString(), kAgain));
      }
    }
    if (processor_.GetPieceSize() <= 0 || processor_.unk_id() < 0) {
      throw DataError(str_cat(path, ": has no pieces, or none for unknown text", kAgain));
    }
    without_prefix_bytes_ = changed + std::string(kNoDummyPrefix);
    std::vector<AddedToken> controls;
    for (int id = 0; id < processor_.GetPieceSize(); ++id) {
      if (!processor_.IsControl(id)) continue;
      AddedToken token;
      token.id = id;
      token.content = token.matched = processor_.IdToPiece(id);
      token.special = true;
      controls.push_back(std::move(token));
    }
    controls_.build(controls, false);
    for (int id = 0; id < processor_.GetPieceSize(); ++id) {
      if (processor_.IsControl(id) || processor_.IsUnknown(id) || processor_.IsByte(id)) continue;
      borders_.add_piece(processor_.IdToPiece(id));
    }
  }

  static constexpr const char* kAgain = "; copy it again from where the model came from";
  // A second normalizer_spec, which is merged into the file's: add_dummy_prefix is false.
  static constexpr std::string_view kNoDummyPrefix{"\x1A\x02\x18\x00", 4};

  // The space mark is put before the start of the text alone, not behind a control token.
  [[nodiscard]] const sentencepiece::SentencePieceProcessor& processor_for(size_t begin) const {
    if (begin == 0) return processor_;
    std::call_once(without_prefix_once_, [&] {
      if (const auto status = without_prefix_.LoadFromSerializedProto(without_prefix_bytes_); !status.ok())
        throw InternalError(str_cat("sentencepiece cannot load its own model: ", status.ToString()));
    });
    return without_prefix_;
  }

  [[nodiscard]] std::string decoded(const sentencepiece::SentencePieceProcessor& processor,
                                    std::span<const int32_t> ids) const {
    std::vector<int> known(ids.begin(), ids.end());
    for (int& id : known) {
      if (id < 0 || id >= vocab_size()) id = processor_.unk_id();
    }
    std::string text;
    if (const auto status = processor.Decode(known, &text); !status.ok()) {
      throw InternalError(str_cat(ids.size(), " tokens cannot be decoded: ", status.ToString()));
    }
    return text;
  }

  void append_part(const Piece& part, Encoding& out) const {
    const auto encoded = processor_for(part.begin).EncodeAsImmutableProto(part.text);
    for (const auto& piece : encoded.pieces()) {
      out.ids.push_back(static_cast<int32_t>(piece.id()));
      // Of the bytes of a character the library gives all but the last an empty range.
      const size_t begin = part.begin + piece.begin();
      const size_t end = part.begin + piece.end();
      out.ranges.push_back(end > begin
                               ? part.cut(begin - part.begin, end - part.begin).source_range(0, end - begin)
                               : TextRange{begin, begin});
    }
    // An empty range before one that is not, both of one character's bytes, is the character's too.
    for (size_t i = out.ids.size(); i-- > 1;) {
      const bool byte = processor_.IsByte(out.ids[i]) && processor_.IsByte(out.ids[i - 1]);
      if (byte && out.ranges[i - 1].begin == out.ranges[i - 1].end &&
          out.ranges[i - 1].end == out.ranges[i].begin)
        out.ranges[i - 1] = out.ranges[i];
    }
  }

  AddedTokenFinder controls_;
  std::string without_prefix_bytes_;
  mutable std::once_flag without_prefix_once_;
  mutable sentencepiece::SentencePieceProcessor without_prefix_;
  sentencepiece::SentencePieceProcessor processor_;
  PieceBorders borders_;
};

}  // namespace

std::unique_ptr<Tokenizer> open_sentencepiece_tokenizer(const std::string& path,
                                                        const SpecialPieces& special) {
  return std::make_unique<SentencePieceTokenizer>(path, special);
}

}  // namespace pesc
