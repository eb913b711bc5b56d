// Dropout on the CPU. Every row of x is one token. The bits of a row are computed in blocks of kCounters
// counters (eight columns each) laid out as arrays, so that the compiler vectorises the Philox rounds; the
// state is in 64-bit lanes of which only the low halves are used.
//
// T tokens, C columns. Elements are independent, so nothing depends on the number of threads.
#include "ops/dropout.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "ops/core/threads.h"
#include "ops/cuda_ops.h"
#include "ops/reduce.h"

namespace pesc {
namespace {

constexpr int64_t kCounters = 32;
constexpr int64_t kColumns = 8 * kCounters;
constexpr int kRounds = 7;

// Counter words 1 to 3 and the key, which all columns of a row share.
struct RowKey {
  uint32_t c1, c2, c3, k0, k1;
};

RowKey row_key(const Dropout& mask, int64_t row) {
  const auto sample = static_cast<uint64_t>(mask.samples.i64()[row]);
  return {static_cast<uint32_t>(mask.positions.i32()[row]), static_cast<uint32_t>(sample),
          mask.layer << 8 | static_cast<uint32_t>(mask.site),
          static_cast<uint32_t>(mask.seed) ^ static_cast<uint32_t>(sample >> 32) * 0x85EBCA6BU,
          mask.step ^ static_cast<uint32_t>(mask.seed >> 32) * 0x9E3779B9U};
}

// bits[8 * i + j] = half j of philox<7>({first + i, c1, c2, c3}, {k0, k1}), as in ops/core/philox.h, for i <
// N.
template <int64_t N>
void philox_block(uint32_t first, const RowKey& key, uint16_t* bits) {
  alignas(64) uint64_t pairs[2 * N];
#pragma omp simd
  for (int64_t i = 0; i < N; ++i) {
    uint64_t c0 = first + static_cast<uint32_t>(i);
    uint64_t c1 = key.c1;
    uint64_t c2 = key.c2;
    uint64_t c3 = key.c3;
    uint64_t k0 = key.k0;
    uint64_t k1 = key.k1;
#pragma GCC unroll 7
    for (int round = 0; round < kRounds; ++round) {
      const uint64_t p0 = uint64_t{0xD2511F53} * static_cast<uint32_t>(c0);
      const uint64_t p1 = uint64_t{0xCD9E8D57} * static_cast<uint32_t>(c2);
      c0 = (p1 >> 32) ^ c1 ^ k0;
      c1 = p1;
      c2 = (p0 >> 32) ^ c3 ^ k1;
      c3 = p0;
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    pairs[2 * i] = static_cast<uint32_t>(c0) | c1 << 32;
    pairs[2 * i + 1] = static_cast<uint32_t>(c2) | c3 << 32;
  }
  static_assert(std::endian::native == std::endian::little);
  std::memcpy(bits, pairs, sizeof(pairs));
}

// y = (base +) mask * x * scale; `base` may be absent.
void mask_rows(const Dropout& mask, const Tensor& x, const Tensor& base, const Tensor& y, int64_t begin,
               int64_t end) {
  const uint32_t threshold = mask.threshold();
  const float scale = mask.scale();
  const int64_t skip = mask.column0 % 8;
  alignas(64) uint16_t words[kColumns];
  for (int64_t r = begin; r < end; ++r) {
    const RowKey key = row_key(mask, r);
    auto counter = static_cast<uint32_t>(mask.column0 / 8);
    // The first block starts `skip` columns before this view.
    for (int64_t block = -skip; block < x.cols; block += kColumns, counter += kCounters) {
      if (x.cols - block > kColumns / 2) {
        philox_block<kCounters>(counter, key, words);
      } else {
        philox_block<kCounters / 2>(counter, key, words);
      }
      const int64_t from = std::max<int64_t>(block, 0);
      const int64_t to = std::min(block + kColumns, x.cols);
      const uint16_t* bits = words + (from - block);
      const float* in = x.f32() + r * x.ld + from;
      float* out = y.f32() + r * y.ld + from;
      if (base.present()) {
        const float* plus = base.f32() + r * base.ld + from;
#pragma omp simd
        for (int64_t c = 0; c < to - from; ++c)
          out[c] = plus[c] + (bits[c] >= threshold ? in[c] * scale : 0.0F);
      } else {
#pragma omp simd
        for (int64_t c = 0; c < to - from; ++c) out[c] = bits[c] >= threshold ? in[c] * scale : 0.0F;
      }
    }
  }
}

void mask_tokens(const Stream& stream, const Dropout& mask, const Tensor& x, const Tensor& base,
                 const Tensor& y) {
  parallel_for(stream, x.rows, row_grain(x.cols),
               [&](int64_t begin, int64_t end) { mask_rows(mask, x, base, y, begin, end); });
}

void check(const Dropout& mask, const Tensor& x, const Tensor& y) {
  PESC_CHECK(x.rows == y.rows && x.cols == y.cols, x.rows, "x", x.cols, " against ", y.rows, "x", y.cols);
  PESC_CHECK(mask.rate >= 0 && mask.rate < 1, "dropout rate ", mask.rate, " is not in [0, 1)");
  if (mask.rate == 0) return;
  PESC_CHECK(mask.samples.size() == x.rows && mask.positions.size() == x.rows, "identities of ",
             mask.samples.size(), " and ", mask.positions.size(), " tokens for ", x.rows);
  PESC_CHECK(x.dtype == DType::kF32 && y.dtype == DType::kF32 && mask.samples.dtype == DType::kI64 &&
                 mask.positions.dtype == DType::kI32,
             "dropout of ", dtype_name(x.dtype), " into ", dtype_name(y.dtype));
  PESC_CHECK(mask.layer < (1U << 24) && mask.column0 >= 0, "layer ", mask.layer, ", column ", mask.column0);
}

}  // namespace

void dropout(Stream& stream, const Dropout& mask, const Tensor& x, const Tensor& y) {
  if (stream.on_cuda()) return cuda_ops().dropout(stream, mask, x, y);
  check(mask, x, y);
  if (mask.rate == 0) {
    copy(stream, x, y);
  } else {
    mask_tokens(stream, mask, x, {}, y);
  }
}

void dropout_sum(Stream& stream, const Dropout& mask, const Tensor& x, const Tensor& base, const Tensor& y) {
  if (stream.on_cuda()) return cuda_ops().dropout_sum(stream, mask, x, base, y);
  check(mask, x, y);
  check(mask, base, y);
  if (mask.rate > 0) return mask_tokens(stream, mask, x, base, y);
  if (x.data == y.data) return add(stream, base, y);
  copy(stream, base, y);
  add(stream, x, y);
}

void dropout_residual(Stream& stream, const Dropout& mask, const Tensor& x, const Tensor& f,
                      const Tensor& sum, const Tensor& dropped) {
  if (stream.on_cuda()) return cuda_ops().dropout_residual(stream, mask, x, f, sum, dropped);
  check(mask, f, dropped);
  copy(stream, x, sum);
  add(stream, f, sum);
  dropout(stream, mask, f, dropped);
}

}  // namespace pesc
