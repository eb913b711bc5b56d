// Byte-pair encoding of one piece: its characters, or its bytes, are joined pair by pair, the pair of the
// lowest rank first and of equal ones the leftmost.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/piece_cache.h"
#include "runtime/tokenizer/token_hash.h"

namespace pesc {

// As the file has it. `names[id]` is empty where no piece has the id.
struct BpeParts {
  std::vector<std::string> names;
  size_t pieces = 0;  // names that are there
  std::vector<std::pair<std::string, std::string>> merges;
  std::string unk_token;
  bool has_unk_token = false;
  bool fuse_unk = false;
  bool byte_fallback = false;
  bool ignore_merges = false;
};

// Counts merges that are made of a vocabulary, rather than read. Pieces that are long runs of one character make
// millions.
class MergeCount {
 public:
  // One merge, of a piece of so many bytes. Throws DataError where they are more, or longer, than is supported.
  void add(size_t bytes);

 private:
  size_t count_ = 0;
  size_t bytes_ = 0;
};

class Bpe {
 public:
  // `byte_level`: the last pre-tokenizer writes bytes in the byte-level alphabet. Throws DataError for merges
  // of pieces that are not there.
  Bpe(BpeParts parts, bool byte_level);

  // Whether tokenize() takes a piece's bytes themselves instead of their characters of the byte-level
  // alphabet: with a byte-level vocabulary that has all 256.
  [[nodiscard]] bool takes_bytes() const { return takes_bytes_; }
  // Appends the ids of a piece, and to `lengths`, where it is given, of how many of its bytes each is made.
  // Throws DataError where the unknown token is needed and missing.
  void tokenize(std::string_view piece, std::vector<int32_t>& ids, std::vector<uint32_t>* lengths) const;

  [[nodiscard]] int32_t find(std::string_view name) const;
  [[nodiscard]] const std::string& name(int32_t id) const { return names_[static_cast<size_t>(id)]; }
  [[nodiscard]] int32_t end() const { return static_cast<int32_t>(names_.size()); }  // the highest id, plus 1
  [[nodiscard]] size_t pieces() const { return pieces_; }
  [[nodiscard]] int32_t unknown() const { return unknown_; }  // -1: there is none

 private:
  struct Symbol {
    int32_t id = -1;
    uint32_t length = 0;  // 0: joined to the one before
    int32_t before = -1;
    int32_t behind = -1;
  };
  struct Scratch;
  void read_names(bool byte_level);
  void read_merges(const std::vector<std::pair<std::string, std::string>>& merges);
  void first_symbols(std::string_view piece, std::vector<Symbol>& symbols) const;
  [[nodiscard]] int32_t unknown_or_throw() const;
  void join_few(std::string_view piece, std::vector<Symbol>& symbols) const;
  void join_many(std::vector<Symbol>& symbols, Scratch& space) const;

  std::vector<std::string> names_;
  std::vector<uint32_t> lengths_;  // of the text of each id, as tokenize() takes it
  size_t pieces_ = 0;
  NameTable table_;   // text to id, as tokenize() takes it
  NameTable others_;  // names that are not of the byte-level alphabet, which no text gives
  MergeTable merges_;
  std::vector<Merge> byte_merges_;  // with takes_bytes(): of the bytes a and b at 256 * a + b
  std::string unk_token_;
  int32_t unknown_ = -1;
  bool has_unk_token_ = false;
  bool fuse_unk_ = false;
  bool byte_fallback_ = false;
  bool ignore_merges_ = false;
  bool takes_bytes_ = false;
  int32_t byte_ids_[256];      // of the bytes themselves, with takes_bytes(); otherwise of ASCII characters
  int32_t fallback_ids_[256];  // of <0x00> to <0xFF>
  std::unique_ptr<PieceCache> cache_;
};

}  // namespace pesc
