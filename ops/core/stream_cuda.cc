#include "ops/core/stream_cuda.h"

namespace pesc::cuda {

void CudaStream::open_staging() {
  void* pinned = nullptr;
  PESC_CUDA(cudaHostAlloc(&pinned, 2 * kStagingBytes, cudaHostAllocDefault));
  staging = static_cast<std::byte*>(pinned);
  for (cudaEvent_t* event : {left.data(), left.data() + 1, &sync_event})
    PESC_CUDA(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
}

// Errors here are of no use to anybody: the process is about to end, or has failed already.
CudaStream::~CudaStream() {
  (void)cudaSetDevice(index);
  if (stream != nullptr) (void)cudaStreamSynchronize(stream);
  gemms.reset();
  attention.reset();
  if (side != nullptr) (void)cudaStreamSynchronize(side);
  timing_events.insert(timing_events.end(), left.begin(), left.end());
  timing_events.insert(timing_events.end(), {copy_ready, copy_done, sync_event});
  for (cudaEvent_t event : timing_events)
    if (event != nullptr) (void)cudaEventDestroy(event);
  if (copied != nullptr) (void)cudaFreeHost(copied);
  if (staging != nullptr) (void)cudaFreeHost(staging);
  if (workspace != nullptr) (void)cudaFree(workspace);
  if (blas != nullptr) (void)cublasLtDestroy(blas);
  for (cudaStream_t s : {side, stream})
    if (s != nullptr) (void)cudaStreamDestroy(s);
}

}  // namespace pesc::cuda
