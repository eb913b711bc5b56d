#include "runtime/tokenizer/exact_tokenizer_json.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <utility>
#include <vector>

#include "ops/core/check.h"
#include "runtime/text/printable.h"
#include "runtime/text/utf8.h"
#include "runtime/tokenizer/bpe.h"
#include "runtime/tokenizer/json_tokenizer.h"
#include "runtime/tokenizer/sentencepiece_file.h"

namespace pesc {
namespace {

using nlohmann::json;

constexpr const char* kMark = "\xE2\x96\x81";  // U+2581

struct Model {
  std::vector<SentencePiece> pieces;
  std::unordered_map<std::string_view, int32_t> normal;  // of the pieces that text is made of
};

// Of a piece of "====" the first character; empty where it has others.
std::string_view run_of(std::string_view piece) {
  const size_t n = first_character(piece);
  for (size_t at = 0; at < piece.size(); at += n)
    if (piece.substr(at, n) != piece.substr(0, n)) return {};
  return piece.substr(0, n);
}

bool in_one_character(std::string_view text) {
  return first_character(text) == text.size();
}

// Why a piece cannot be merged by rank; empty where it can. `scores`: of the pieces before it, and what they are runs of.
std::string why_not(const SentencePiece& piece, const Model& model,
                    std::map<float, std::string_view>& scores) {
  const std::string_view text = piece.text;
  for (size_t at = 0; at < text.size();) {
    const size_t n = first_character(text.substr(at));
    if (n == 0 || !model.normal.contains(text.substr(at, n)))
      return str_cat("piece ", in_quotes(piece.text), " has a character that is no piece");
    at += n;
  }
  if (in_one_character(text)) return {};
  const auto [other, is_new] = scores.emplace(piece.score, run_of(text));
  if (is_new || (!other->second.empty() && other->second == run_of(text))) return {};
  return str_cat("piece ", in_quotes(piece.text), " has the score of another one");
}

// Why the model is none of the kind; empty where it is.
std::string why_not(const SentencePieceFacts& facts, const Model& model, const Tokenizer& tokenizer) {
  if (!facts.bpe) return "its pieces are not merged by rank (a Unigram, word or character model)";
  if (facts.maps_characters) return "it rewrites characters by a table";
  if (facts.drops_spaces) return "it drops spaces (remove_extra_whitespaces)";
  if (!facts.marks_spaces || facts.mark_ends_words || !facts.space_before)
    return "its spaces are marked otherwise than before each word and the text";
  if (!facts.byte_fallback) return "it has no pieces for the bytes of unknown characters (byte_fallback)";
  std::map<float, std::string_view> scores;
  int64_t bytes = 0;
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const SentencePiece& piece = model.pieces[i];
    if (tokenizer.is_control(static_cast<int32_t>(i))) continue;
    if (piece.type == PieceType::kUnused) return str_cat("piece ", in_quotes(piece.text), " is unused");
    if (piece.type == PieceType::kUserDefined) {
      return str_cat("piece ", in_quotes(piece.text),
                     " is found in every text before all others (user defined)");
    }
    bytes += piece.type == PieceType::kByte ? 1 : 0;
    if (piece.type != PieceType::kNormal) continue;
    if (const std::string why = why_not(piece, model, scores); !why.empty()) return why;
  }
  return bytes == 256 ? "" : str_cat("it has pieces for ", bytes, " of 256 bytes");
}

// Where a piece is cut into two that are pieces too: bytes of the first, in the order of their ranks.
std::vector<size_t> cuts_of(const Model& model, std::string_view piece) {
  std::vector<size_t> cuts;
  for (size_t at = first_character(piece); at < piece.size(); at += first_character(piece.substr(at)))
    if (model.normal.contains(piece.substr(0, at)) && model.normal.contains(piece.substr(at)))
      cuts.push_back(at);
  // Cuts n - k and k of a piece of n bytes overlap where its first and last k bytes are the same; then n - k is on the left.
  const size_t n = piece.size();
  std::ranges::sort(cuts, {}, [&](size_t cut) {
    const size_t k = std::min(cut, n - cut);
    const bool same = piece.substr(0, k) == piece.substr(n - k);
    return std::pair(k, same == (cut == k));
  });
  return cuts;
}

json merges_of(const Model& model) {
  std::map<float, std::vector<const SentencePiece*>, std::greater<>> by_score;
  for (const SentencePiece& piece : model.pieces)
    if (piece.type == PieceType::kNormal && !in_one_character(piece.text))
      by_score[piece.score].push_back(&piece);
  json merges = json::array();
  MergeCount count;
  for (const auto& [score, pieces] : by_score) {
    std::vector<std::pair<std::string, std::string>> pairs;
    for (const SentencePiece* piece : pieces)
      for (const size_t cut : cuts_of(model, piece->text)) {
        count.add(piece->text.size());
        pairs.emplace_back(piece->text.substr(0, cut), piece->text.substr(cut));
      }
    // Runs of one character of one score grow from the left, each as far as it can.
    const auto sizes = [](const auto& pair) { return std::pair(pair.first.size(), pair.second.size()); };
    if (pieces.size() > 1) std::ranges::stable_sort(pairs, std::greater{}, sizes);
    for (const auto& [left, right] : pairs) merges.push_back(json::array({left, right}));
  }
  return merges;
}

json added_token(int32_t id, const std::string& text) {
  return {{"id", id},        {"content", text},     {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

// "<s> A", as Llama's own file has it.
json post_processor(const Tokenizer& tokenizer) {
  if (tokenizer.bos_id() < 0) return nullptr;
  const std::string begin = tokenizer.piece(tokenizer.bos_id());
  const auto special = [&](int type) { return json{{"SpecialToken", {{"id", begin}, {"type_id", type}}}}; };
  const auto text = [](const char* id, int type) {
    return json{{"Sequence", {{"id", id}, {"type_id", type}}}};
  };
  return {
      {"type", "TemplateProcessing"},
      {"single", json::array({special(0), text("A", 0)})},
      {"pair", json::array({special(0), text("A", 0), special(1), text("B", 1)})},
      {"special_tokens",
       {{begin,
         {{"id", begin}, {"ids", json::array({tokenizer.bos_id()})}, {"tokens", json::array({begin})}}}}}};
}

json document_of(const Model& model, const Tokenizer& tokenizer) {
  json added = json::array(), vocab = json::object();
  std::string unknown;
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    const SentencePiece& piece = model.pieces[i];
    vocab[piece.text] = id;
    if (piece.type == PieceType::kUnknown) unknown = piece.text;
    // Not the unknown piece, which a text never names.
    if (tokenizer.is_control(id)) added.push_back(added_token(id, piece.text));
  }
  const json replace_spaces = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kMark}};
  const auto metaspace = [](const char* mark, const char* scheme) {
    return json{{"type", "Metaspace"}, {"replacement", mark}, {"prepend_scheme", scheme}, {"split", false}};
  };
  return {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", added},
      {"normalizer", replace_spaces},
      {"pre_tokenizer",
       {{"type", "Sequence"},
        {"pretokenizers", json::array({metaspace(" ", "first"), metaspace(kMark, "never")})}}},
      {"post_processor", post_processor(tokenizer)},
      {"decoder",
       {{"type", "Sequence"},
        {"decoders", json::array({{{"type", "Replace"}, {"pattern", {{"String", kMark}}}, {"content", " "}},
                                  {{"type", "ByteFallback"}},
                                  {{"type", "Fuse"}},
                                  {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}})}}},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", unknown},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", true},
        {"byte_fallback", true},
        {"ignore_merges", false},
        {"vocab", std::move(vocab)},
        {"merges", merges_of(model)}}}};
}

// Texts that are likely to show a difference, the same for every call.
class Texts {
 public:
  Texts(const Model& model, const Tokenizer& tokenizer) : model_(model) {
    for (size_t i = 0; i < model.pieces.size(); ++i) {
      const auto id = static_cast<int32_t>(i);
      if (tokenizer.is_control(id) || model.pieces[i].type == PieceType::kUnknown)
        controls_.push_back(model.pieces[i].text);
      if (!tokenizer.is_control(id) && model.pieces[i].type == PieceType::kNormal)
        normal_.push_back(static_cast<int32_t>(i));
    }
  }
  std::string next() {
    std::string text;
    for (uint64_t parts = 1 + below(24); parts > 0; --parts) {
      const uint64_t kind = below(100), again = kind < 20 ? 1 + below(20) : 1;
      const std::string part = part_of(kind);
      for (uint64_t i = 0; i < again; ++i) text += part;
    }
    return text;
  }

 private:
  std::string part_of(uint64_t kind) {
    if (kind % 20 < 12 && !normal_.empty()) return spaced(model_.pieces[normal_[below(normal_.size())]].text);
    if (kind % 20 < 15) return std::string(1 + below(3), ' ');
    if (kind % 20 < 17) return {static_cast<char>(' ' + below(95))};
    if (kind % 20 == 17) return utf8(0x80 + below(0xD000));
    if (kind % 20 == 18) return utf8(0xE000 + below(0x110000 - 0xE000));
    if (kind < 20 || controls_.empty()) return below(2) == 0 ? "\n" : "\t";
    return controls_[below(controls_.size())];
  }
  static std::string spaced(std::string text) {
    for (size_t at = 0; (at = text.find(kMark, at)) != std::string::npos;) text.replace(at, 3, " ");
    return text;
  }
  static std::string utf8(uint64_t c) {
    std::string out;
    const auto more = [&](int shift) { out += static_cast<char>(0x80 | (c >> shift & 0x3F)); };
    if (c < 0x800) {
      out += static_cast<char>(0xC0 | c >> 6);
    } else if (c < 0x10000) {
      out += static_cast<char>(0xE0 | c >> 12);
      more(6);
    } else {
      out += static_cast<char>(0xF0 | c >> 18);
      more(12);
      more(6);
    }
    more(0);
    return out;
  }
  // SplitMix64.
  uint64_t below(uint64_t n) {
    state_ += 0x9E3779B97F4A7C15ULL;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return (z ^ (z >> 31)) % n;
  }

  const Model& model_;
  std::vector<int32_t> normal_;
  std::vector<std::string> controls_;
  uint64_t state_ = 1;
};

// A text that the two cut otherwise, or decode otherwise; empty where there is none.
std::string difference_of(const Tokenizer& a, const Tokenizer& b, Texts texts) {
  constexpr int kTexts = 4000;
  EncodeOptions all;
  all.added_tokens = AddedTokens::kAll;
  for (int i = 0; i < kTexts; ++i) {
    std::string text = texts.next();
    const std::vector<int32_t> ids = a.encode_with_ranges(text, all).ids;
    if (a.encode(text) != b.encode(text) || ids != b.encode_with_ranges(text, all).ids ||
        a.decode_all(ids) != b.decode_all(ids))
      return text;
  }
  return {};
}

}  // namespace

std::string exact_tokenizer_json(std::string_view bytes, const Tokenizer& tokenizer,
                                 const std::string& path) {
  const auto refuse = [&](const std::string& why) {
    throw DataError(str_cat(path, ": there is no tokenizer.json that does the same: ", why));
  };
  Model model{sentencepiece_pieces(bytes), {}};
  for (size_t i = 0; i < model.pieces.size(); ++i)
    if (model.pieces[i].type == PieceType::kNormal)
      model.normal.emplace(model.pieces[i].text, static_cast<int32_t>(i));
  if (const std::string why = why_not(sentencepiece_facts(bytes), model, tokenizer); !why.empty())
    refuse(why);
  std::string text;
  try {
    text = document_of(model, tokenizer).dump() + "\n";
  } catch (const DataError& error) {
    refuse(error.what());
  }
  const auto name = [&](int32_t id) { return id >= 0 ? tokenizer.piece(id) : std::string(); };
  const auto other = parse_json_tokenizer(text, path, {}, name(tokenizer.bos_id()), name(tokenizer.eos_id()));
  const std::string differs = difference_of(tokenizer, *other, Texts(model, tokenizer));
  if (!differs.empty()) refuse(str_cat("the text ", in_quotes(differs), " would have other tokens"));
  return text;
}

}  // namespace pesc
