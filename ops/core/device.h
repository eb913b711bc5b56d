// A device and the stream of work on it. On the CPU every operation is complete when its call returns; on a
// GPU it is ordered on the stream, and `synchronize` waits for it.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
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

// A copy to the host of what the work enqueued so far makes of `from`, contiguous, which nobody changes
// before finish_host_copy has waited for it; work enqueued in between runs beside it. One at a time.
void start_host_copy(Stream& stream, const Tensor& from);
void finish_host_copy(Stream& stream, const Tensor& from, void* to);

// Copies between host memory and the device's memory; both complete when they return (they wait for the
// stream).
void copy_to_host(Stream& stream, const Tensor& from, void* to);
void copy_from_host(Stream& stream, const void* from, const Tensor& to);

}  // namespace pesc
