// Dropout by counter: the mask of an element is a pure function of (seed, step, layer, site, sample, position
// in the sample, column), so that it does not depend on layout, padding or packing. Bits: word column % 4 of
// Philox4x32-10 (ops/core/philox.h) with
//   counter = {column / 4, position, low32(sample), layer << 8 | site}        layer < 2^24
//   key     = {low32(seed) ^ high32(sample) * 0x85EBCA6B, step ^ high32(seed) * 0x9E3779B9}    (mod 2^32)
// An element is kept when its word >= round(rate * 2^32), and is then scaled by 1 / (1 - rate) in float32.
#pragma once

#include <cstdint>

#include "ops/core/device.h"

namespace pesc {

// The inputs that have a mask of their own. q, k, v share one, gate and up share one, all experts of a token
// share one.
enum class DropoutSite : uint32_t { kQkv = 0, kO = 1, kGateUp = 2, kDown = 3, kAdapter = 4 };

struct Dropout {
  float rate = 0;  // 0: nothing is dropped and nothing is computed
  uint64_t seed = 0;
  uint32_t step = 0;
  uint32_t layer = 0;
  DropoutSite site = DropoutSite::kQkv;
  Tensor samples;       // [1, T] I64
  Tensor positions;     // [1, T] I32
  int64_t column0 = 0;  // global column of column 0, for inputs that are cut over tp
};

// y [T, C] = mask * x / (1 - rate), written; y may alias x. With rate = 0 a copy (nothing when aliased).
void dropout(Stream& stream, const Dropout& mask, const Tensor& x, const Tensor& y);
// y [T, C] += mask * x / (1 - rate): the backward, added to the input's gradient.
void dropout_add(Stream& stream, const Dropout& mask, const Tensor& x, const Tensor& y);

}  // namespace pesc
