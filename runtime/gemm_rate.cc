#include "runtime/gemm_rate.h"

#include <algorithm>
#include <chrono>
#include <tuple>
#include <vector>

#include "ops/core/arena.h"
#include "ops/fp8.h"
#include "ops/fp8_gemm.h"
#include "ops/gemm.h"
#include "ops/init.h"

namespace pesc {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The mean over the whole time: with more ranks than cores it is the rate that the ranks really share.
template <class Multiply>
double mean_seconds(Stream& stream, Multiply multiply, double seconds) {
  int64_t gemms = 0;
  const auto start = Clock::now();
  while (since(start) < seconds) {
    multiply();
    stream.synchronize();
    ++gemms;
  }
  return since(start) / static_cast<double>(gemms);
}

template <class Multiply>
double median_seconds(Stream& stream, Multiply multiply, double seconds) {
  constexpr int kBurst = 50;  // GEMMs enqueued at a time: the device never waits for the host
  std::vector<double> all;
  const auto start = Clock::now();
  while (since(start) < seconds) {
    cuda::record_timing_event(stream.cuda_stream());
    for (int i = 0; i < kBurst; ++i) {
      multiply();
      cuda::record_timing_event(stream.cuda_stream());
    }
    for (const double s : cuda::timing_intervals(stream.cuda_stream())) all.push_back(s);
  }
  std::nth_element(all.begin(), all.begin() + static_cast<int64_t>(all.size() / 2), all.end());
  return all[all.size() / 2];
}

// FLOP/s of square GEMMs of `size`.
template <class Multiply>
double rate_of(Stream& stream, int64_t size, Multiply multiply, double seconds) {
  multiply();
  stream.synchronize();
  const double each =
      stream.on_cuda() ? median_seconds(stream, multiply, seconds) : mean_seconds(stream, multiply, seconds);
  const auto n = static_cast<double>(size);
  return 2.0 * n * n * n / each;
}

double plain_rate(Stream& stream, DType compute, double seconds) {
  const int64_t size = stream.on_cuda() ? 8192 : 1024;
  const int64_t bytes = 3 * size * size * dtype_bytes(compute);
  Arena arena("gemm rate", stream.device(), bytes + 3 * Arena::kAlignment);
  const Tensor a = arena.allocate(size, size, compute);
  const Tensor b = arena.allocate(size, size, compute);
  const Tensor c = arena.allocate(size, size, compute);
  init_uniform(stream, {.out = a, .seed = 1, .stream_id = 1, .global_cols = size}, 1.0F);
  init_uniform(stream, {.out = b, .seed = 1, .stream_id = 2, .global_cols = size}, 1.0F);
  return rate_of(
      stream, size, [&, args = Gemm{.a = a, .b = b, .c = c}] { gemm(stream, args); }, seconds);
}

double fp8_rate(Stream& stream, double seconds) {
  constexpr int64_t kSize = 8192;
  struct Operands {
    Tensor values, a, b, a_scales, b_scales;
  };
  const auto allocate = [&](Arena& arena) {
    return Operands{arena.allocate(kSize, kSize, DType::kBF16), arena.allocate(kSize, kSize, DType::kE4M3),
                    arena.allocate(kSize, kSize, DType::kE4M3), arena.allocate(kSize, 1),
                    arena.allocate(kSize, 1)};
  };
  Arena plan = Arena::planning("FP8 gemm rate");
  (void)allocate(plan);
  (void)plan.allocate(1, fp8_gemm_scratch_bytes(stream.device(), kSize), DType::kU8);
  Arena arena("FP8 gemm rate", stream.device(), plan.used());
  const Operands o = allocate(arena);
  for (const auto& [codes, scales, id] : {std::tuple(o.a, o.a_scales, 1), {o.b, o.b_scales, 2}}) {
    init_uniform(stream,
                 {.out = o.values, .seed = 1, .stream_id = static_cast<uint64_t>(id), .global_cols = kSize},
                 1.0F);
    fp8_quantize(stream, {.x = o.values, .codes = codes, .scales = scales});
  }
  const Fp8Gemm args{.a = o.a,
                     .a_scales = o.a_scales,
                     .b = o.b,
                     .b_scales = o.b_scales,
                     .c = o.values,
                     .accumulation = Fp8Accumulation::kFast};
  return rate_of(
      stream, kSize, [&] { fp8_gemm(stream, args, arena); }, seconds);
}

}  // namespace

GemmRates measured_gemm_rates(Stream& stream, DType compute, FrozenGemm gemm, double seconds) {
  GemmRates rates;
  rates.compute = plain_rate(stream, compute, seconds);
  if (gemm == FrozenGemm::kFP8 && stream.on_cuda()) rates.fp8 = fp8_rate(stream, seconds);
  return rates;
}

}  // namespace pesc
