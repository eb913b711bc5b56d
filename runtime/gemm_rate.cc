#include "runtime/gemm_rate.h"

#include <algorithm>
#include <chrono>

#include "ops/core/arena.h"
#include "ops/gemm.h"
#include "ops/init.h"

namespace pesc {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The mean over the whole time: with more ranks than cores it is the rate that the ranks really share.
double mean_seconds(Stream& stream, const Gemm& args, double seconds) {
  int64_t gemms = 0;
  const auto start = Clock::now();
  while (since(start) < seconds) {
    gemm(stream, args);
    stream.synchronize();
    ++gemms;
  }
  return since(start) / static_cast<double>(gemms);
}

double median_seconds(Stream& stream, const Gemm& args, double seconds) {
  constexpr int kBurst = 50;  // GEMMs enqueued at a time: the device never waits for the host
  std::vector<double> all;
  const auto start = Clock::now();
  while (since(start) < seconds) {
    cuda::record_timing_event(stream.cuda_stream());
    for (int i = 0; i < kBurst; ++i) {
      gemm(stream, args);
      cuda::record_timing_event(stream.cuda_stream());
    }
    for (const double s : cuda::timing_intervals(stream.cuda_stream())) all.push_back(s);
  }
  std::nth_element(all.begin(), all.begin() + static_cast<int64_t>(all.size() / 2), all.end());
  return all[all.size() / 2];
}

}  // namespace

double measured_gemm_rate(Stream& stream, DType compute, double seconds) {
  const int64_t size = stream.on_cuda() ? 8192 : 1024;
  const int64_t bytes = 3 * size * size * dtype_bytes(compute);
  Arena arena("gemm rate", stream.device(), bytes + 3 * Arena::kAlignment);
  const Tensor a = arena.allocate(size, size, compute);
  const Tensor b = arena.allocate(size, size, compute);
  const Tensor c = arena.allocate(size, size, compute);
  init_uniform(stream, {.out = a, .seed = 1, .stream_id = 1, .global_cols = size}, 1.0F);
  init_uniform(stream, {.out = b, .seed = 1, .stream_id = 2, .global_cols = size}, 1.0F);
  const Gemm args{.a = a, .b = b, .c = c};
  gemm(stream, args);
  stream.synchronize();
  const double each =
      stream.on_cuda() ? median_seconds(stream, args, seconds) : mean_seconds(stream, args, seconds);
  const auto n = static_cast<double>(size);
  return 2.0 * n * n * n / each;
}

}  // namespace pesc
