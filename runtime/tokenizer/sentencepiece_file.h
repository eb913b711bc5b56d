// What is to be known of a tokenizer.model beyond the library's interface. The file is one protobuf message:
// pieces (field 1), then how it was trained (2) and how text is normalised (3).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace pesc {

// A file cut between two pieces is still a valid message, which the library loads with default rules: a wrong
// tokenizer without a word. So: every field whole, and all three parts there.
[[nodiscard]] bool is_whole_sentencepiece_file(std::string_view bytes);

struct SentencePieceFacts {
  bool maps_characters = false;  // text is rewritten by a table before it is cut into pieces
  bool whole_words = false;      // pieces are whole words
  bool bpe = false;              // pieces are merged by their scores; else another model
  bool byte_fallback = false;    // unknown characters become bytes
  bool space_before = true;      // a space is put before the text
  bool drops_spaces = true;      // of the begin and the end, and of several all but one
  bool marks_spaces = true;      // they become U+2581
  bool mark_ends_words = false;  // and stand behind a word
  std::string begin_piece = "<s>";
  std::string end_piece = "</s>";
  std::string padding_piece = "<pad>";
};
// Of a whole file.
[[nodiscard]] SentencePieceFacts sentencepiece_facts(std::string_view bytes);

// Named as in sentencepiece_model.proto.
enum class PieceType { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

struct SentencePiece {
  std::string text;
  float score = 0;
  PieceType type = PieceType::kNormal;
};
// Of a whole file, by id.
[[nodiscard]] std::vector<SentencePiece> sentencepiece_pieces(std::string_view bytes);

// The file with those pieces made control pieces that `is_special` picks by id, text and type: they then
// never come from a text, and give none.
[[nodiscard]] std::string with_control_pieces(
    std::string_view bytes, const std::function<bool(int32_t, std::string_view, PieceType)>& is_special);

}  // namespace pesc
