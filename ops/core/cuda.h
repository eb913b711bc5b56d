// The CUDA runtime as host code sees it: devices, memory, copies and streams, without CUDA's headers.
// Implemented by runtime_cuda.cc, or in a build without CUDA by runtime_no_cuda.cc, where every call throws
// UsageError.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ops/core/tensor.h"

namespace pesc {

enum class DeviceKind { kCpu, kCuda };

// Which of cuBLASLt's kernels a BF16 GEMM on a GPU takes: the first of its heuristic, or the fastest of a
// few, which are timed at the first GEMM of a shape and kept. Every kernel is deterministic; which one is
// fastest may differ from run to run.
enum class KernelChoice { kFirst, kAutotuned };

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;    // CUDA device ordinal
  int threads = 1;  // CPU: threads that the operations of this rank may use
  KernelChoice kernel_choice = KernelChoice::kFirst;
};

namespace cuda {

// Device memory of a stream besides its arenas: the workspace of cuBLASLt.
inline constexpr int64_t kCudaStreamBytes = int64_t{32} << 20;
// Left free for the kernels that the driver and the libraries load after the arenas are allocated.
inline constexpr int64_t kLibraryBytes = int64_t{256} << 20;

// A cudaStream_t and what belongs to it: ops/core/stream_cuda.h.
struct CudaStream;

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
// Throws UsageError, saying what to do, when there is no GPU, no GPU of that index, one older than
// kMinimumMajor, or one for which this build has no kernels.
[[nodiscard]] DeviceInfo device_info(int index);

// Bytes of the GPU's memory that all processes together have taken.
[[nodiscard]] int64_t memory_in_use(int index);

// The checks of device_info that need no GPU, for tests. `kernels`: whether that GPU can load a kernel of
// this build. They throw UsageError.
enum class Kernels { kPresent, kMissing };
void check_capability(int index, const DeviceInfo& info);
void check_kernels(int index, const DeviceInfo& info, Kernels kernels);
// For a UsageError: "`what` needs 90.10 GiB of GPU 2 (NVIDIA H100), which has 79.00 GiB free of 79.60 GiB".
[[nodiscard]] std::string too_little_memory(int index, const DeviceInfo& info, const std::string& what,
                                            int64_t bytes);
// Throws UsageError with the text of too_little_memory and what to do about it.
[[noreturn]] void refuse_memory(int index, const DeviceInfo& info, const std::string& what, int64_t bytes);

// Opens a stream on the device. Throws as device_info does.
[[nodiscard]] std::shared_ptr<CudaStream> open(const Device& device);
void synchronize(CudaStream& cuda_stream);

// Opens a stream on the device of `stream` for collectives, copies and small kernels, with a workspace of
// kCudaStreamBytes but without cuBLASLt. It has the higher priority: where both have work waiting, its work
// starts first.
[[nodiscard]] std::shared_ptr<CudaStream> open_comm_stream(const CudaStream& cuda_stream);
// Makes `stream` wait for all work enqueued on `other` so far. The host does not block.
void wait_stream(CudaStream& cuda_stream, CudaStream& other);
// See Event in ops/core/device.h.
struct Event;
[[nodiscard]] std::shared_ptr<Event> new_event(const CudaStream& cuda_stream);
void record_event(Event& event, CudaStream& cuda_stream);
void wait_event(CudaStream& cuda_stream, const Event& event);

// The first records a timed event on the stream. The second waits for the last such event, returns the
// seconds between each two successive ones, and forgets them all.
void record_timing_event(CudaStream& cuda_stream);
[[nodiscard]] std::vector<double> timing_intervals(CudaStream& cuda_stream);
// NVTX ranges for profilers, on the host's time line.
void push_range(const char* name);
void pop_range();

// See ops/core/device.h.
void start_host_copy(CudaStream& cuda_stream, const Tensor& from);
void finish_host_copy(CudaStream& cuda_stream, void* to);

// While the host waits for a stream, check() is called about ten times a second; it throws to end a wait for
// a collective that has failed or takes too long. One watcher per stream.
class Watcher {
 public:
  virtual ~Watcher() = default;
  virtual void check(double seconds_waited) = 0;
};
void watch(CudaStream& cuda_stream, std::shared_ptr<Watcher> watcher);

// Zeroed device memory. Throws UsageError with the figures when the device has too little free memory; `what`
// names the buffer in the message.
[[nodiscard]] void* allocate(int index, const std::string& what, int64_t bytes);
void release(int index, void* memory) noexcept;

// See copy_to_host and copy_from_host in ops/core/device.h. On the host the rows are packed.
void copy_to_host(CudaStream& cuda_stream, const Tensor& from, void* to);
void copy_from_host(CudaStream& cuda_stream, const void* from, const Tensor& to);

// Page-locked host memory. Throws UsageError when the host has too little; `what` names the buffer.
[[nodiscard]] void* host_allocate(int index, const std::string& what, int64_t bytes);
void host_release(void* memory) noexcept;

// See HostCopies in ops/core/device.h.
struct Copies;
[[nodiscard]] std::shared_ptr<Copies> open_copies(int index);
void wait_stream(Copies& copies, CudaStream& cuda_stream);
void enqueue_copy(Copies& copies, const Tensor& from, void* to);
void end_copies(Copies& copies);
void wait_copies(CudaStream& cuda_stream, Copies& copies);
void synchronize(Copies& copies);

// Enqueues a copy of `bytes` of host memory to device memory `to`. `from` may be overwritten as soon as the
// call returns.
void upload(CudaStream& cuda_stream, const void* from, void* to, int64_t bytes);

}  // namespace cuda
}  // namespace pesc
