// Named arenas: every byte of device memory that a run uses comes from one of them, so that a run can say
// before its first step what it needs.
//
// The same layout code runs twice: over a *planning* arena, which only counts, and over a real one of that
// many bytes. Allocation is a bump pointer; `Scope` gives back what was allocated since it began, in stack
// order.
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
  // Owns `bytes` of zeroed memory on the device. Throws UsageError (with the figure) when the memory is not
  // to be had.
  Arena(std::string name, Device device, int64_t bytes);
  Arena(Arena&& other) noexcept;
  Arena& operator=(Arena&& other) noexcept;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

  // A contiguous [rows, cols] tensor, aligned to kAlignment. A real arena that is too small throws
  // InternalError: what was planned is what is used.
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
