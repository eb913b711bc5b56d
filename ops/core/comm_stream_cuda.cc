// The comm stream, and the events that order streams: see ops/core/cuda.h.
#include "ops/core/stream_cuda.h"

namespace pesc::cuda {

std::shared_ptr<CudaStream> open_comm_stream(const CudaStream& cuda_stream) {
  PESC_CUDA(cudaSetDevice(cuda_stream.index));
  auto comm = std::make_shared<CudaStream>();
  comm->index = cuda_stream.index;
  comm->multiprocessors = cuda_stream.multiprocessors;
  int lowest = 0;
  int highest = 0;
  PESC_CUDA(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
  // Without priority a collective's few thread blocks would be scheduled after all blocks of a running GEMM.
  PESC_CUDA(cudaStreamCreateWithPriority(&comm->stream, cudaStreamNonBlocking, highest));
  comm->workspace = allocate(cuda_stream.index, "a comm stream's workspace", CudaStream::kWorkspaceBytes);
  comm->open_staging();
  return comm;
}

// The event may be recorded again at once: a wait that was enqueued earlier keeps the recording that it saw.
void wait_stream(CudaStream& cuda_stream, CudaStream& other) {
  PESC_CUDA(cudaEventRecord(other.sync_event, other.stream));
  PESC_CUDA(cudaStreamWaitEvent(cuda_stream.stream, other.sync_event, 0));
}

struct Event {
  int index = 0;
  cudaEvent_t handle = nullptr;

  Event() = default;
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() {
    (void)cudaSetDevice(index);
    if (handle != nullptr) (void)cudaEventDestroy(handle);
  }
};

std::shared_ptr<Event> new_event(const CudaStream& cuda_stream) {
  auto event = std::make_shared<Event>();
  event->index = cuda_stream.index;
  PESC_CUDA(cudaEventCreateWithFlags(&event->handle, cudaEventDisableTiming));
  return event;
}

void record_event(Event& event, CudaStream& cuda_stream) {
  PESC_CUDA(cudaEventRecord(event.handle, cuda_stream.stream));
}

void wait_event(CudaStream& cuda_stream, const Event& event) {
  PESC_CUDA(cudaStreamWaitEvent(cuda_stream.stream, event.handle, 0));
}

}  // namespace pesc::cuda
