#include "ops/core/queue.h"

namespace pesc::cuda {

void Queue::open_staging() {
  void* pinned = nullptr;
  PESC_CUDA(cudaHostAlloc(&pinned, 2 * kStagingBytes, cudaHostAllocDefault));
  staging = static_cast<std::byte*>(pinned);
  for (cudaEvent_t* event : {left.data(), left.data() + 1, &followed})
    PESC_CUDA(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
}

// Errors here are of no use to anybody: the process is about to end, or has failed already.
Queue::~Queue() {
  (void)cudaSetDevice(index);
  if (stream != nullptr) (void)cudaStreamSynchronize(stream);
  gemms.reset();
  attention.reset();
  if (side != nullptr) (void)cudaStreamSynchronize(side);
  stamps.insert(stamps.end(), left.begin(), left.end());
  stamps.insert(stamps.end(), {copy_ready, copy_done, followed});
  for (cudaEvent_t event : stamps)
    if (event != nullptr) (void)cudaEventDestroy(event);
  if (copied != nullptr) (void)cudaFreeHost(copied);
  if (staging != nullptr) (void)cudaFreeHost(staging);
  if (workspace != nullptr) (void)cudaFree(workspace);
  if (blas != nullptr) (void)cublasLtDestroy(blas);
  for (cudaStream_t s : {side, stream})
    if (s != nullptr) (void)cudaStreamDestroy(s);
}

}  // namespace pesc::cuda
