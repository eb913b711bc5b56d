// Named arenas. Every byte of device memory that a run uses comes from one of them, so that the memory of a
// run is known before its first step.
//
// The same layout code runs twice: first over a planning arena, which only counts bytes, then over a real
// arena of that size. Allocation moves a pointer. A `Scope` frees, at its end, everything allocated since its
// start; scopes nest.
#pragma once

#include <cstdint>
#include <string>

#include "ops/core/device.h"
#include "ops/core/tensor.h"

namespace pesc {

class Arena {
 public:
  static constexpr int64_t kAlignment = 256;  // bytes

  // Counts bytes only; its tensors have no data.
  [[nodiscard]] static Arena planning(std::string name);
  // Owns `bytes` of zeroed memory on the device. Throws UsageError, with the figure, when there is too
  // little.
  Arena(std::string name, Device device, int64_t bytes);
  Arena(Arena&& other) noexcept;
  Arena& operator=(Arena&& other) noexcept;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

  // Returns a contiguous [rows, cols] tensor, aligned to kAlignment bytes; its contents are undefined. Throws
  // InternalError when a real arena is exhausted, because a run must not use more than was planned.
  [[nodiscard]] Tensor allocate(int64_t rows, int64_t cols, DType dtype = DType::kF32);

  [[nodiscard]] bool is_planning() const { return planning_; }
  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] int64_t capacity() const { return capacity_; }
  [[nodiscard]] int64_t used() const { return used_; }
  [[nodiscard]] int64_t peak() const { return peak_; }  // the largest `used` so far

  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), mark_(arena.used_) {}
    ~Scope() { arena_.used_ = mark_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    int64_t mark_;
  };

 private:
  Arena() = default;
  std::string name_;
  Device device_;
  std::byte* base_ = nullptr;
  int64_t capacity_ = 0;
  int64_t used_ = 0;
  int64_t peak_ = 0;
  bool planning_ = false;
};

}  // namespace pesc
