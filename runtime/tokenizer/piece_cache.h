// The ids of pieces that were tokenised before: a table of a fixed size, shared by all threads without locks.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

namespace pesc {

// A slot is one cache line and holds one short piece. A piece has two slots that it may stand in; a new one
// takes the place of another. A reader that meets a writer takes the piece for unknown.
class PieceCache {
 public:
  static constexpr size_t kBytes = size_t{32} << 20;
  PieceCache();
  // Appends the ids of the piece; false where it is not there.
  [[nodiscard]] bool find(std::string_view piece, uint64_t hash, std::vector<int32_t>& ids) const;
  // Ids below 2^24.
  void insert(std::string_view piece, uint64_t hash, std::span<const int32_t> ids);

 private:
  static constexpr size_t kWords = 7;
  struct alignas(64) Slot {
    std::atomic<uint64_t> version{0};  // odd while it is written
    std::atomic<uint64_t> words[kWords];
  };
  static constexpr size_t kSlots = kBytes / sizeof(Slot);
  struct Free {
    void operator()(Slot* slots) const;
  };
  std::unique_ptr<Slot[], Free> slots_;
};

}  // namespace pesc
