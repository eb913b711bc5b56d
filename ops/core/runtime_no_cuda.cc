// A build without CUDA: see ops/core/cuda.h.
#include "ops/core/cuda.h"
#include "ops/core/no_cuda.h"

namespace pesc::cuda {

bool built() {
  return false;
}
int device_count() {
  return 0;
}
DeviceInfo device_info(int) {
  refuse();
}
int64_t memory_in_use(int) {
  refuse();
}
std::shared_ptr<CudaStream> open(const Device&) {
  refuse();
}
void synchronize(CudaStream&) {
  refuse();
}
std::shared_ptr<CudaStream> open_comm_stream(const CudaStream&) {
  refuse();
}
void wait_stream(CudaStream&, CudaStream&) {
  refuse();
}
std::shared_ptr<Event> new_event(const CudaStream&) {
  refuse();
}
void record_event(Event&, CudaStream&) {
  refuse();
}
void wait_event(CudaStream&, const Event&) {
  refuse();
}
void record_timing_event(CudaStream&) {
  refuse();
}
std::vector<double> timing_intervals(CudaStream&) {
  refuse();
}
void push_range(const char*) {}
void pop_range() {}
void start_host_copy(CudaStream&, const Tensor&) {
  refuse();
}
void finish_host_copy(CudaStream&, void*) {
  refuse();
}
void watch(CudaStream&, std::shared_ptr<Watcher>) {
  refuse();
}
void* allocate(int, const std::string&, int64_t) {
  refuse();
}
void release(int, void*) noexcept {}
void copy_to_host(CudaStream&, const Tensor&, void*) {
  refuse();
}
void copy_from_host(CudaStream&, const void*, const Tensor&) {
  refuse();
}
void* host_allocate(int, const std::string&, int64_t) {
  refuse();
}
void host_release(void*) noexcept {}
std::shared_ptr<Copies> open_copies(int) {
  refuse();
}
void wait_stream(Copies&, CudaStream&) {
  refuse();
}
void enqueue_copy(Copies&, const Tensor&, void*) {
  refuse();
}
void end_copies(Copies&) {
  refuse();
}
void wait_copies(CudaStream&, Copies&) {
  refuse();
}
void synchronize(Copies&) {
  refuse();
}
void upload(CudaStream&, const void*, void*, int64_t) {
  refuse();
}

}  // namespace pesc::cuda
