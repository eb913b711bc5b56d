// The communication stream, and the events that order streams: see ops/core/cuda.h.
#include "ops/core/queue.h"

namespace pesc::cuda {

std::shared_ptr<Queue> open_beside(const Queue& queue) {
  PESC_CUDA(cudaSetDevice(queue.index));
  auto beside = std::make_shared<Queue>();
  beside->index = queue.index;
  beside->multiprocessors = queue.multiprocessors;
  int lowest = 0;
  int highest = 0;
  PESC_CUDA(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
  // Without priority a collective's few thread blocks would be scheduled after all blocks of a running GEMM.
  PESC_CUDA(cudaStreamCreateWithPriority(&beside->stream, cudaStreamNonBlocking, highest));
  beside->workspace = allocate(queue.index, "a communication stream's workspace", Queue::kWorkspaceBytes);
  beside->open_staging();
  return beside;
}

// The event may be recorded again at once: a wait that was enqueued earlier keeps the recording that it saw.
void follow(Queue& queue, Queue& other) {
  PESC_CUDA(cudaEventRecord(other.followed, other.stream));
  PESC_CUDA(cudaStreamWaitEvent(queue.stream, other.followed, 0));
}

struct Mark {
  int index = 0;
  cudaEvent_t event = nullptr;

  Mark() = default;
  Mark(const Mark&) = delete;
  Mark& operator=(const Mark&) = delete;
  ~Mark() {
    (void)cudaSetDevice(index);
    if (event != nullptr) (void)cudaEventDestroy(event);
  }
};

std::shared_ptr<Mark> new_mark(const Queue& queue) {
  auto mark = std::make_shared<Mark>();
  mark->index = queue.index;
  PESC_CUDA(cudaEventCreateWithFlags(&mark->event, cudaEventDisableTiming));
  return mark;
}

void set(Mark& mark, Queue& queue) {
  PESC_CUDA(cudaEventRecord(mark.event, queue.stream));
}

void hold(Queue& queue, const Mark& mark) {
  PESC_CUDA(cudaStreamWaitEvent(queue.stream, mark.event, 0));
}

}  // namespace pesc::cuda
