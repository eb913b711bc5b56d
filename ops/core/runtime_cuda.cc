// Devices, memory, copies and queues on CUDA's runtime: see ops/core/cuda.h.
#include <nvtx3/nvToolsExt.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "ops/core/queue.h"

namespace pesc::cuda {
namespace {

std::string version(int number) {
  return str_cat(number / 1000, ".", number % 1000 / 10);
}

int visible_devices() {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code == cudaSuccess) return count;
  (void)cudaGetLastError();  // a failed query is no later call's error
  return 0;
}

void use(int index) {
  PESC_CUDA(cudaSetDevice(index));
}

// Waits until query() is no longer cudaErrorNotReady. With a watcher the host polls, so that a collective
// whose peers never come does not hold it for ever: spinning first, then yielding the core, then sleeping.
template <class Query>
void poll(const Queue& queue, Query query) {
  constexpr auto kYieldAfter = std::chrono::microseconds(50);
  constexpr auto kSleepAfter = std::chrono::milliseconds(20);
  constexpr auto kAskEvery = std::chrono::milliseconds(100);
  const auto start = std::chrono::steady_clock::now();
  auto asked = start;
  while (true) {
    const cudaError_t code = query();
    if (code != cudaErrorNotReady) return PESC_CUDA(code);
    const auto now = std::chrono::steady_clock::now();
    if (now - asked > kAskEvery) {
      asked = now;
      queue.watcher->check(std::chrono::duration<double>(now - start).count());
    }
    if (now - start > kSleepAfter) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    } else if (now - start > kYieldAfter) {
      std::this_thread::yield();
    }
  }
}

void wait_for(const Queue& queue, cudaEvent_t event) {
  if (queue.watcher == nullptr) return PESC_CUDA(cudaEventSynchronize(event));
  poll(queue, [event] { return cudaEventQuery(event); });
}

}  // namespace

void check(cudaError_t code, const char* call, const char* file, int line) {
  if (code == cudaSuccess) return;
  const std::string what =
      str_cat(file, ":", line, ": ", call, ": ", cudaGetErrorName(code), ": ", cudaGetErrorString(code));
  if (code == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    throw UsageError(str_cat(what,
                             "; the GPU has too little memory: use more train.gradient_accumulation_steps, a "
                             "smaller data.max_seq_length, or more ranks"));
  }
  throw InternalError(what);
}

void check(cublasStatus_t code, const char* call, const char* file, int line) {
  if (code == CUBLAS_STATUS_SUCCESS) return;
  throw InternalError(str_cat(file, ":", line, ": ", call, ": cuBLASLt status ", static_cast<int>(code)));
}

bool built() {
  return true;
}

int device_count() {
  return visible_devices();
}

DeviceInfo device_info(int index) {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess || count == 0) {
    (void)cudaGetLastError();
    throw UsageError(str_cat("parallel.device: CUDA: this machine has no GPU that CUDA can use (",
                             code == cudaSuccess ? "none is visible" : cudaGetErrorString(code),
                             "); check nvidia-smi and CUDA_VISIBLE_DEVICES, or set parallel.device: CPU"));
  }
  if (index < 0 || index >= count) {
    throw UsageError(str_cat("parallel.device: CUDA: GPU ", index, " was asked for, but this machine has ",
                             count,
                             "; start at most one rank per GPU, or set debug.share_gpu: true (a test mode)"));
  }
  cudaDeviceProp properties{};
  PESC_CUDA(cudaGetDeviceProperties(&properties, index));
  DeviceInfo info;
  info.name = properties.name;
  for (const char byte : properties.uuid.bytes) {
    constexpr char kDigits[] = "0123456789abcdef";
    info.id += kDigits[static_cast<unsigned char>(byte) / 16];
    info.id += kDigits[static_cast<unsigned char>(byte) % 16];
  }
  info.major = properties.major;
  info.minor = properties.minor;
  info.multiprocessors = properties.multiProcessorCount;
  check_capability(index, info);
  int driver = 0;
  int runtime = 0;
  PESC_CUDA(cudaDriverGetVersion(&driver));
  PESC_CUDA(cudaRuntimeGetVersion(&runtime));
  info.versions = str_cat("driver ", version(driver), ", runtime ", version(runtime), ", cuBLASLt ",
                          cublasLtGetVersion());
  use(index);
  // A build for another architecture is a user's mistake, not a bug: said before the first launch.
  check_kernels(index, info, probe_kernels());
  size_t free = 0;
  size_t total = 0;
  PESC_CUDA(cudaMemGetInfo(&free, &total));
  info.free_bytes = static_cast<int64_t>(free);
  info.total_bytes = static_cast<int64_t>(total);
  return info;
}

std::shared_ptr<Queue> open(const Device& device) {
  const int index = device.index;
  const DeviceInfo info = device_info(index);
  auto queue = std::make_shared<Queue>();
  queue->index = index;
  queue->products = device.products;
  queue->multiprocessors = info.multiprocessors;
  PESC_CUDA(cudaStreamCreateWithFlags(&queue->stream, cudaStreamNonBlocking));
  PESC_CUDA(cudaStreamCreateWithFlags(&queue->side, cudaStreamNonBlocking));
  for (cudaEvent_t* event : {&queue->copy_ready, &queue->copy_done})
    PESC_CUDA(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
  PESC_CUDA(cublasLtCreate(&queue->blas));
  queue->workspace = allocate(index, "the products' workspace", Queue::kWorkspaceBytes);
  queue->open_staging();
  return queue;
}

void synchronize(Queue& queue) {
  if (queue.watcher == nullptr) return PESC_CUDA(cudaStreamSynchronize(queue.stream));
  poll(queue, [&queue] { return cudaStreamQuery(queue.stream); });
}

void stamp(Queue& queue) {
  if (queue.stamps_used == queue.stamps.size()) {
    queue.stamps.push_back(nullptr);
    PESC_CUDA(cudaEventCreate(&queue.stamps.back()));
  }
  PESC_CUDA(cudaEventRecord(queue.stamps[queue.stamps_used++], queue.stream));
}

std::vector<double> stamp_intervals(Queue& queue) {
  std::vector<double> seconds;
  if (queue.stamps_used > 0) wait_for(queue, queue.stamps[queue.stamps_used - 1]);
  for (size_t i = 1; i < queue.stamps_used; ++i) {
    float milliseconds = 0;
    PESC_CUDA(cudaEventElapsedTime(&milliseconds, queue.stamps[i - 1], queue.stamps[i]));
    seconds.push_back(1e-3 * static_cast<double>(milliseconds));
  }
  queue.stamps_used = 0;
  return seconds;
}

void push_range(const char* name) {
  nvtxRangePushA(name);
}
void pop_range() {
  nvtxRangePop();
}

void start_host_copy(Queue& queue, const Tensor& from) {
  PESC_CHECK(from.contiguous(), "a copy of rows ", from.ld, " apart");
  queue.copied_bytes = from.bytes();
  if (queue.copied_bytes == 0) return;
  if (queue.copied_bytes > queue.copied_capacity) {
    if (queue.copied != nullptr) PESC_CUDA(cudaFreeHost(queue.copied));
    queue.copied = nullptr;
    void* pinned = nullptr;
    PESC_CUDA(cudaHostAlloc(&pinned, static_cast<size_t>(queue.copied_bytes), cudaHostAllocDefault));
    queue.copied = static_cast<std::byte*>(pinned);
    queue.copied_capacity = queue.copied_bytes;
  }
  PESC_CUDA(cudaEventRecord(queue.copy_ready, queue.stream));
  PESC_CUDA(cudaStreamWaitEvent(queue.side, queue.copy_ready, 0));
  PESC_CUDA(cudaMemcpyAsync(queue.copied, from.data, static_cast<size_t>(queue.copied_bytes),
                            cudaMemcpyDeviceToHost, queue.side));
  PESC_CUDA(cudaEventRecord(queue.copy_done, queue.side));
}

void finish_host_copy(Queue& queue, void* to) {
  if (queue.copied_bytes == 0) return;
  wait_for(queue, queue.copy_done);
  std::memcpy(to, queue.copied, static_cast<size_t>(queue.copied_bytes));
}

void watch(Queue& queue, std::shared_ptr<Watcher> watcher) {
  queue.watcher = std::move(watcher);
}

void* allocate(int index, const std::string& what, int64_t bytes) {
  use(index);
  void* memory = nullptr;
  const cudaError_t code = cudaMalloc(&memory, static_cast<size_t>(bytes));
  if (code == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    refuse_memory(index, device_info(index), what, bytes);
  }
  PESC_CUDA(code);
  PESC_CUDA(cudaMemset(memory, 0, static_cast<size_t>(bytes)));
  // The memory is used on streams that do not wait for the default one.
  PESC_CUDA(cudaStreamSynchronize(nullptr));
  return memory;
}

void release(int index, void* memory) noexcept {
  (void)cudaSetDevice(index);
  (void)cudaFree(memory);
}

void copy_from_host(Queue& queue, const void* from, const Tensor& to) {
  if (to.size() == 0) return;
  const auto width = static_cast<size_t>(to.cols * dtype_bytes(to.dtype));
  const auto pitch = static_cast<size_t>((to.rows > 1 ? to.ld : to.cols) * dtype_bytes(to.dtype));
  if (pitch == width) {
    upload(queue, from, to.data, to.bytes());
    if (to.bytes() <= Queue::kStagingBytes) return;
  } else {
    synchronize(queue);
    PESC_CUDA(cudaMemcpy2DAsync(to.data, pitch, from, width, width, static_cast<size_t>(to.rows),
                                cudaMemcpyHostToDevice, queue.stream));
  }
  synchronize(queue);
}

void upload(Queue& queue, const void* from, void* to, int64_t bytes) {
  if (bytes == 0) return;
  if (bytes > Queue::kStagingBytes) {
    // cudaMemcpyAsync from pageable memory waits for the stream by itself, without limit.
    synchronize(queue);
    PESC_CUDA(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, queue.stream));
    synchronize(queue);  // `from` may be pinned, in which case the copy is still to come
    return;
  }
  if (queue.staged + bytes > Queue::kStagingBytes) {
    PESC_CUDA(cudaEventRecord(queue.left[static_cast<size_t>(queue.half)], queue.stream));
    queue.half = 1 - queue.half;
    queue.staged = 0;
    wait_for(queue, queue.left[static_cast<size_t>(queue.half)]);
  }
  std::byte* place = queue.staging + queue.half * Queue::kStagingBytes + queue.staged;
  std::memcpy(place, from, static_cast<size_t>(bytes));
  PESC_CUDA(cudaMemcpyAsync(to, place, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, queue.stream));
  queue.staged = (queue.staged + bytes + 255) / 256 * 256;
}

}  // namespace pesc::cuda
