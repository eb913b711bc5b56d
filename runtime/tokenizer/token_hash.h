// Hash tables of a model: names to ids, and pairs of ids to what they merge into. Filled once, then only
// read.
#pragma once

#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace pesc {

[[nodiscard]] inline uint64_t hash_of(std::string_view text) {
  return XXH3_64bits(text.data(), text.size());
}

class NameTable {
 public:
  void reserve(size_t names) {
    size_t slots = 16;
    while (slots < names * 2) slots *= 2;
    if (slots > slots_.size()) rehash(slots);
  }
  // False where the name is there already.
  bool insert(std::string_view name, int32_t id) {
    if ((count_ + 1) * 2 > slots_.size()) rehash(slots_.empty() ? 16 : slots_.size() * 2);
    size_t at = hash_of(name) & (slots_.size() - 1);
    for (; slots_[at].id >= 0; at = (at + 1) & (slots_.size() - 1)) {
      if (name_of(slots_[at]) == name) return false;
    }
    slots_[at] = {static_cast<uint32_t>(bytes_.size()), static_cast<uint32_t>(name.size()), id,
                  static_cast<uint32_t>(hash_of(name) >> 32)};
    bytes_ += name;
    ++count_;
    return true;
  }
  // -1: there is none.
  [[nodiscard]] int32_t find(std::string_view name) const {
    if (slots_.empty()) return -1;
    const uint64_t hash = hash_of(name);
    for (size_t at = hash & (slots_.size() - 1); slots_[at].id >= 0; at = (at + 1) & (slots_.size() - 1)) {
      if (slots_[at].mark == static_cast<uint32_t>(hash >> 32) && name_of(slots_[at]) == name)
        return slots_[at].id;
    }
    return -1;
  }
  [[nodiscard]] size_t size() const { return count_; }

 private:
  struct Slot {
    uint32_t begin = 0;
    uint32_t size = 0;
    int32_t id = -1;  // -1: free
    uint32_t mark = 0;
  };
  [[nodiscard]] std::string_view name_of(const Slot& slot) const {
    return std::string_view(bytes_).substr(slot.begin, slot.size);
  }
  void rehash(size_t slots) {
    std::vector<Slot> old(slots);
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.id < 0) continue;
      size_t at = hash_of(name_of(slot)) & (slots - 1);
      while (slots_[at].id >= 0) at = (at + 1) & (slots - 1);
      slots_[at] = slot;
    }
  }
  std::string bytes_;
  std::vector<Slot> slots_;
  size_t count_ = 0;
};

struct Merge {
  uint32_t rank = 0;
  int32_t id = -1;  // -1: the two do not merge
};

class MergeTable {
 public:
  void reserve(size_t pairs) {
    size_t slots = 16;
    while (slots < pairs * 2) slots *= 2;
    slots_.assign(slots, {});
    shift_ = 64;
    for (; slots > 1; slots /= 2) --shift_;
  }
  // No more than were reserved. The last of equal pairs counts.
  void insert(int32_t left, int32_t right, Merge merge) {
    const uint64_t key = key_of(left, right);
    size_t at = place_of(key);
    while (slots_[at].merge.id >= 0 && slots_[at].key != key) at = (at + 1) & (slots_.size() - 1);
    slots_[at] = {key, merge};
  }
  [[nodiscard]] Merge find(int32_t left, int32_t right) const {
    const uint64_t key = key_of(left, right);
    for (size_t at = place_of(key);; at = (at + 1) & (slots_.size() - 1)) {
      if (slots_[at].key == key || slots_[at].merge.id < 0) return slots_[at].merge;
    }
  }

 private:
  struct Slot {
    uint64_t key = ~uint64_t{0};
    Merge merge;
  };
  static uint64_t key_of(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  [[nodiscard]] size_t place_of(uint64_t key) const {
    key ^= key >> 32;
    return (key * 0x9E3779B97F4A7C15U) >> shift_;
  }
  std::vector<Slot> slots_{16};
  unsigned shift_ = 60;
};

}  // namespace pesc
