// A device and the stream of work on it. On the CPU every operation is complete when its call returns; on a
// GPU it is ordered on the stream, and `synchronize` waits for it.
#pragma once

#include <cstdint>
#include <memory>

#include "ops/core/cuda.h"
#include "ops/core/tensor.h"

namespace pesc {

class Stream {
 public:
  // For a CUDA device throws UsageError where cuda::open does.
  explicit Stream(Device device);
  [[nodiscard]] const Device& device() const { return device_; }
  [[nodiscard]] int threads() const { return device_.threads; }
  [[nodiscard]] bool on_cuda() const { return queue_ != nullptr; }
  [[nodiscard]] cuda::Queue& queue() const { return *queue_; }  // on_cuda() only
  void synchronize();

 private:
  Device device_;
  std::shared_ptr<cuda::Queue> queue_;
};

// Copies between host memory and the device's memory; both complete when they return (they wait for the
// stream).
void copy_to_host(Stream& stream, const Tensor& from, void* to);
void copy_from_host(Stream& stream, const void* from, const Tensor& to);

}  // namespace pesc
