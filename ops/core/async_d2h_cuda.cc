// Copies from a GPU to page-locked host memory: see ops/core/cuda.h, and HostCopies in ops/core/device.h.
#include "ops/core/stream_cuda.h"

namespace pesc::cuda {
namespace {

void use(int index) {
  PESC_CUDA(cudaSetDevice(index));
}

// Enqueues the copy of a tensor to packed rows on the host.
void copy_packed(const Tensor& from, void* to, cudaStream_t stream) {
  const auto width = static_cast<size_t>(from.cols * dtype_bytes(from.dtype));
  const auto pitch = static_cast<size_t>((from.rows > 1 ? from.ld : from.cols) * dtype_bytes(from.dtype));
  const auto rows = static_cast<size_t>(from.rows);
  if (pitch == width) {
    PESC_CUDA(cudaMemcpyAsync(to, from.data, width * rows, cudaMemcpyDeviceToHost, stream));
  } else {
    PESC_CUDA(cudaMemcpy2DAsync(to, width, from.data, pitch, width, rows, cudaMemcpyDeviceToHost, stream));
  }
}

}  // namespace

void* host_allocate(int index, const std::string& what, int64_t bytes) {
  use(index);
  void* memory = nullptr;
  const cudaError_t code = cudaHostAlloc(&memory, static_cast<size_t>(bytes), cudaHostAllocDefault);
  if (code == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    throw UsageError(
        str_cat(what, " needs ", bytes >> 20,
                " MiB of page-locked host memory, which the host does not have; start fewer ranks on it, "
                "or raise its limit (a container's memory, ulimit -l)"));
  }
  PESC_CUDA(code);
  return memory;
}

void host_release(void* memory) noexcept {
  (void)cudaFreeHost(memory);
}

void copy_to_host(CudaStream& cuda_stream, const Tensor& from, void* to) {
  if (from.size() == 0) return;
  synchronize(cuda_stream);  // as in upload
  copy_packed(from, to, cuda_stream.stream);
  synchronize(cuda_stream);
}

// A stream of its own, not the stream's `side`: the expert choices of every layer are copied on `side` while
// the host waits for them, and must not be delayed by gigabytes of a checkpoint.
struct Copies {
  int index = 0;
  cudaStream_t stream = nullptr;
  cudaEvent_t ready = nullptr, done = nullptr;

  Copies() = default;
  Copies(const Copies&) = delete;
  Copies& operator=(const Copies&) = delete;
  ~Copies() {
    (void)cudaSetDevice(index);
    if (stream != nullptr) (void)cudaStreamSynchronize(stream);
    for (cudaEvent_t event : {ready, done})
      if (event != nullptr) (void)cudaEventDestroy(event);
    if (stream != nullptr) (void)cudaStreamDestroy(stream);
  }
};

std::shared_ptr<Copies> open_copies(int index) {
  use(index);
  auto copies = std::make_shared<Copies>();
  copies->index = index;
  PESC_CUDA(cudaStreamCreateWithFlags(&copies->stream, cudaStreamNonBlocking));
  PESC_CUDA(cudaEventCreateWithFlags(&copies->ready, cudaEventDisableTiming));
  // A blocking event, so that the waiting thread sleeps: a spinning one would take a core from the thread
  // that drives the GPU.
  PESC_CUDA(cudaEventCreateWithFlags(&copies->done, cudaEventDisableTiming | cudaEventBlockingSync));
  return copies;
}

void wait_stream(Copies& copies, CudaStream& cuda_stream) {
  PESC_CUDA(cudaEventRecord(copies.ready, cuda_stream.stream));
  PESC_CUDA(cudaStreamWaitEvent(copies.stream, copies.ready, 0));
}

void enqueue_copy(Copies& copies, const Tensor& from, void* to) {
  if (from.size() == 0) return;
  use(copies.index);
  copy_packed(from, to, copies.stream);
}

void end_copies(Copies& copies) {
  use(copies.index);
  PESC_CUDA(cudaEventRecord(copies.done, copies.stream));
}

void wait_copies(CudaStream& cuda_stream, Copies& copies) {
  PESC_CUDA(cudaStreamWaitEvent(cuda_stream.stream, copies.done, 0));
}

void synchronize(Copies& copies) {
  use(copies.index);
  PESC_CUDA(cudaEventSynchronize(copies.done));
}

}  // namespace pesc::cuda
