#include "ops/core/arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <utility>

namespace pesc {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

int64_t align_up(int64_t bytes) {
  return (bytes + Arena::kAlignment - 1) / Arena::kAlignment * Arena::kAlignment;
}

}  // namespace

Arena Arena::planning(std::string name) {
  Arena arena;
  arena.name_ = std::move(name);
  arena.planning_ = true;
  return arena;
}

Arena::Arena(std::string name, Device device, int64_t bytes)
    : name_(std::move(name)), device_(device), capacity_(align_up(bytes)) {
  if (capacity_ == 0) return;
  if (device.kind == DeviceKind::kCuda) {
    base_ = static_cast<std::byte*>(cuda::allocate(device.index, str_cat("arena '", name_, "'"), capacity_));
    return;
  }
  // On pages of 2 MiB from one such page on: with those of 4 KiB a small model's step spends a tenth of its
  // time on finding them, and what other ranks read of this memory goes page by page.
  const auto length = static_cast<size_t>(capacity_);
  const size_t room = capacity_ >= kHugePage ? static_cast<size_t>(kHugePage) : 0;
  void* memory = mmap(nullptr, length + room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    throw UsageError(
        str_cat("arena '", name_, "' needs ", capacity_ >> 20,
                " MiB of host memory, which this machine does not give; use more "
                "train.gradient_accumulation_steps, a smaller data.max_seq_length, or more ranks"));
  }
  base_ = static_cast<std::byte*>(memory);
  if (room == 0) return;
  const size_t before = (room - reinterpret_cast<uintptr_t>(memory) % room) % room;
  if (before > 0) munmap(memory, before);
  base_ += before;
  // The last page stays in small ones: no more is taken than was announced.
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t end = (length + page - 1) / page * page;
  if (before + end < length + room) munmap(base_ + end, length + room - before - end);
  madvise(base_, length, MADV_HUGEPAGE);  // advice: where it is not taken nothing is lost but time
}

Arena::Arena(Arena&& other) noexcept {
  *this = std::move(other);
}

Arena& Arena::operator=(Arena&& other) noexcept {
  std::swap(name_, other.name_);
  std::swap(device_, other.device_);
  std::swap(base_, other.base_);
  std::swap(capacity_, other.capacity_);
  std::swap(used_, other.used_);
  std::swap(peak_, other.peak_);
  std::swap(planning_, other.planning_);
  return *this;
}

Arena::~Arena() {
  if (base_ == nullptr) return;
  if (device_.kind == DeviceKind::kCuda) {
    cuda::release(device_.index, base_);
  } else {
    munmap(base_, static_cast<size_t>(capacity_));
  }
}

Tensor Arena::allocate(int64_t rows, int64_t cols, DType dtype) {
  PESC_CHECK(rows >= 0 && cols >= 0, "arena '", name_, "'");
  const int64_t bytes = align_up(rows * cols * dtype_bytes(dtype));
  PESC_CHECK(planning_ || used_ + bytes <= capacity_, "arena '", name_, "' of ", capacity_, " bytes holds ",
             used_, " and was asked for ", bytes, " more");
  Tensor t{planning_ ? nullptr : base_ + used_, dtype, rows, cols, cols};
  used_ += bytes;
  peak_ = std::max(peak_, used_);
  return t;
}

}  // namespace pesc
