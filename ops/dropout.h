// Counter-based dropout. The mask of an element is a pure function of (seed, step, layer, site, sample,
// position in the sample, column), so that it does not depend on layout, padding or packing. One call of
// Philox4x32-7 (ops/core/philox.h) gives 16 bits to each of eight adjacent columns: the low (even column) or
// high (odd column) half of word column % 8 / 2 of
//   counter = {column / 8, position, low32(sample), layer << 8 | site}        layer < 2^24
//   key     = {low32(seed) ^ high32(sample) * 0x85EBCA6B, step ^ high32(seed) * 0x9E3779B9}    (mod 2^32)
// An element is kept when its 16 bits >= threshold = round(rate * 2^16), at most 2^16 - 1, and is then scaled
// by 2^16 / (2^16 - threshold) in float32: the rate is met to 2^-17, and the expectation exactly.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "ops/core/device.h"

namespace pesc {

// The inputs with a mask of their own: q, k and v share one, gate and up share one, and so do all experts of
// a token.
enum class DropoutSite : uint32_t { kQkv = 0, kO = 1, kGateUp = 2, kDown = 3, kAdapter = 4 };

struct Dropout {
  float rate = 0;  // in [0, 1); 0: no dropout, and the fields below are not read
  uint64_t seed = 0;
  uint32_t step = 0;
  uint32_t layer = 0;
  DropoutSite site = DropoutSite::kQkv;
  Tensor samples;       // [1, T] I64
  Tensor positions;     // [1, T] I32
  int64_t column0 = 0;  // the global column of local column 0, for inputs that are split over tp

  // The mask of rows [begin, end).
  [[nodiscard]] Dropout rows(int64_t begin, int64_t end) const {
    Dropout some = *this;
    some.samples = samples.col_range(begin, end);
    some.positions = positions.col_range(begin, end);
    return some;
  }
  [[nodiscard]] uint32_t threshold() const {
    return std::min<uint32_t>(static_cast<uint32_t>(std::lround(static_cast<double>(rate) * 65536.0)), 65535);
  }
  [[nodiscard]] float scale() const { return 65536.0F / (65536.0F - static_cast<float>(threshold())); }
};

// A second output of an operation: y = dropout(its output). Optional: unused when `y` has no data.
struct DroppedCopy {
  Dropout mask;
  Tensor y;
};
// A term mask * x * scale that an operation adds to its input first. Optional: unused when `x` has no data.
struct DroppedTerm {
  Dropout mask;
  Tensor x;
};

// y [T, C] = mask * x * scale is written; y may alias x. With rate = 0 this copies x (or does nothing when
// aliased).
void dropout(Stream& stream, const Dropout& mask, const Tensor& x, const Tensor& y);
// y [T, C] = base + mask * x * scale; y may alias base or x.
void dropout_sum(Stream& stream, const Dropout& mask, const Tensor& x, const Tensor& base, const Tensor& y);
// y [T, C] += mask * x * scale: the backward, added to the input's gradient.
inline void dropout_add(Stream& stream, const Dropout& mask, const Tensor& x, const Tensor& y) {
  dropout_sum(stream, mask, x, y, y);
}
// Writes sum [T, C] = x + f, the residual stream past the adapters, and dropped [T, C] = dropout(f), the
// adapters' input. dropped may alias f.
void dropout_residual(Stream& stream, const Dropout& mask, const Tensor& x, const Tensor& f,
                      const Tensor& sum, const Tensor& dropped);

}  // namespace pesc
