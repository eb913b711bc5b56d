#include "ops/core/device.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "ops/core/bf16.h"
#include "ops/core/check.h"

namespace pesc {
namespace {

constexpr std::align_val_t kHostAlignment{64};

// To packed rows, both in host memory.
void copy_rows(const Tensor& from, void* to) {
  const int64_t width = from.cols * dtype_bytes(from.dtype);
  if (width == 0) return;  // null pointers are no arguments of memcpy
  for (int64_t r = 0; r < from.rows; ++r)
    std::memcpy(static_cast<std::byte*>(to) + r * width, from.row_range(r, r + 1).data,
                static_cast<size_t>(width));
}

}  // namespace

Stream::Stream(Device device) : device_(device) {
  if (device.kind == DeviceKind::kCuda) cuda_stream_ = cuda::open(device);
}

void Stream::synchronize() {
  if (on_cuda()) cuda::synchronize(*cuda_stream_);
}

void Stream::open_comm_stream() {
  if (!on_cuda() || comm_stream_ != nullptr) return;
  comm_stream_ = std::make_shared<Stream>(*this);
  comm_stream_->clock_.reset();
  comm_stream_->cuda_stream_ = cuda::open_comm_stream(*cuda_stream_);
}

void Stream::wait_stream(Stream& other) {
  if (cuda_stream_ == other.cuda_stream_) return;
  const PhaseScope phase(*this, Phase::kCommunication);
  cuda::wait_stream(*cuda_stream_, *other.cuda_stream_);
}

void Event::record(Stream& stream) {
  if (!stream.on_cuda()) return;
  if (event_ == nullptr) event_ = cuda::new_event(stream.cuda_stream());
  cuda::record_event(*event_, stream.cuda_stream());
}

void Event::wait(Stream& stream) const {
  if (event_ == nullptr) return;
  const PhaseScope phase(stream, Phase::kCommunication);
  cuda::wait_event(stream.cuda_stream(), *event_);
}

void Stream::start_clock(Phase first) {
  clock_ = std::make_shared<PhaseClock>();
  enter(first);
}

void Stream::enter(Phase phase) {
  if (clock_ == nullptr) return;
  clock_->phases.push_back(phase);
  if (on_cuda()) return cuda::record_timing_event(*cuda_stream_);
  clock_->times.push_back(std::chrono::steady_clock::now());
}

Phase Stream::phase() const {
  return clock_ == nullptr ? Phase::kElementwise : clock_->phases.back();
}

std::array<double, kPhases> Stream::stop_clock() {
  enter(Phase::kElementwise);
  std::vector<double> seconds;
  if (on_cuda()) {
    seconds = cuda::timing_intervals(*cuda_stream_);
  } else {
    for (size_t i = 1; i < clock_->times.size(); ++i)
      seconds.push_back(std::chrono::duration<double>(clock_->times[i] - clock_->times[i - 1]).count());
  }
  std::array<double, kPhases> sums{};
  for (size_t i = 0; i < seconds.size(); ++i) sums[static_cast<size_t>(clock_->phases[i])] += seconds[i];
  clock_.reset();
  return sums;
}

const char* phase_name(Phase phase) {
  static constexpr std::array<const char*, kPhases> kNames{
      "norms and elementwise", "GEMM", "attention", "LoRA",
      "router + adapters",     "head", "optimizer", "exposed communication"};
  return kNames[static_cast<size_t>(phase)];
}

PhaseScope::PhaseScope(Stream& stream, Phase phase) : stream_(stream), before_(stream.phase()) {
  if (stream.on_cuda()) cuda::push_range(phase_name(phase));
  if (phase != before_) stream.enter(phase);
  entered_ = phase != before_;
}

PhaseScope::~PhaseScope() {
  try {
    if (entered_) stream_.enter(before_);
  } catch (const Error&) {  // an error of the device comes again at the next call
  }
  if (stream_.on_cuda()) cuda::pop_range();
}

void start_host_copy(Stream& stream, const Tensor& from) {
  if (stream.on_cuda()) cuda::start_host_copy(stream.cuda_stream(), from);
}

void finish_host_copy(Stream& stream, const Tensor& from, void* to) {
  if (stream.on_cuda()) return cuda::finish_host_copy(stream.cuda_stream(), to);
  copy_to_host(stream, from, to);
}

void* host_allocate(const Device& device, const std::string& what, int64_t bytes) {
  if (device.kind == DeviceKind::kCuda) return cuda::host_allocate(device.index, what, bytes);
  return ::operator new(static_cast<size_t>(bytes), kHostAlignment);
}

void host_release(const Device& device, void* memory) noexcept {
  if (device.kind == DeviceKind::kCuda) return cuda::host_release(memory);
  ::operator delete(memory, kHostAlignment);
}

void HostCopies::wait_stream(Stream& stream) {
  if (!stream.on_cuda()) return;
  if (copies_ == nullptr) copies_ = cuda::open_copies(stream.device().index);
  cuda::wait_stream(*copies_, stream.cuda_stream());
}

void HostCopies::copy(const Tensor& from, void* to) {
  if (copies_ != nullptr) return cuda::enqueue_copy(*copies_, from, to);
  copy_rows(from, to);
}

void HostCopies::end() {
  if (copies_ != nullptr) cuda::end_copies(*copies_);
}

void HostCopies::wait(Stream& stream) {
  if (copies_ != nullptr) cuda::wait_copies(stream.cuda_stream(), *copies_);
}

void HostCopies::synchronize() {
  if (copies_ != nullptr) cuda::synchronize(*copies_);
}

void copy_to_host(Stream& stream, const Tensor& from, void* to) {
  if (stream.on_cuda()) return cuda::copy_to_host(stream.cuda_stream(), from, to);
  copy_rows(from, to);
}

void copy_to_host(Stream& stream, const Tensor& from, std::vector<float>& to) {
  PESC_CHECK(from.dtype == DType::kF32 || from.dtype == DType::kBF16, dtype_name(from.dtype), " as float32");
  to.resize(static_cast<size_t>(from.size()));
  if (from.dtype == DType::kF32) return copy_to_host(stream, from, to.data());
  std::vector<uint16_t> narrow(to.size());
  copy_to_host(stream, from, narrow.data());
  std::transform(narrow.begin(), narrow.end(), to.begin(), bf16_to_f32);
}

void copy_from_host(Stream& stream, const void* from, const Tensor& to) {
  if (stream.on_cuda()) return cuda::copy_from_host(stream.cuda_stream(), from, to);
  const int64_t width = to.cols * dtype_bytes(to.dtype);
  if (width == 0) return;
  for (int64_t r = 0; r < to.rows; ++r)
    std::memcpy(to.row_range(r, r + 1).data, static_cast<const std::byte*>(from) + r * width,
                static_cast<size_t>(width));
}

}  // namespace pesc
