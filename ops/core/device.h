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

// What a step's time is told apart by.
enum class Phase { kElementwise, kGemm, kAttention, kLora, kAdapters, kHead, kOptimizer, kCommunication };
inline constexpr int kPhases = 8;
[[nodiscard]] const char* phase_name(Phase phase);

class Stream {
 public:
  // For a CUDA device throws UsageError where cuda::open does.
  explicit Stream(Device device);
  [[nodiscard]] const Device& device() const { return device_; }
  [[nodiscard]] int threads() const { return device_.threads; }
  [[nodiscard]] bool on_cuda() const { return queue_ != nullptr; }
  [[nodiscard]] cuda::Queue& queue() const { return *queue_; }  // on_cuda() only
  void synchronize();

  // A stream of its own for collectives, beside this one's work. On the CPU there is none: communication() is
  // this stream itself, as it is on a GPU before open_communication().
  void open_communication();
  [[nodiscard]] Stream& communication() { return communication_ != nullptr ? *communication_ : *this; }
  // What is enqueued here from now on comes after what `other` holds so far; the host does not wait. The time
  // that this stream then stands still is Phase::kCommunication. Nothing where both are the same.
  void follow(Stream& other);

  // Time per phase, for benchmarks: from start_clock to stop_clock, which waits for the work.
  void start_clock(Phase first);
  [[nodiscard]] std::array<double, kPhases> stop_clock();  // seconds
  [[nodiscard]] Phase phase() const;
  void enter(Phase phase);  // nothing without a clock

 private:
  struct PhaseClock {
    std::vector<Phase> phases;
    std::vector<std::chrono::steady_clock::time_point> times;  // CPU
  };
  Device device_;
  std::shared_ptr<cuda::Queue> queue_;
  std::shared_ptr<PhaseClock> clock_;
  std::shared_ptr<Stream> communication_;
};

// What is enqueued while it lives belongs to `phase`; inner scopes take theirs out. Also a range for
// profilers.
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

// A point in the work of one stream that other streams wait for. Can be set again and again: hold means the
// last time. On the CPU, and before it was set, hold is nothing.
class StreamMark {
 public:
  // After what `stream` holds so far.
  void set(Stream& stream);
  // What is enqueued on `stream` from now on comes after the point; as Stream::follow.
  void hold(Stream& stream) const;

 private:
  std::shared_ptr<cuda::Mark> mark_;
};

// A copy to the host of what the work enqueued so far makes of `from`, contiguous, which nobody changes
// before finish_host_copy has waited for it; work enqueued in between runs beside it. One at a time.
void start_host_copy(Stream& stream, const Tensor& from);
void finish_host_copy(Stream& stream, const Tensor& from, void* to);

// Host memory for copies from the device: page-locked for a GPU, so that they run beside the host's work;
// aligned to 64 bytes; not zeroed. Throws what the device or the host has to say when there is too little;
// `what` names it.
[[nodiscard]] void* host_allocate(const Device& device, const std::string& what, int64_t bytes);
void host_release(const Device& device, void* memory) noexcept;

// Copies of many tensors to memory of host_allocate, beside the work of a stream. In this order:
//
//   follow(stream)   the copies will hold what the work enqueued on `stream` so far makes of the tensors
//   copy(from, to)   enqueued and not waited for; on the CPU complete when it returns
//   end()            after the last copy
//   hold(stream)     what is enqueued on `stream` from now on, and only that, comes after the copies: it may
//                    change the tensors; the host does not wait
//   wait()           the host waits until the copies are in `to`
//
// copy, end and wait may be called by another thread than follow and hold. One round at a time.
class HostCopies {
 public:
  void follow(Stream& stream);
  void copy(const Tensor& from, void* to);
  void end();
  void hold(Stream& stream);
  void wait();

 private:
  std::shared_ptr<cuda::Copies> copies_;  // nothing on the CPU
};

// Waits for the work enqueued on `stream`, then for the copy: `to` is filled when it returns.
void copy_to_host(Stream& stream, const Tensor& from, void* to);
// The same of an F32 or BF16 tensor, as float32; resizes `to`.
void copy_to_host(Stream& stream, const Tensor& from, std::vector<float>& to);
// `from` may be changed as soon as it returns. The copy itself is ordered on `stream`, whose later work finds
// it in `to`; it may not be complete yet, so that another stream that reads `to` must follow this one.
void copy_from_host(Stream& stream, const void* from, const Tensor& to);

}  // namespace pesc
