#include "runtime/tokenizer/bpe.h"

#include <algorithm>
#include <queue>

#include "ops/core/check.h"
#include "runtime/text/printable.h"
#include "runtime/tokenizer/aligned_text.h"

namespace pesc {
namespace {

constexpr size_t kFew = 40;  // symbols: up to here the lowest rank is looked for among all

std::string byte_name(int byte) {
  return {'<', '0', 'x', "0123456789ABCDEF"[byte >> 4], "0123456789ABCDEF"[byte & 15], '>'};
}

}  // namespace

void MergeCount::add(size_t bytes) {
  constexpr size_t kMost = size_t{1} << 21;
  constexpr size_t kMostBytes = size_t{256} << 20;
  bytes_ += bytes;
  if (++count_ > kMost || bytes_ > kMostBytes)
    throw DataError(str_cat("the vocabulary's pieces can be put together in more than ", count_ - 1,
                            " ways (", bytes_, " bytes); at most ", kMost, " of ", kMostBytes,
                            " bytes are supported; take the file from where the model came from"));
}

struct Bpe::Scratch {
  struct Candidate {
    uint32_t rank;
    int32_t position;
    int32_t id;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;
  std::vector<int32_t> ids;
};

Bpe::Bpe(BpeParts parts, bool byte_level)
    : names_(std::move(parts.names)),
      pieces_(parts.pieces),
      unk_token_(std::move(parts.unk_token)),
      has_unk_token_(parts.has_unk_token),
      fuse_unk_(parts.fuse_unk),
      byte_fallback_(parts.byte_fallback),
      ignore_merges_(parts.ignore_merges),
      cache_(std::make_unique<PieceCache>()) {
  read_names(byte_level);
  read_merges(parts.merges);
  unknown_ = has_unk_token_ ? find(unk_token_) : -1;
}

void Bpe::read_names(bool byte_level) {
  std::string bytes;
  takes_bytes_ = byte_level;
  if (byte_level) {
    std::vector<bool> there(256, false);
    for (const std::string& name : names_) {
      if (name.size() <= 2 && from_byte_level(name, bytes) && bytes.size() == 1)
        there[static_cast<unsigned char>(bytes[0])] = true;
    }
    takes_bytes_ = std::ranges::all_of(there, [](bool b) { return b; });
  }
  table_.reserve(pieces_);
  lengths_.resize(names_.size());
  for (size_t i = 0; i < names_.size(); ++i) {
    if (names_[i].empty()) continue;
    const auto id = static_cast<int32_t>(i);
    const bool text = takes_bytes_ && from_byte_level(names_[i], bytes);
    const std::string& key = text ? bytes : names_[i];
    lengths_[i] = static_cast<uint32_t>(key.size());
    if (!(takes_bytes_ && !text ? others_ : table_).insert(key, id))
      throw DataError(str_cat("the piece '", printable(names_[i]), "' comes twice"));
  }
  for (int b = 0; b < 256; ++b) {
    const char byte = static_cast<char>(b);
    byte_ids_[b] = b < 128 || takes_bytes_ ? table_.find(std::string_view(&byte, 1)) : -1;
    fallback_ids_[b] = byte_fallback_ ? find(byte_name(b)) : -1;
    if (!takes_bytes_ && fallback_ids_[b] >= 0) lengths_[static_cast<size_t>(fallback_ids_[b])] = 1;
  }
}

void Bpe::read_merges(const std::vector<std::pair<std::string, std::string>>& merges) {
  merges_.reserve(merges.size());
  const auto missing = [&](size_t i, const std::string& name) {
    throw DataError(str_cat("merge ", i + 1, " ('", printable(merges[i].first), "' and '",
                            printable(merges[i].second), "') needs the piece '", printable(name),
                            "', which the vocabulary does not have"));
  };
  std::string both;
  for (size_t i = 0; i < merges.size(); ++i) {
    const auto& [left, right] = merges[i];
    both.assign(left).append(right);
    const int32_t a = find(left);
    const int32_t b = find(right);
    const int32_t joined = find(both);
    if (a < 0) missing(i, left);
    if (b < 0) missing(i, right);
    if (joined < 0) missing(i, both);
    merges_.insert(a, b, {static_cast<uint32_t>(i), joined});
  }
  if (!takes_bytes_) return;
  byte_merges_.resize(size_t{256} * 256);
  for (size_t a = 0; a < 256; ++a) {
    for (size_t b = 0; b < 256; ++b) byte_merges_[a * 256 + b] = merges_.find(byte_ids_[a], byte_ids_[b]);
  }
}

int32_t Bpe::find(std::string_view name) const {
  if (!takes_bytes_) return table_.find(name);
  thread_local std::string bytes;
  return from_byte_level(name, bytes) ? table_.find(bytes) : others_.find(name);
}

int32_t Bpe::unknown_or_throw() const {
  if (unknown_ < 0)
    throw DataError(str_cat("the tokenizer's unknown token '", printable(unk_token_),
                            "' is needed for a text and is not in its vocabulary"));
  return unknown_;
}

void Bpe::first_symbols(std::string_view piece, std::vector<Symbol>& symbols) const {
  symbols.clear();
  const auto add = [&](int32_t id, uint32_t length) { symbols.push_back({id, length, -1, -1}); };
  if (takes_bytes_) {
    for (const char byte : piece) add(byte_ids_[static_cast<unsigned char>(byte)], 1);
  } else {
    bool pending = false;  // unknown characters that are not yet a symbol
    uint32_t pending_length = 0;
    for (size_t at = 0; at < piece.size();) {
      const size_t begin = at;
      (void)unicode::next_char(piece, at);
      const std::string_view character = piece.substr(begin, at - begin);
      const auto length = static_cast<uint32_t>(character.size());
      const auto first = static_cast<unsigned char>(character[0]);
      const int32_t id = first < 128 ? byte_ids_[first] : table_.find(character);
      if (id >= 0) {
        if (pending) add(unknown_, pending_length);
        pending = false;
        add(id, length);
        continue;
      }
      // The library writes fallback bytes before unknown characters that came before them; so it is here.
      if (byte_fallback_ && std::ranges::all_of(character, [&](char byte) {
            return fallback_ids_[static_cast<unsigned char>(byte)] >= 0;
          })) {
        for (const char byte : character) add(fallback_ids_[static_cast<unsigned char>(byte)], 1);
        continue;
      }
      if (!has_unk_token_) continue;  // the character vanishes
      (void)unknown_or_throw();
      if (pending && fuse_unk_) {
        pending_length += length;
        continue;
      }
      if (pending) add(unknown_, pending_length);
      pending = true;
      pending_length = length;
    }
    if (pending) add(unknown_, pending_length);
  }
  const auto count = static_cast<int32_t>(symbols.size());
  for (int32_t i = 0; i < count; ++i) {
    symbols[static_cast<size_t>(i)].before = i - 1;
    symbols[static_cast<size_t>(i)].behind = i + 1 < count ? i + 1 : -1;
  }
}

// Joins in place: symbols behind the joined pair move up.
void Bpe::join_few(std::string_view piece, std::vector<Symbol>& symbols) const {
  Merge merges[kFew];
  size_t count = symbols.size();
  for (size_t i = 0; i + 1 < count; ++i) {
    merges[i] = takes_bytes_ ? byte_merges_[static_cast<unsigned char>(piece[i]) * size_t{256} +
                                            static_cast<unsigned char>(piece[i + 1])]
                             : merges_.find(symbols[i].id, symbols[i + 1].id);
  }
  while (count > 1) {
    size_t best = count;
    uint32_t rank = UINT32_MAX;
    for (size_t i = 0; i + 1 < count; ++i) {
      if (merges[i].id >= 0 && merges[i].rank < rank) {
        rank = merges[i].rank;
        best = i;
      }
    }
    if (best == count) break;
    symbols[best].id = merges[best].id;
    symbols[best].length += symbols[best + 1].length;
    for (size_t i = best + 1; i + 1 < count; ++i) {
      symbols[i] = symbols[i + 1];
      merges[i] = merges[i + 1];
    }
    --count;
    if (best > 0) merges[best - 1] = merges_.find(symbols[best - 1].id, symbols[best].id);
    if (best + 1 < count) merges[best] = merges_.find(symbols[best].id, symbols[best + 1].id);
  }
  symbols.resize(count);
}

void Bpe::join_many(std::vector<Symbol>& symbols, Scratch& space) const {
  auto& heap = space.heap;
  heap.clear();
  const auto propose = [&](int32_t position) {
    const Symbol& left = symbols[static_cast<size_t>(position)];
    const Merge merge = merges_.find(left.id, symbols[static_cast<size_t>(left.behind)].id);
    if (merge.id >= 0) heap.push_back({merge.rank, position, merge.id});
    return merge.id >= 0;
  };
  for (size_t i = 0; i + 1 < symbols.size(); ++i) propose(static_cast<int32_t>(i));
  std::ranges::make_heap(heap, std::greater<>());
  while (!heap.empty()) {
    std::ranges::pop_heap(heap, std::greater<>());
    const auto top = heap.back();
    heap.pop_back();
    Symbol& left = symbols[static_cast<size_t>(top.position)];
    if (left.length == 0 || left.behind < 0) continue;
    Symbol& right = symbols[static_cast<size_t>(left.behind)];
    // The two may have been joined to others since.
    const Merge now = merges_.find(left.id, right.id);
    if (now.id < 0 || now.id != top.id) continue;
    left.id = top.id;
    left.length += right.length;
    left.behind = right.behind;
    right.length = 0;
    if (left.behind >= 0) symbols[static_cast<size_t>(left.behind)].before = top.position;
    if (left.before >= 0 && propose(left.before)) std::ranges::push_heap(heap, std::greater<>());
    if (left.behind >= 0 && propose(top.position)) std::ranges::push_heap(heap, std::greater<>());
  }
  std::erase_if(symbols, [](const Symbol& s) { return s.length == 0; });
}

void Bpe::tokenize(std::string_view piece, std::vector<int32_t>& ids, std::vector<uint32_t>* lengths) const {
  if (piece.empty()) return;
  const size_t before = ids.size();
  const uint64_t hash = hash_of(piece);
  const auto lengths_of_ids = [&] {
    if (lengths == nullptr) return;
    for (size_t i = before; i < ids.size(); ++i) lengths->push_back(lengths_[static_cast<size_t>(ids[i])]);
  };
  if (cache_->find(piece, hash, ids)) return lengths_of_ids();
  if (ignore_merges_) {
    if (const int32_t whole = table_.find(piece); whole >= 0) {
      ids.push_back(whole);
      if (lengths_[static_cast<size_t>(whole)] == piece.size()) {
        cache_->insert(piece, hash, std::span(&whole, 1));
        return lengths_of_ids();
      }
      if (lengths != nullptr) lengths->push_back(static_cast<uint32_t>(piece.size()));
      return;
    }
  }
  thread_local Scratch space;
  first_symbols(piece, space.symbols);
  if (space.symbols.size() <= kFew) {
    join_few(piece, space.symbols);
  } else {
    join_many(space.symbols, space);
  }
  bool usual = true;  // each id has the length that it always has
  size_t covered = 0;
  for (const Symbol& s : space.symbols) {
    ids.push_back(s.id);
    if (lengths != nullptr) lengths->push_back(s.length);
    usual &= s.length == lengths_[static_cast<size_t>(s.id)];
    covered += s.length;
  }
  if (usual && covered == piece.size()) cache_->insert(piece, hash, std::span(ids).subspan(before));
  constexpr size_t kKept = size_t{1} << 16;
  if (space.symbols.capacity() > kKept) space = {};
}

}  // namespace pesc
