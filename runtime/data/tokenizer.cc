#include "runtime/data/tokenizer.h"

#include <sentencepiece_processor.h>
#include <xxhash.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "ops/core/check.h"
#include "runtime/filesystem/file_kind.h"
#include "runtime/hf/mapped_file.h"

namespace pesc {
namespace {

constexpr const char* kFileName = "tokenizer.model";
constexpr uint64_t kMaxBytes = uint64_t{256} << 20;
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// Reads a protobuf varint at `at`; nothing when the bytes end first.
std::optional<uint64_t> read_varint(std::string_view bytes, size_t& at) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64 && at < bytes.size(); shift += 7) {
    const auto byte = static_cast<unsigned char>(bytes[at++]);
    value |= static_cast<uint64_t>(byte & 0x7F) << shift;
    if (byte < 0x80) return value;
  }
  return std::nullopt;
}

// The file is one protobuf message: pieces (field 1), then how it was trained (2) and how text is normalised
// (3). A file cut between two pieces is still a valid message, which the library loads with default rules: a
// wrong tokenizer without a word. So: every field whole, and all three there.
bool has_all_parts(std::string_view bytes) {
  uint64_t seen = 0;
  for (size_t at = 0; at < bytes.size();) {
    const std::optional<uint64_t> tag = read_varint(bytes, at);
    if (!tag) return false;
    const uint64_t field = *tag >> 3;
    if (field < 64) seen |= uint64_t{1} << field;
    switch (*tag & 7) {
      case 0:
        if (!read_varint(bytes, at)) return false;
        break;
      case 1:
        at += 8;
        break;
      case 2: {
        const std::optional<uint64_t> length = read_varint(bytes, at);
        if (!length || *length > bytes.size() - at) return false;
        at += *length;
        break;
      }
      case 5:
        at += 4;
        break;
      default:
        return false;
    }
    if (at > bytes.size()) return false;
  }
  constexpr uint64_t kParts = 0b1110;
  return (seen & kParts) == kParts;
}

class SentencePieceTokenizer : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(const std::string& path) {
    const MappedFile file(path);
    check_first_bytes(file.first_bytes(), path, FileUse::kSentencePiece);
    const std::string again = "; copy it again from where the model came from";
    if (file.size() == 0 || file.size() > kMaxBytes) {
      throw DataError(str_cat(path, ": has ", file.size(), " bytes; that is no sentencepiece model", again));
    }
    std::string bytes(file.size(), '\0');
    file.read_at(0, std::as_writable_bytes(std::span(bytes.data(), bytes.size())));
    if (!has_all_parts(bytes)) {
      throw DataError(str_cat(path, ": is cut off, damaged, or no sentencepiece model", again));
    }
    if (const auto status = processor_.LoadFromSerializedProto(bytes); !status.ok()) {
      throw DataError(str_cat(path, ": sentencepiece cannot load it: ", status.ToString(), again));
    }
    if (processor_.GetPieceSize() <= 0 || processor_.unk_id() < 0) {
      throw DataError(str_cat(path, ": has no pieces, or none for unknown text", again));
    }
  }

  [[nodiscard]] std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int> ids;
    if (const auto status = processor_.Encode(text, &ids); !status.ok()) {
      throw DataError(str_cat("a text of ", text.size(), " bytes cannot be tokenised: ", status.ToString()));
    }
    return ids;
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

 private:
  sentencepiece::SentencePieceProcessor processor_;
};

}  // namespace

std::unique_ptr<Tokenizer> open_tokenizer(const std::string& folder, Links links) {
  if (!folder_has(folder, kFileName)) {
    throw DataError(str_cat(folder, ": has no ", kFileName,
                            " (sentencepiece); a folder with only tokenizer.json cannot be read"));
  }
  return std::make_unique<SentencePieceTokenizer>(path_in_folder(folder, kFileName, folder, links));
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

void check_vocabulary(const Tokenizer& tokenizer, const ModelConfig& model) {
  const int64_t pieces = tokenizer.vocab_size();
  const std::string sizes =
      str_cat("the tokenizer has ", pieces, " pieces and the model a vocabulary of ", model.vocab);
  if (pieces > model.vocab) {
    throw DataError(
        str_cat(sizes, ": pieces beyond it have no embedding; use the tokenizer that belongs to the model"));
  }
  // Models pad their vocabulary, to a multiple of 64 or 128 or for tokens added later, by little.
  constexpr int64_t kPadding = 256;
  if (const int64_t spare = model.vocab - pieces; spare > kPadding && spare * 10 > pieces) {
    throw DataError(str_cat(sizes, ": too many to be padding; use the tokenizer that belongs to the model"));
  }
  if (tokenizer.bos_id() >= 0 && model.bos_id >= 0 && tokenizer.bos_id() != model.bos_id) {
    throw DataError(str_cat("the tokenizer begins a text with token ", tokenizer.bos_id(),
                            ", the model with ", model.bos_id, " (bos_token_id of config.json)"));
  }
  if (tokenizer.eos_id() >= 0 && !model.eos_ids.empty() &&
      std::ranges::find(model.eos_ids, tokenizer.eos_id()) == model.eos_ids.end()) {
    throw DataError(str_cat("the tokenizer ends a text with token ", tokenizer.eos_id(), ", the model with ",
                            model.eos_ids.front(), " (eos_token_id of config.json)"));
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
