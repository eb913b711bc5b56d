#include "runtime/tokenizer/piece_cache.h"

#include <sys/mman.h>

#include <array>
#include <cstring>
#include <new>

namespace pesc {
namespace {

// In a slot: the length of the piece, the number of ids, the piece, three bytes an id.
constexpr size_t kHead = 2;

}  // namespace

// Zero pages, which take no memory before they are written: a version of 0 and a length of 0.
PieceCache::PieceCache() {
  static_assert(sizeof(Slot) == 64 && std::atomic<uint64_t>::is_always_lock_free);
  void* pages = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  madvise(pages, kBytes, MADV_HUGEPAGE);
  slots_.reset(static_cast<Slot*>(pages));
}

void PieceCache::Free::operator()(Slot* slots) const {
  munmap(slots, kBytes);
}

bool PieceCache::find(std::string_view piece, uint64_t hash, std::vector<int32_t>& ids) const {
  constexpr size_t kRoom = kWords * 8;
  if (piece.empty() || piece.size() + kHead + 3 > kRoom) return false;
  for (size_t way = 0; way < 2; ++way) {
    const Slot& slot = slots_[(hash & (kSlots - 1)) ^ way];
    const uint64_t version = slot.version.load(std::memory_order_acquire);
    if (version % 2 != 0) continue;
    std::array<uint64_t, kWords> words;
    words[0] = slot.words[0].load(std::memory_order_acquire);
    const auto* bytes = reinterpret_cast<const unsigned char*>(words.data());
    const size_t used = kHead + size_t{bytes[0]} + size_t{3} * bytes[1];
    if (bytes[0] != piece.size() || used > kRoom) continue;
    for (size_t i = 1; i * 8 < used; ++i) words[i] = slot.words[i].load(std::memory_order_acquire);
    if (slot.version.load(std::memory_order_relaxed) != version) continue;
    if (std::memcmp(bytes + kHead, piece.data(), piece.size()) != 0) continue;
    const unsigned char* id = bytes + kHead + piece.size();
    for (unsigned n = bytes[1]; n > 0; --n, id += 3)
      ids.push_back(static_cast<int32_t>(id[0] | unsigned{id[1]} << 8 | unsigned{id[2]} << 16));
    return true;
  }
  return false;
}

void PieceCache::insert(std::string_view piece, uint64_t hash, std::span<const int32_t> ids) {
  constexpr size_t kRoom = kWords * 8;
  if (piece.empty() || kHead + piece.size() + 3 * ids.size() > kRoom) return;
  std::array<uint64_t, kWords> words{};
  std::array<unsigned char, kRoom> bytes{};
  bytes[0] = static_cast<unsigned char>(piece.size());
  bytes[1] = static_cast<unsigned char>(ids.size());
  std::memcpy(bytes.data() + kHead, piece.data(), piece.size());
  size_t to = kHead + piece.size();
  for (const int32_t id : ids) {
    for (const int shift : {0, 8, 16}) bytes[to++] = static_cast<unsigned char>(id >> shift);
  }
  std::memcpy(words.data(), bytes.data(), kRoom);
  const size_t first = hash & (kSlots - 1);
  Slot* slot = &slots_[first];
  // The second place where the first is taken; where both are, either one.
  if (slot->version.load(std::memory_order_relaxed) != 0) {
    Slot* other = &slots_[first ^ 1];
    if (other->version.load(std::memory_order_relaxed) == 0 || (hash >> 40 & 1) != 0) slot = other;
  }
  uint64_t version = slot->version.load(std::memory_order_relaxed);
  if (version % 2 != 0 ||
      !slot->version.compare_exchange_strong(version, version + 1, std::memory_order_acquire))
    return;  // another thread writes there
  for (size_t i = 0; i < kWords; ++i) slot->words[i].store(words[i], std::memory_order_release);
  slot->version.store(version + 2, std::memory_order_release);
}

}  // namespace pesc
