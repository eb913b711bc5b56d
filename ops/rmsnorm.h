// RMSNorm (Zhang & Sennrich, 2019): y = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + eps), per token.
// T tokens, H hidden. The mean is taken in float32 or better.
#pragma once

#include "ops/dropout.h"
#include "ops/low_rank.h"

namespace pesc {

// With `delta` present, x_out = x + delta is written first and normalised (the fused residual); x_out may
// alias x.
struct RmsNormForward {
  Tensor x;       // [T, H]
  Tensor delta;   // [T, H] or absent
  Tensor x_out;   // [T, H], written when delta is present
  Tensor weight;  // [1, H]
  float eps = 1e-5F;
  Tensor y;               // [T, H], any row stride
  Tensor rstd;            // [1, T]
  DroppedCopy dropped{};  // [T, H] of y
};
void rmsnorm_forward(Stream& stream, const RmsNormForward& args);

// Derives y again from the saved rstd, bitwise what rmsnorm_forward wrote, and its dropped copy. Either may
// be absent.
void rmsnorm_apply(Stream& stream, const Tensor& x, const Tensor& weight, const Tensor& rstd, const Tensor& y,
                   const DroppedCopy& dropped = {});

// The gradient of y is dy + dropped + low_rank, of which the last two may be absent.
struct RmsNormBackward {
  Tensor dy;       // [T, H]; clobbered when `dropped` or `low_rank` is given
  Tensor x;        // [T, H]
  Tensor weight;   // [1, H]
  Tensor rstd;     // [1, T]
  Tensor dx;       // [T, H], added to
  Tensor dweight;  // [1, H], added to; absent when the weight is frozen, as it must be with either term
  DroppedTerm dropped{};   // [T, H]
  LowRankTerm low_rank{};  // [T', H]: of the first T' <= T tokens
};
void rmsnorm_backward(Stream& stream, const RmsNormBackward& args);

}  // namespace pesc
