#include "ops/core/device.h"

#include <cstring>

namespace pesc {

Stream::Stream(Device device) : device_(device) {
  if (device.kind == DeviceKind::kCuda) queue_ = cuda::open(device.index);
}

void Stream::synchronize() {
  if (on_cuda()) cuda::synchronize(*queue_);
}

void copy_to_host(Stream& stream, const Tensor& from, void* to) {
  if (stream.on_cuda()) return cuda::copy_to_host(stream.queue(), from, to);
  const int64_t width = from.cols * dtype_bytes(from.dtype);
  if (width == 0) return;  // null pointers are no arguments of memcpy
  for (int64_t r = 0; r < from.rows; ++r)
    std::memcpy(static_cast<std::byte*>(to) + r * width, from.row_range(r, r + 1).data,
                static_cast<size_t>(width));
}

void copy_from_host(Stream& stream, const void* from, const Tensor& to) {
  if (stream.on_cuda()) return cuda::copy_from_host(stream.queue(), from, to);
  const int64_t width = to.cols * dtype_bytes(to.dtype);
  if (width == 0) return;
  for (int64_t r = 0; r < to.rows; ++r)
    std::memcpy(to.row_range(r, r + 1).data, static_cast<const std::byte*>(from) + r * width,
                static_cast<size_t>(width));
}

}  // namespace pesc
