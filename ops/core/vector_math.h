// Elementary functions in float32 without branches or calls, which the compiler vectorises inside
// `#pragma omp simd` loops; always inlined, because at -O2 the longer ones would stay calls and their loops
// scalar. NaN gives NaN. Tested against double precision.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace pesc {
namespace detail {

// x = n log 2 + r, |r| <= log(2)/2; exp(r) by a polynomial fitted at Chebyshev nodes (error 1e-8); times 2^n
// in two factors, each of a normal exponent, because n runs from -151 to 128. F is float or a vector of
// floats; I and U the signed and unsigned integers of its size.
template <class F, class I, class U>
[[nodiscard, gnu::always_inline]] inline F exponential(F x) {
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const F high = F{} + 89.0F;
  const F low = F{} - 105.0F;
  x = x > high ? high : x;
  x = x < low ? low : x;
  const F shifted = x * 1.44269504F + kRound;
  const F n = shifted - kRound;
  const U bits = std::bit_cast<U>(shifted) - std::bit_cast<uint32_t>(kRound);
  F r = x - n * 0.693145752F;  // log 2 in two parts; the first times n is exact
  r = r - n * 1.42860677e-6F;
  F p = r * 0.00139261818F + 0.00836317763F;
  p = p * r + 0.0416665546F;
  p = p * r + 0.166665770F;
  p = p * r + 0.5F;
  p = (p * r) * r + r + 1.0F;
  const U half = std::bit_cast<U>(std::bit_cast<I>(bits) >> 1);
  return p * std::bit_cast<F>((half + 127U) << 23) * std::bit_cast<F>((bits - half + 127U) << 23);
}

}  // namespace detail

// exp(x) within 2 units in the last place; 0 below the subnormal numbers, infinity above the largest float.
[[nodiscard, gnu::always_inline]] inline float fast_exp(float x) {
  return detail::exponential<float, int32_t, uint32_t>(x);
}

[[nodiscard, gnu::always_inline]] inline float sigmoid(float x) {
  return 1.0F / (1.0F + fast_exp(-x));
}

[[nodiscard, gnu::always_inline]] inline float silu(float x) {
  return x / (1.0F + fast_exp(-x));
}

// The normal distribution: its density, its integral up to x (`cdf`), and what both share. The upper tail is
// t h(t) exp(-a^2/2) with a = |x|, t = 1 / (1 + 0.27 a) and h a polynomial fitted at Chebyshev nodes
// (relative error 3e-8), so that the lower tail keeps its relative precision.
struct Normal {
  float density;
  float tail;  // the integral from |x| to infinity
};
[[nodiscard, gnu::always_inline]] inline Normal normal(float x) {
  const float a = std::abs(x);
  const float t = 1.0F / std::fma(0.27F, a, 1.0F);
  float h = 0.0292058334F;
  h = std::fma(h, t, -0.127722557F);
  h = std::fma(h, t, 0.172436097F);
  h = std::fma(h, t, -0.0723445625F);
  h = std::fma(h, t, 0.110054217F);
  h = std::fma(h, t, 0.0710775825F);
  h = std::fma(h, t, 0.102063550F);
  h = std::fma(h, t, 0.107507093F);
  h = std::fma(h, t, 0.107722758F);
  // a^2 does not fit into a float, and its rounding error would be a relative error of the exponential.
  const float b = a > 20.0F ? 20.0F : a;
  const float square = b * b;
  const float rest = std::fma(b, b, -square);
  const float e = fast_exp(-0.5F * square) * std::fma(-0.5F, rest, 1.0F);
  return {0.398942280F * e, t * h * e};
}
[[nodiscard, gnu::always_inline]] inline float normal_cdf(float x, const Normal& n) {
  return x > 0.0F ? 1.0F - n.tail : n.tail;
}

// Exact GELU, x Phi(x), and its derivative Phi(x) + x phi(x).
[[nodiscard, gnu::always_inline]] inline float gelu(float x) {
  return x * normal_cdf(x, normal(x));
}
[[nodiscard, gnu::always_inline]] inline float gelu_grad(float x) {
  const Normal n = normal(x);
  return std::fma(x, n.density, normal_cdf(x, n));
}

}  // namespace pesc
