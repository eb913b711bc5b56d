#include "runtime/tokenizer/sentencepiece_file.h"

#include <bit>
#include <optional>

#include "ops/core/check.h"

namespace pesc {
namespace {

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

void append_varint(uint64_t value, std::string& out) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

struct WireField {
  uint64_t number = 0;
  uint64_t value = 0;      // of a varint
  std::string_view bytes;  // of a text or message
  std::string_view all;    // with its tag
};

// The field that begins at `at`, which moves behind it; nothing when it is not whole.
std::optional<WireField> read_field(std::string_view bytes, size_t& at) {
  const size_t begin = at;
  const std::optional<uint64_t> tag = read_varint(bytes, at);
  if (!tag) return std::nullopt;
  WireField field;
  field.number = *tag >> 3;
  switch (*tag & 7) {
    case 0: {
      const std::optional<uint64_t> value = read_varint(bytes, at);
      if (!value) return std::nullopt;
      field.value = *value;
      break;
    }
    case 1:
      at += 8;
      break;
    case 2: {
      const std::optional<uint64_t> length = read_varint(bytes, at);
      if (!length || *length > bytes.size() - at) return std::nullopt;
      field.bytes = bytes.substr(at, *length);
      at += *length;
      break;
    }
    case 5:
      at += 4;
      break;
    default:
      return std::nullopt;
  }
  if (at > bytes.size()) return std::nullopt;
  field.all = bytes.substr(begin, at - begin);
  return field;
}

// Calls visit(field) for each field of a message; false when one is not whole.
template <class Visit>
bool for_each_field(std::string_view message, const Visit& visit) {
  for (size_t at = 0; at < message.size();) {
    const std::optional<WireField> field = read_field(message, at);
    if (!field) return false;
    visit(*field);
  }
  return true;
}

// Numbers of sentencepiece_model.proto.
constexpr uint64_t kPieces = 1;
constexpr uint64_t kPieceText = 1;
constexpr uint64_t kPieceScore = 2;
constexpr uint64_t kPieceType = 3;
constexpr uint64_t kTrainer = 2;
constexpr uint64_t kModelType = 3;
constexpr uint64_t kBpeModel = 2;
constexpr uint64_t kWordModel = 3;
constexpr uint64_t kWhitespaceAsSuffix = 24;
constexpr uint64_t kByteFallback = 35;
constexpr uint64_t kBeginPiece = 46;
constexpr uint64_t kEndPiece = 47;
constexpr uint64_t kPaddingPiece = 48;
constexpr uint64_t kNormalizer = 3;
constexpr uint64_t kCharacterMap = 2;
constexpr uint64_t kDummyPrefix = 3;
constexpr uint64_t kRemoveExtraWhitespaces = 4;
constexpr uint64_t kEscapeWhitespaces = 5;

// Of a field of four bytes, which end it.
float float_of(const WireField& field) {
  uint32_t bits = 0;
  for (size_t i = 0; i < sizeof(bits); ++i)
    bits |= static_cast<uint32_t>(static_cast<unsigned char>(field.all[field.all.size() - sizeof(bits) + i]))
            << (8 * i);
  return std::bit_cast<float>(bits);
}

}  // namespace

bool is_whole_sentencepiece_file(std::string_view bytes) {
  uint64_t seen = 0;
  const bool whole = for_each_field(bytes, [&seen](const WireField& field) {
    if (field.number < 64) seen |= uint64_t{1} << field.number;
  });
  constexpr uint64_t kParts = uint64_t{1} << kPieces | uint64_t{1} << kTrainer | uint64_t{1} << kNormalizer;
  return whole && (seen & kParts) == kParts;
}

SentencePieceFacts sentencepiece_facts(std::string_view bytes) {
  SentencePieceFacts facts;
  for_each_field(bytes, [&facts](const WireField& part) {
    for_each_field(part.number == kTrainer || part.number == kNormalizer ? part.bytes : std::string_view(),
                   [&](const WireField& field) {
                     if (part.number == kNormalizer) {
                       if (field.number == kCharacterMap) facts.maps_characters = !field.bytes.empty();
                       if (field.number == kDummyPrefix) facts.space_before = field.value != 0;
                       if (field.number == kRemoveExtraWhitespaces) facts.drops_spaces = field.value != 0;
                       if (field.number == kEscapeWhitespaces) facts.marks_spaces = field.value != 0;
                       return;
                     }
                     if (field.number == kModelType) {
                       facts.whole_words = field.value == kWordModel;
                       facts.bpe = field.value == kBpeModel;
                     }
                     if (field.number == kWhitespaceAsSuffix) facts.mark_ends_words = field.value != 0;
                     if (field.number == kByteFallback) facts.byte_fallback = field.value != 0;
                     if (field.number == kBeginPiece) facts.begin_piece = field.bytes;
                     if (field.number == kEndPiece) facts.end_piece = field.bytes;
                     if (field.number == kPaddingPiece) facts.padding_piece = field.bytes;
                   });
  });
  return facts;
}

std::vector<SentencePiece> sentencepiece_pieces(std::string_view bytes) {
  std::vector<SentencePiece> pieces;
  for_each_field(bytes, [&](const WireField& part) {
    if (part.number != kPieces) return;
    SentencePiece& piece = pieces.emplace_back();
    for_each_field(part.bytes, [&](const WireField& field) {
      if (field.number == kPieceText) piece.text = field.bytes;
      if (field.number == kPieceScore && field.all.size() > sizeof(float)) piece.score = float_of(field);
      if (field.number == kPieceType) piece.type = static_cast<PieceType>(field.value);
    });
  });
  return pieces;
}

std::string with_control_pieces(std::string_view bytes,
                                const std::function<bool(int32_t, std::string_view, PieceType)>& is_special) {
  std::string out;
  out.reserve(bytes.size() + 64);
  int32_t id = 0;
  for_each_field(bytes, [&](const WireField& part) {
    if (part.number != kPieces) {
      out += part.all;
      return;
    }
    std::string_view text;
    auto type = PieceType::kNormal;
    for_each_field(part.bytes, [&](const WireField& field) {
      if (field.number == kPieceText) text = field.bytes;
      if (field.number == kPieceType) type = static_cast<PieceType>(field.value);
    });
    if (!is_special(id++, text, type)) {
      out += part.all;
      return;
    }
    // Of a field that comes twice the last counts.
    std::string piece(part.bytes);
    append_varint(kPieceType << 3, piece);
    append_varint(static_cast<uint64_t>(PieceType::kControl), piece);
    append_varint(kPieces << 3 | 2, out);
    append_varint(piece.size(), out);
    out += piece;
  });
  return out;
}

}  // namespace pesc
