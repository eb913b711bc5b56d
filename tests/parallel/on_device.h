// Host values as a tensor of the tests' device (tests/device.h). On the CPU the tensor is the vector's own
// memory, whose ends the address sanitizer watches; on a GPU it is a copy in memory of its own.
#pragma once

#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "ops/core/arena.h"

namespace pesc {

template <class T>
class OnDevice {
 public:
  // `host` is contiguous [rows, cols], and lives as long as this.
  OnDevice(Stream& stream, std::vector<T>& host, int64_t rows, int64_t cols)
      : view{host.data(), kType, rows, cols, cols}, stream_(stream), host_(host) {
    PESC_CHECK(static_cast<int64_t>(host.size()) == rows * cols, host.size(), " values for [", rows, ", ",
               cols, "]");
    if (!stream.on_cuda()) return;
    memory_ = std::make_unique<Arena>("test", stream.device(), std::max<int64_t>(view.bytes(), 1));
    view = memory_->allocate(rows, cols, kType);
    push();
  }
  Tensor view;

  // The tensor gets what the vector holds; both wait for the stream.
  void push() {
    if (memory_ != nullptr) copy_from_host(stream_, host_.data(), view);
  }
  // The vector gets what the tensor holds.
  void fetch() {
    if (memory_ != nullptr) copy_to_host(stream_, view, host_.data());
  }

 private:
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>);
  static constexpr DType kType = std::is_same_v<T, float> ? DType::kF32 : DType::kF64;
  Stream& stream_;
  std::vector<T>& host_;
  std::unique_ptr<Arena> memory_;
};

}  // namespace pesc
