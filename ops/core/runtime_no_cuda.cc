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
std::shared_ptr<Queue> open(const Device&) {
  refuse();
}
void synchronize(Queue&) {
  refuse();
}
std::shared_ptr<Queue> open_beside(const Queue&) {
  refuse();
}
void follow(Queue&, Queue&) {
  refuse();
}
std::shared_ptr<Mark> new_mark(const Queue&) {
  refuse();
}
void set(Mark&, Queue&) {
  refuse();
}
void hold(Queue&, const Mark&) {
  refuse();
}
void stamp(Queue&) {
  refuse();
}
std::vector<double> stamp_intervals(Queue&) {
  refuse();
}
void push_range(const char*) {}
void pop_range() {}
void start_host_copy(Queue&, const Tensor&) {
  refuse();
}
void finish_host_copy(Queue&, void*) {
  refuse();
}
void watch(Queue&, std::shared_ptr<Watcher>) {
  refuse();
}
void* allocate(int, const std::string&, int64_t) {
  refuse();
}
void release(int, void*) noexcept {}
void copy_to_host(Queue&, const Tensor&, void*) {
  refuse();
}
void copy_from_host(Queue&, const void*, const Tensor&) {
  refuse();
}
void* host_allocate(int, const std::string&, int64_t) {
  refuse();
}
void host_release(void*) noexcept {}
std::shared_ptr<Copies> open_copies(int) {
  refuse();
}
void follow(Copies&, Queue&) {
  refuse();
}
void enqueue_copy(Copies&, const Tensor&, void*) {
  refuse();
}
void end_copies(Copies&) {
  refuse();
}
void hold(Queue&, Copies&) {
  refuse();
}
void wait(Copies&) {
  refuse();
}
void upload(Queue&, const void*, void*, int64_t) {
  refuse();
}

}  // namespace pesc::cuda
