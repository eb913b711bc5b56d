// A queue of work on a GPU, for CUDA code: the stream, the products' library and its workspace, and the
// pinned memory that uploads pass through. One host thread uses a queue.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "ops/core/device.h"

namespace pesc {
class Arena;
}

namespace pesc::cuda {

struct GemmCache;       // ops/gemm.cu
struct AttentionCache;  // ops/attention_cudnn.cc

struct Queue {
  static constexpr int64_t kWorkspaceBytes = kQueueBytes;
  static constexpr int64_t kStagingBytes = int64_t{1} << 20;  // one of two halves

  int index = 0;
  KernelChoice products = KernelChoice::kFirst;
  int multiprocessors = 0;
  cudaStream_t stream = nullptr;
  cublasLtHandle_t blas = nullptr;
  void* workspace = nullptr;  // kWorkspaceBytes of device memory for products and partial results
  std::shared_ptr<Watcher> watcher;
  std::shared_ptr<GemmCache> gemms;
  Arena* trials = nullptr;  // where products are timed: set_gemm_trials in ops/gemm.h
  std::shared_ptr<AttentionCache> attention;

  // Uploads fill one half of the pinned memory while the copies from the other may still run; `left` is
  // recorded when a half is full, and waited for before it is filled again.
  std::byte* staging = nullptr;
  int64_t staged = 0;
  int half = 0;
  std::array<cudaEvent_t, 2> left{};

  cudaEvent_t followed = nullptr;  // recorded where another queue follows this one

  // Timed stamps: `stamps_used` of the events were recorded.
  std::vector<cudaEvent_t> stamps;
  size_t stamps_used = 0;

  // The copy to the host that runs beside the stream's work.
  cudaStream_t side = nullptr;
  cudaEvent_t copy_ready = nullptr, copy_done = nullptr;
  std::byte* copied = nullptr;  // pinned
  int64_t copied_capacity = 0, copied_bytes = 0;

  Queue() = default;
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;
  ~Queue();
  void open_staging();  // and the events of a queue of any kind
};

// Throws unless `code` is cudaSuccess: UsageError for memory that is not to be had, InternalError for all
// else.
void check(cudaError_t code, const char* call, const char* file, int line);
void check(cublasStatus_t code, const char* call, const char* file, int line);

// Whether the current GPU can load the kernels of this build.
[[nodiscard]] Kernels probe_kernels();

[[nodiscard]] inline cudaStream_t stream_of(const Stream& stream) {
  return stream.queue().stream;
}

}  // namespace pesc::cuda

#define PESC_CUDA(call) ::pesc::cuda::check((call), #call, __FILE__, __LINE__)
// After a kernel launch: PESC_LAUNCHED("copy_rows").
#define PESC_LAUNCHED(kernel) ::pesc::cuda::check(cudaGetLastError(), "launch of " kernel, __FILE__, __LINE__)
