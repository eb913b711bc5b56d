// What the programs that time GPU operations share: tensors of the shapes of the Llama-2 7B model with 8 x 2048 tokens,
// and the clock.
#pragma once

#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "ops/dropout.h"
#include "ops/init.h"
#include "ops/reduce.h"

namespace pesc {

inline constexpr int64_t kTokens = 16384;
inline constexpr int64_t kHidden = 4096;
inline constexpr int64_t kFfn = 11008;
inline constexpr int64_t kHeadDim = 128;
inline constexpr int64_t kVocab = 32000;
inline constexpr int64_t kHeadChunk = 1024;
inline constexpr int64_t kExperts = 8;
inline constexpr int64_t kTopK = 2;
inline constexpr int64_t kRank = 64;
inline constexpr float kDropout = 0.1F;

enum class Rate { kBytes, kFlops };

class Bench {
 public:
  explicit Bench(Stream& stream) : s(stream), memory("bench", stream.device(), int64_t{5} << 30) {}

  Stream& s;
  Arena memory;

  // Normal values of deviation 1, or of the one given.
  Tensor random(int64_t rows, int64_t cols, DType t = DType::kBF16, float deviation = 1) {
    const Tensor out = memory.allocate(rows, cols, t);
    init_normal(s, {out, 1, ++tensors_, 0, 0, cols}, deviation);
    return out;
  }
  Tensor zero(int64_t rows, int64_t cols, DType t = DType::kBF16) {
    const Tensor out = memory.allocate(rows, cols, t);
    fill_zero(s, out);
    return out;
  }
  template <class T>
  Tensor array(const std::vector<T>& values, DType t) {
    const Tensor out = memory.allocate(1, static_cast<int64_t>(values.size()), t);
    copy_from_host(s, values.data(), out);
    return out;
  }

  // Runs `op` for 0.2 s after three runs that do not count.
  template <class Op>
  void time(const std::string& name, Rate rate, double amount, const Op& op) {
    using Clock = std::chrono::steady_clock;
    for (int i = 0; i < 3; ++i) op();
    s.synchronize();
    int runs = 0;
    const Clock::time_point start = Clock::now();
    double seconds = 0;
    do {
      for (int i = 0; i < 5; ++i) op();
      s.synchronize();
      runs += 5;
      seconds = std::chrono::duration<double>(Clock::now() - start).count();
    } while (seconds < 0.2);
    const double each = seconds / runs;
    if (rate == Rate::kBytes) {
      std::printf("%-34s %9.4f ms %9.0f GB/s\n", name.c_str(), each * 1e3, amount / each / 1e9);
    } else {
      std::printf("%-34s %9.4f ms %9.1f TFLOP/s\n", name.c_str(), each * 1e3, amount / each / 1e12);
    }
    std::fflush(stdout);
  }

 private:
  uint64_t tensors_ = 0;
};

inline double bytes_of(std::initializer_list<Tensor> tensors) {
  double total = 0;
  for (const Tensor& t : tensors) total += static_cast<double>(t.bytes());
  return total;
}

inline Dropout mask_of(Bench& b) {
  std::vector<int64_t> samples;
  std::vector<int32_t> positions;
  for (int64_t t = 0; t < kTokens; ++t) {
    samples.push_back(t / 2048);
    positions.push_back(static_cast<int32_t>(t % 2048));
  }
  Dropout d;
  d.rate = kDropout;
  d.seed = 5;
  d.samples = b.array(samples, DType::kI64);
  d.positions = b.array(positions, DType::kI32);
  return d;
}

}  // namespace pesc
