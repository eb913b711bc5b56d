// A device and the stream of work on it. On the CPU every operation is complete when its call returns; on a
// GPU it is ordered on the stream, and `synchronize` waits for it.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ops/core/cuda.h"
#include "ops/core/tensor.h"

namespace pesc {

// The phases into which benchmarks and plans split the time of a step.
enum class Phase { kElementwise, kGemm, kAttention, kLora, kAdapters, kHead, kOptimizer, kCommunication };
inline constexpr int kPhases = 8;
[[nodiscard]] const char* phase_name(Phase phase);

class Stream {
 public:
  // For a CUDA device throws UsageError where cuda::open does.
  explicit Stream(Device device);
  [[nodiscard]] const Device& device() const { return device_; }
  [[nodiscard]] int threads() const { return device_.threads; }
  [[nodiscard]] bool on_cuda() const { return cuda_stream_ != nullptr; }
  [[nodiscard]] cuda::CudaStream& cuda_stream() const { return *cuda_stream_; }  // on_cuda() only
  void synchronize();

  // Opens a second stream on which collectives run concurrently with this one's kernels. On the CPU this does
  // nothing. comm_stream() returns this stream itself on the CPU, and on a GPU before open_comm_stream().
  void open_comm_stream();
  [[nodiscard]] Stream& comm_stream() { return comm_stream_ != nullptr ? *comm_stream_ : *this; }
  // Makes this stream wait for all work enqueued on `other` so far (cudaStreamWaitEvent). The host does not
  // block. The time that this stream then idles counts as Phase::kCommunication. Does nothing where both are
  // the same stream.
  void wait_stream(Stream& other);

  // Time per phase, for benchmarks, from start_clock to stop_clock. stop_clock waits for the enqueued work.
  void start_clock(Phase first);
  [[nodiscard]] std::array<double, kPhases> stop_clock();  // seconds
  [[nodiscard]] Phase phase() const;
  void enter(Phase phase);  // does nothing between stop_clock and start_clock

 private:
  struct PhaseClock {
    std::vector<Phase> phases;
    std::vector<std::chrono::steady_clock::time_point> times;  // CPU
  };
  Device device_;
  std::shared_ptr<cuda::CudaStream> cuda_stream_;
  std::shared_ptr<PhaseClock> clock_;
  std::shared_ptr<Stream> comm_stream_;
};

// Work enqueued while the scope lives counts as `phase`; an inner scope's work counts as the inner phase.
// Also an NVTX range for profilers.
class PhaseScope {
 public:
  PhaseScope(Stream& stream, Phase phase);
  ~PhaseScope();
  PhaseScope(const PhaseScope&) = delete;
  PhaseScope& operator=(const PhaseScope&) = delete;

 private:
  Stream& stream_;
  Phase before_;
  bool entered_ = false;
};

// A point in the work of one stream that other streams can wait for (cudaEvent). It may be recorded again; a
// wait is for the latest recording. On the CPU, and before the first recording, waiting does nothing.
class Event {
 public:
  // Records the point after all work enqueued on `stream` so far.
  void record(Stream& stream);
  // Makes `stream` wait for the recorded point. The host does not block; the idle time counts as in
  // Stream::wait_stream.
  void wait(Stream& stream) const;

 private:
  std::shared_ptr<cuda::Event> event_;
};

// start_host_copy enqueues a copy of `from` to pinned host memory, after the work enqueued on `stream` so far
// and concurrent with later work. finish_host_copy waits for that copy alone and writes it to `to`. REQUIRES:
// `from` is contiguous and is not written between the two calls; one copy at a time on a stream.
void start_host_copy(Stream& stream, const Tensor& from);
void finish_host_copy(Stream& stream, const Tensor& from, void* to);

// Host memory for copies from the device, aligned to 64 bytes and not zeroed. For a GPU it is page-locked, so
// that copies run asynchronously. Throws UsageError (GPU) or std::bad_alloc (CPU) when the host has too
// little memory; `what` names the buffer in the message.
[[nodiscard]] void* host_allocate(const Device& device, const std::string& what, int64_t bytes);
void host_release(const Device& device, void* memory) noexcept;

// Asynchronous copies of many tensors to memory of host_allocate, on a CUDA stream of their own. Call in this
// order:
//
//   wait_stream(stream)   the copies wait for the work enqueued on `stream` so far
//   copy(from, to)        enqueues one copy; on the CPU it is complete when it returns
//   end()                 marks the end of the round, after the last copy
//   wait(stream)          work enqueued on `stream` from now on waits for the copies, so that it may
//                         overwrite the tensors; the host does not block
//   synchronize()         blocks the host until the copies are in `to`
//
// copy, end and synchronize may be called by another thread than wait_stream and wait. One round at a time.
class HostCopies {
 public:
  void wait_stream(Stream& stream);
  void copy(const Tensor& from, void* to);
  void end();
  void wait(Stream& stream);
  void synchronize();

 private:
  std::shared_ptr<cuda::Copies> copies_;  // null on the CPU
};

// Waits for the work enqueued on `stream`, copies, and returns when `to` is filled. The rows of `to` are
// packed.
void copy_to_host(Stream& stream, const Tensor& from, void* to);
// The same for an F32 or BF16 tensor, converted to float32; `to` is resized.
void copy_to_host(Stream& stream, const Tensor& from, std::vector<float>& to);
// `from` (packed rows) may be overwritten as soon as the call returns. The copy is ordered on `stream` and
// may not be complete yet: another stream that reads `to` must first wait for `stream`.
void copy_from_host(Stream& stream, const void* from, const Tensor& to);

}  // namespace pesc
