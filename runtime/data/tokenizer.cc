#include "runtime/data/tokenizer.h"

#include <sentencepiece_processor.h>
#include <xxhash.h>

#include <algorithm>
#include <utility>

#include "ops/core/check.h"
#include "runtime/data/piece_borders.h"
#include "runtime/data/sentencepiece_file.h"
#include "runtime/filesystem/file_kind.h"
#include "runtime/hf/mapped_file.h"

namespace pesc {
namespace {

constexpr const char* kFileName = "tokenizer.model";
constexpr uint64_t kMaxTokenizerBytes = uint64_t{256} << 20;
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

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

  [[nodiscard]] std::string decode(std::span<const int32_t> ids) const override {
    std::vector<int> known(ids.begin(), ids.end());
    for (int& id : known) {
      if (id < 0 || id >= vocab_size()) id = processor_.unk_id();
    }
    std::string text;
    if (const auto status = processor_.Decode(known, &text); !status.ok()) {
      throw InternalError(str_cat(ids.size(), " tokens cannot be decoded: ", status.ToString()));
    }
    return text;
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
  [[nodiscard]] int32_t piece_id(std::string_view piece) const override {
    const int id = processor_.PieceToId(piece);
    return id >= 0 && id < vocab_size() && processor_.IdToPiece(id) == piece ? id : -1;
  }

 private:
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
    for (int id = 0; id < processor_.GetPieceSize(); ++id) {
      if (processor_.IsControl(id) || processor_.IsUnknown(id) || processor_.IsByte(id)) continue;
      borders_.add_piece(processor_.IdToPiece(id));
    }
  }

  static constexpr const char* kAgain = "; copy it again from where the model came from";
  sentencepiece::SentencePieceProcessor processor_;
  PieceBorders borders_;
};

}  // namespace

std::unique_ptr<Tokenizer> open_tokenizer(const std::string& folder, const SpecialPieces& special,
                                          Links links) {
  if (!folder_has(folder, kFileName)) {
    throw DataError(str_cat(folder, ": has no ", kFileName,
                            " (sentencepiece); a folder with only tokenizer.json cannot be read"));
  }
  return std::make_unique<SentencePieceTokenizer>(path_in_folder(folder, kFileName, folder, links), special);
}

std::string tokenizer_digest(const std::string& folder, Links links) {
  const MappedFile file(path_in_folder(folder, kFileName, folder, links));
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(file.bytes().data(), file.bytes().size()));
  std::string hex;
  for (const unsigned char byte : canonical.digest) {
    hex += "0123456789abcdef"[byte >> 4];
    hex += "0123456789abcdef"[byte & 15];
  }
  return hex;
}

std::string canonical_text(const Tokenizer& tokenizer, const std::string& text, int64_t most_tokens) {
  const EncodedStart start = tokenizer.encode_start(text, most_tokens);
  if (start.bytes < text.size()) return text;
  const std::vector<int32_t>& ids = start.ids;
  const bool unknown = std::ranges::any_of(ids, [&](int32_t id) { return tokenizer.is_unknown(id); });
  return unknown ? text : tokenizer.decode(ids);
}

void check_vocabulary(const Tokenizer& tokenizer, const ModelConfig& model) {
  const int64_t pieces = tokenizer.vocab_size();
  const std::string sizes =
      str_cat("the tokenizer has ", pieces, " pieces and the model a vocabulary of ", model.vocab_size);
  if (pieces > model.vocab_size) {
    throw DataError(
        str_cat(sizes, ": pieces beyond it have no embedding; use the tokenizer that belongs to the model"));
  }
  // Models pad their vocabulary, to a multiple of 64 or 128 or for tokens added later, by little.
  constexpr int64_t kPadding = 256;
  if (const int64_t spare = model.vocab_size - pieces; spare > kPadding && spare * 10 > pieces) {
    throw DataError(str_cat(sizes, ": too many to be padding; use the tokenizer that belongs to the model"));
  }
}

// A character that lacks bytes decodes to one U+FFFD for each byte that is there, three at most; so the last
// three U+FFFD may still change and all before them will not.
std::string StreamDecoder::push(int32_t id) {
  window_.push_back(id);
  const std::string text = tokenizer_.decode(window_);
  size_t settled = text.size();
  for (int held = 0; held < 3 && std::string_view(text).substr(0, settled).ends_with(kReplacement); ++held) {
    settled -= kReplacement.size();
  }
  if (settled <= printed_) return {};
  std::string out = text.substr(printed_, settled - printed_);
  printed_ = settled;
  shorten_window(text.size() - settled);
  return out;
}

std::string StreamDecoder::finish() {
  const std::string text = tokenizer_.decode(window_);
  std::string out = text.substr(std::min(printed_, text.size()));
  window_.clear();
  printed_ = 0;
  return out;
}

// Keeps the last tokens as context, because decoding strips the space mark at the start of a text: a token
// alone would lose the space before it. The context has text of its own, so that the mark it loses is not the
// next token's. What is held back comes from the last three tokens and so is in it.
void StreamDecoder::shorten_window(size_t held) {
  constexpr size_t kLongest = 64;
  constexpr size_t kKept = 16;
  if (window_.size() < kLongest) return;
  const std::vector<int32_t> kept(window_.end() - kKept, window_.end());
  const size_t text = tokenizer_.decode(kept).size();
  if (text <= held) return;
  window_ = kept;
  printed_ = text - held;
}

}  // namespace pesc
