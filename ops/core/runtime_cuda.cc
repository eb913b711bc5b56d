// Devices, memory, copies and streams on CUDA's runtime: see ops/core/cuda.h.
#include <nvtx3/nvToolsExt.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "ops/core/stream_cuda.h"

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
void poll(const CudaStream& cuda_stream, Query query) {
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
      cuda_stream.watcher->check(std::chrono::duration<double>(now - start).count());
    }
    if (now - start > kSleepAfter) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    } else if (now - start > kYieldAfter) {
      std::this_thread::yield();
    }
  }
}

void wait_for(const CudaStream& cuda_stream, cudaEvent_t event) {
  if (cuda_stream.watcher == nullptr) return PESC_CUDA(cudaEventSynchronize(event));
  poll(cuda_stream, [event] { return cudaEventQuery(event); });
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

int64_t memory_in_use(int index) {
  use(index);
  size_t free = 0;
  size_t total = 0;
  PESC_CUDA(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(total - free);
}

std::shared_ptr<CudaStream> open(const Device& device) {
  const int index = device.index;
  const DeviceInfo info = device_info(index);
  auto cuda_stream = std::make_shared<CudaStream>();
  cuda_stream->index = index;
  cuda_stream->kernel_choice = device.kernel_choice;
  cuda_stream->multiprocessors = info.multiprocessors;
  PESC_CUDA(cudaStreamCreateWithFlags(&cuda_stream->stream, cudaStreamNonBlocking));
  PESC_CUDA(cudaStreamCreateWithFlags(&cuda_stream->side, cudaStreamNonBlocking));
  for (cudaEvent_t* event : {&cuda_stream->copy_ready, &cuda_stream->copy_done})
    PESC_CUDA(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
  PESC_CUDA(cublasLtCreate(&cuda_stream->blas));
  cuda_stream->workspace = allocate(index, "the GEMMs' workspace", CudaStream::kWorkspaceBytes);
  cuda_stream->open_staging();
  return cuda_stream;
}

void synchronize(CudaStream& cuda_stream) {
  if (cuda_stream.watcher == nullptr) return PESC_CUDA(cudaStreamSynchronize(cuda_stream.stream));
  poll(cuda_stream, [&cuda_stream] { return cudaStreamQuery(cuda_stream.stream); });
}

void record_timing_event(CudaStream& cuda_stream) {
  if (cuda_stream.timing_events_used == cuda_stream.timing_events.size()) {
    cuda_stream.timing_events.push_back(nullptr);
    PESC_CUDA(cudaEventCreate(&cuda_stream.timing_events.back()));
  }
  PESC_CUDA(cudaEventRecord(cuda_stream.timing_events[cuda_stream.timing_events_used++], cuda_stream.stream));
}

std::vector<double> timing_intervals(CudaStream& cuda_stream) {
  std::vector<double> seconds;
  if (cuda_stream.timing_events_used > 0)
    wait_for(cuda_stream, cuda_stream.timing_events[cuda_stream.timing_events_used - 1]);
  for (size_t i = 1; i < cuda_stream.timing_events_used; ++i) {
    float milliseconds = 0;
    PESC_CUDA(
        cudaEventElapsedTime(&milliseconds, cuda_stream.timing_events[i - 1], cuda_stream.timing_events[i]));
    seconds.push_back(1e-3 * static_cast<double>(milliseconds));
  }
  cuda_stream.timing_events_used = 0;
  return seconds;
}

void push_range(const char* name) {
  nvtxRangePushA(name);
}
void pop_range() {
  nvtxRangePop();
}

void start_host_copy(CudaStream& cuda_stream, const Tensor& from) {
  PESC_CHECK(from.contiguous(), "a copy of rows ", from.ld, " apart");
  cuda_stream.copied_bytes = from.bytes();
  if (cuda_stream.copied_bytes == 0) return;
  if (cuda_stream.copied_bytes > cuda_stream.copied_capacity) {
    if (cuda_stream.copied != nullptr) PESC_CUDA(cudaFreeHost(cuda_stream.copied));
    cuda_stream.copied = nullptr;
    void* pinned = nullptr;
    PESC_CUDA(cudaHostAlloc(&pinned, static_cast<size_t>(cuda_stream.copied_bytes), cudaHostAllocDefault));
    cuda_stream.copied = static_cast<std::byte*>(pinned);
    cuda_stream.copied_capacity = cuda_stream.copied_bytes;
  }
  PESC_CUDA(cudaEventRecord(cuda_stream.copy_ready, cuda_stream.stream));
  PESC_CUDA(cudaStreamWaitEvent(cuda_stream.side, cuda_stream.copy_ready, 0));
  PESC_CUDA(cudaMemcpyAsync(cuda_stream.copied, from.data, static_cast<size_t>(cuda_stream.copied_bytes),
                            cudaMemcpyDeviceToHost, cuda_stream.side));
  PESC_CUDA(cudaEventRecord(cuda_stream.copy_done, cuda_stream.side));
}

void finish_host_copy(CudaStream& cuda_stream, void* to) {
  if (cuda_stream.copied_bytes == 0) return;
  wait_for(cuda_stream, cuda_stream.copy_done);
  std::memcpy(to, cuda_stream.copied, static_cast<size_t>(cuda_stream.copied_bytes));
}

void watch(CudaStream& cuda_stream, std::shared_ptr<Watcher> watcher) {
  cuda_stream.watcher = std::move(watcher);
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

void copy_from_host(CudaStream& cuda_stream, const void* from, const Tensor& to) {
  if (to.size() == 0) return;
  const auto width = static_cast<size_t>(to.cols * dtype_bytes(to.dtype));
  const auto pitch = static_cast<size_t>((to.rows > 1 ? to.ld : to.cols) * dtype_bytes(to.dtype));
  if (pitch == width) {
    upload(cuda_stream, from, to.data, to.bytes());
    if (to.bytes() <= CudaStream::kStagingBytes) return;
  } else {
    synchronize(cuda_stream);
    PESC_CUDA(cudaMemcpy2DAsync(to.data, pitch, from, width, width, static_cast<size_t>(to.rows),
                                cudaMemcpyHostToDevice, cuda_stream.stream));
  }
  synchronize(cuda_stream);
}

void upload(CudaStream& cuda_stream, const void* from, void* to, int64_t bytes) {
  if (bytes == 0) return;
  if (bytes > CudaStream::kStagingBytes) {
    // cudaMemcpyAsync from pageable memory waits for the stream by itself, without limit.
    synchronize(cuda_stream);
    PESC_CUDA(
        cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, cuda_stream.stream));
    synchronize(cuda_stream);  // `from` may be pinned, in which case the copy is still to come
    return;
  }
  if (cuda_stream.staged + bytes > CudaStream::kStagingBytes) {
    PESC_CUDA(cudaEventRecord(cuda_stream.left[static_cast<size_t>(cuda_stream.half)], cuda_stream.stream));
    cuda_stream.half = 1 - cuda_stream.half;
    cuda_stream.staged = 0;
    wait_for(cuda_stream, cuda_stream.left[static_cast<size_t>(cuda_stream.half)]);
  }
  std::byte* place = cuda_stream.staging + cuda_stream.half * CudaStream::kStagingBytes + cuda_stream.staged;
  std::memcpy(place, from, static_cast<size_t>(bytes));
  PESC_CUDA(
      cudaMemcpyAsync(to, place, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, cuda_stream.stream));
  cuda_stream.staged = (cuda_stream.staged + bytes + 255) / 256 * 256;
}

}  // namespace pesc::cuda
