// The dropout masks of ops/dropout.h inside kernels, bit for bit those of the CPU. One Philox call gives the
// mask of eight columns. REQUIRES: a pack of N = 4 or 8 columns starts at a multiple of N; otherwise N = 1.
#pragma once

#include "ops/core/philox.h"
#include "ops/core/vectors.cuh"
#include "ops/dropout.h"

namespace pesc::cuda {

// The constants of a mask, passed to kernels by value. A threshold of 0 keeps every element.
struct Mask {
  const int64_t* samples = nullptr;
  const int32_t* positions = nullptr;
  uint32_t threshold = 0;
  float scale = 1;
  uint32_t layer_site = 0, key0 = 0, key1 = 0;
  int64_t column0 = 0;

  Mask() = default;
  explicit Mask(const Dropout& d)
      : threshold(d.threshold()),
        scale(d.scale()),
        layer_site(d.layer << 8 | static_cast<uint32_t>(d.site)),
        key0(static_cast<uint32_t>(d.seed)),
        key1(d.step ^ static_cast<uint32_t>(d.seed >> 32) * 0x9E3779B9U),
        column0(d.column0) {
    if (threshold == 0) return;
    samples = d.samples.i64();
    positions = d.positions.i32();
  }
};

// The mask of one row (token).
class RowMask {
 public:
  __device__ __forceinline__ RowMask(const Mask& mask, int64_t row) : mask_(mask) {
    if (mask.threshold == 0) return;
    const auto sample = static_cast<uint64_t>(mask.samples[row]);
    position_ = static_cast<uint32_t>(mask.positions[row]);
    sample_ = static_cast<uint32_t>(sample);
    key0_ = mask.key0 ^ static_cast<uint32_t>(sample >> 32) * 0x85EBCA6BU;
  }
  // values *= mask * scale, for the N columns of the tensor from `column` on.
  template <int N>
  __device__ __forceinline__ void apply(int64_t column, float (&values)[N]) const {
    static_assert(N == 1 || N == 4 || N == 8);
    if (mask_.threshold == 0) return;
    const int64_t at = mask_.column0 + column;
    const PhiloxCounter words =
        philox<7>({static_cast<uint32_t>(at / 8), position_, sample_, mask_.layer_site}, {key0_, mask_.key1});
    if constexpr (N == 8) {
#pragma unroll
      for (int j = 0; j < 8; ++j)
        values[j] = kept(words[static_cast<size_t>(j / 2)], j % 2) ? values[j] * mask_.scale : 0.0F;
    } else if constexpr (N == 4) {
      const bool second = at % 8 >= 4;
      const uint32_t low = second ? words[2] : words[0];
      const uint32_t high = second ? words[3] : words[1];
#pragma unroll
      for (int j = 0; j < 4; ++j)
        values[j] = kept(j < 2 ? low : high, j % 2) ? values[j] * mask_.scale : 0.0F;
    } else {
      const auto i = static_cast<int>(at % 8);
      const uint32_t word = i < 4 ? (i < 2 ? words[0] : words[1]) : (i < 6 ? words[2] : words[3]);
      values[0] = kept(word, i % 2) ? values[0] * mask_.scale : 0.0F;
    }
  }

 private:
  __device__ __forceinline__ bool kept(uint32_t word, int half) const {
    return (half == 0 ? word & 0xFFFFU : word >> 16) >= mask_.threshold;
  }
  const Mask& mask_;
  uint32_t position_ = 0, sample_ = 0, key0_ = 0;
};

// with_pack, but with single elements where the mask's column0 is not a multiple of the pack.
template <class T, class F>
void with_masked_pack(const Dropout& mask, std::initializer_list<Tensor> tensors, F f) {
  if (mask.column0 % kPack<T> != 0) return f(std::integral_constant<int, 1>{});
  with_pack<T>(tensors, f);
}

// Checks the rate, and the shapes and types of samples and positions for `rows` tokens.
inline void check_mask(const Dropout& mask, int64_t rows) {
  PESC_CHECK(mask.rate >= 0 && mask.rate < 1, "dropout rate ", mask.rate, " is not in [0, 1)");
  if (mask.rate == 0) return;
  PESC_CHECK(mask.samples.size() == rows && mask.positions.size() == rows, "identities of ",
             mask.samples.size(), " and ", mask.positions.size(), " tokens for ", rows);
  PESC_CHECK(mask.samples.dtype == DType::kI64 && mask.positions.dtype == DType::kI32, "identities ",
             dtype_name(mask.samples.dtype), " and ", dtype_name(mask.positions.dtype));
  PESC_CHECK(mask.layer < (1U << 24) && mask.column0 >= 0, "layer ", mask.layer, ", column ", mask.column0);
}

}  // namespace pesc::cuda
