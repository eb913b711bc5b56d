#include "runtime/gemm_rate.h"

#include <chrono>

#include "ops/core/arena.h"
#include "ops/gemm.h"
#include "ops/init.h"

namespace pesc {

double measured_gemm_rate(Stream& stream, double seconds) {
  constexpr int64_t kSize = 1024;
  Arena arena("gemm rate", stream.device(), 3 * kSize * kSize * int64_t{sizeof(float)} + 4096);
  const Tensor a = arena.allocate(kSize, kSize);
  const Tensor b = arena.allocate(kSize, kSize);
  const Tensor c = arena.allocate(kSize, kSize);
  init_uniform(stream, {.out = a, .seed = 1, .stream_id = 1, .global_cols = kSize}, 1.0F);
  init_uniform(stream, {.out = b, .seed = 1, .stream_id = 2, .global_cols = kSize}, 1.0F);
  gemm(stream, {.a = a, .b = b, .c = c});
  // The mean over the whole time: with more ranks than cores it is the rate that the ranks really share.
  int64_t products = 0;
  const auto start = std::chrono::steady_clock::now();
  double elapsed = 0;
  while (elapsed < seconds) {
    gemm(stream, {.a = a, .b = b, .c = c});
    stream.synchronize();
    ++products;
    elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  return 2.0 * kSize * kSize * kSize * static_cast<double>(products) / elapsed;
}

}  // namespace pesc
