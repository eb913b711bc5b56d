// A cudaStream_t and the state that belongs to it: the cuBLASLt handle and its workspace, the caches of GEMMs
// and attention graphs, and the pinned memory through which uploads pass. For CUDA code. REQUIRES: one host
// thread uses a stream.
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
struct Fp8GemmCache;    // ops/fp8_gemm.cu
struct AttentionCache;  // ops/attention_cudnn.cc

struct CudaStream {
  static constexpr int64_t kWorkspaceBytes = kCudaStreamBytes;
  static constexpr int64_t kStagingBytes = int64_t{1} << 20;  // one of two halves

  int index = 0;
  KernelChoice kernel_choice = KernelChoice::kFirst;
  int multiprocessors = 0;
  cudaStream_t stream = nullptr;
  cublasLtHandle_t blas = nullptr;
  void* workspace = nullptr;  // kWorkspaceBytes of device memory, for cuBLASLt and for partial sums
  std::shared_ptr<Watcher> watcher;
  std::shared_ptr<GemmCache> gemms;
  std::shared_ptr<Fp8GemmCache> fp8_gemms;
  Arena* trials = nullptr;  // scratch for timing GEMMs: set_gemm_trials in ops/gemm.h
  std::shared_ptr<AttentionCache> attention;

  // Uploads fill one half of the pinned memory while copies from the other half may still run. left[half] is
  // recorded after the last copy from a half, and the host waits for it before it fills that half again.
  std::byte* staging = nullptr;
  int64_t staged = 0;
  int half = 0;
  std::array<cudaEvent_t, 2> left{};

  cudaEvent_t sync_event = nullptr;  // recorded here when another stream is made to wait for this one

  // Timed events, of which the first `timing_events_used` are recorded.
  std::vector<cudaEvent_t> timing_events;
  size_t timing_events_used = 0;

  // start_host_copy: a second stream, the events around the copy, and its pinned memory.
  cudaStream_t side = nullptr;
  cudaEvent_t copy_ready = nullptr, copy_done = nullptr;
  std::byte* copied = nullptr;  // pinned
  int64_t copied_capacity = 0, copied_bytes = 0;

  CudaStream() = default;
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  ~CudaStream();
  void open_staging();  // allocates `staging` and creates `left` and `sync_event`
};

// Throws unless `code` is success: UsageError when memory is exhausted, InternalError for anything else.
void check(cudaError_t code, const char* call, const char* file, int line);
void check(cublasStatus_t code, const char* call, const char* file, int line);

// Whether the current GPU can load a kernel of this build.
[[nodiscard]] Kernels probe_kernels();

[[nodiscard]] inline cudaStream_t stream_of(const Stream& stream) {
  return stream.cuda_stream().stream;
}

}  // namespace pesc::cuda

#define PESC_CUDA(call) ::pesc::cuda::check((call), #call, __FILE__, __LINE__)
// After a kernel launch: PESC_LAUNCHED("copy_rows").
#define PESC_LAUNCHED(kernel) ::pesc::cuda::check(cudaGetLastError(), "launch of " kernel, __FILE__, __LINE__)
