// What the CUDA build gives the host code: devices, memory, copies and queues, without CUDA's headers. Built
// from runtime_cuda.cc where CUDA is there, else from runtime_no_cuda.cc, whose every call is a
// UsageError.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ops/core/tensor.h"

namespace pesc {

enum class DeviceKind { kCpu, kCuda };

// Which of a library's kernels a BF16 product on a GPU takes: the first that the library names, or the
// fastest of a few, timed at the first product of a shape and kept. Each choice is deterministic; the clock
// is not.
enum class KernelChoice { kFirst, kTimed };

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;    // CUDA device ordinal
  int threads = 1;  // CPU: threads that the operations of this rank may use
  KernelChoice products = KernelChoice::kFirst;
};

namespace cuda {

// Device memory of a queue besides its arenas: the products' workspace.
inline constexpr int64_t kQueueBytes = int64_t{32} << 20;
// Left free for what the driver and the libraries load after the arenas are there: their kernels.
inline constexpr int64_t kLibraryBytes = int64_t{256} << 20;

// A cudaStream_t and what belongs to it: ops/core/queue.h.
struct Queue;

// The oldest compute capability that pesc runs on (bf16 arithmetic).
inline constexpr int kMinimumMajor = 8;

// Whether this pesc was built with CUDA.
[[nodiscard]] bool built();

// GPUs that this process sees; 0 when there is no driver.
[[nodiscard]] int device_count();

struct DeviceInfo {
  std::string name;
  std::string id;            // of the board, the same in every process
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  int64_t total_bytes = 0, free_bytes = 0;
  std::string versions;  // "driver 13.0, runtime 13.0, cuBLASLt 130100", for records: results depend on them
};
// Throws UsageError, saying what to do, when there is no GPU, no GPU of that number, or one that is too old
// or for which this pesc has no kernels.
[[nodiscard]] DeviceInfo device_info(int index);

// The parts of these refusals that need no GPU. `kernels`: whether a kernel of this build can be loaded
// there.
enum class Kernels { kPresent, kMissing };
void check_capability(int index, const DeviceInfo& info);
void check_kernels(int index, const DeviceInfo& info, Kernels kernels);
// For a UsageError: "`what` needs 90.10 GiB of GPU 2 (NVIDIA H100), which has 79.00 GiB free of 79.60 GiB".
[[nodiscard]] std::string too_little_memory(int index, const DeviceInfo& info, const std::string& what,
                                            int64_t bytes);
// For an allocation that failed. Throws that, and what to do in general.
[[noreturn]] void refuse_memory(int index, const DeviceInfo& info, const std::string& what, int64_t bytes);

// A new queue on the device, refused as device_info does.
[[nodiscard]] std::shared_ptr<Queue> open(const Device& device);
void synchronize(Queue& queue);

// A queue for collectives, copies and small kernels, but no products, with kQueueBytes of its own, beside
// `queue`'s work; where both have work waiting, its own goes first.
[[nodiscard]] std::shared_ptr<Queue> open_beside(const Queue& queue);
// What is enqueued on `queue` from now on comes after what `other` holds so far.
void follow(Queue& queue, Queue& other);
// A point in the work of a queue; see StreamMark in ops/core/device.h.
struct Mark;
[[nodiscard]] std::shared_ptr<Mark> new_mark(const Queue& queue);
void set(Mark& mark, Queue& queue);
void hold(Queue& queue, const Mark& mark);

// Stamps a point in the queue's work. Intervals: the seconds between neighbouring stamps made so far; waits
// for the last, and forgets them all.
void stamp(Queue& queue);
[[nodiscard]] std::vector<double> stamp_intervals(Queue& queue);
// Ranges for profilers (NVTX), on the host's time line.
void push_range(const char* name);
void pop_range();

// Copies `from`, packed rows, to the host once the work enqueued so far is done, beside the work that
// follows. finish_host_copy waits for it alone. One copy at a time.
void start_host_copy(Queue& queue, const Tensor& from);
void finish_host_copy(Queue& queue, void* to);

// Asked now and then while the host waits for a queue with work that other ranks take part in; throws to end
// the wait. One watcher per queue.
class Watcher {
 public:
  virtual ~Watcher() = default;
  virtual void check(double seconds_waited) = 0;
};
void watch(Queue& queue, std::shared_ptr<Watcher> watcher);

// Zeroed device memory. UsageError with the figures when there is too little; `what` names it.
[[nodiscard]] void* allocate(int index, const std::string& what, int64_t bytes);
void release(int index, void* memory) noexcept;

// See copy_to_host and copy_from_host in ops/core/device.h. On the host the rows are packed.
void copy_to_host(Queue& queue, const Tensor& from, void* to);
void copy_from_host(Queue& queue, const void* from, const Tensor& to);

// Page-locked host memory. UsageError with the figure when there is too little; `what` names it.
[[nodiscard]] void* host_allocate(int index, const std::string& what, int64_t bytes);
void host_release(void* memory) noexcept;

// A stream of copies to the host beside a queue's work; see HostCopies in ops/core/device.h.
struct Copies;
[[nodiscard]] std::shared_ptr<Copies> open_copies(int index);
void follow(Copies& copies, Queue& queue);
void enqueue_copy(Copies& copies, const Tensor& from, void* to);
void end_copies(Copies& copies);
void hold(Queue& queue, Copies& copies);
void wait(Copies& copies);

// Enqueues a copy of `bytes` of host memory, which the caller may change as soon as the call returns.
void upload(Queue& queue, const void* from, void* to, int64_t bytes);

}  // namespace cuda
}  // namespace pesc
