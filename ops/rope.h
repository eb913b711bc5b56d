// Rotary position embedding (Su et al., 2021) in the Hugging Face layout: column i of a head is paired with
// column i + head_dim/2. T tokens, D head_dim.
#pragma once

#include <cstdint>
#include <span>

#include "ops/core/device.h"

namespace pesc {

// Writes cos and sin [positions, D/2] F32 from the D/2 inverse frequencies (radians per position, in host
// memory). The angle p * inv_freq[i] of position p is computed in float64.
void rope_table(Stream& stream, std::span<const double> inv_freq, const Tensor& cos, const Tensor& sin);

enum class RopeDirection { kForward, kBackward };  // the backward is the rotation by the negative angle

// Rotates x [T, heads * D] in place. positions [1, T] I32. REQUIRES: every position is below cos.rows.
void rope(Stream& stream, const Tensor& x, const Tensor& positions, const Tensor& cos, const Tensor& sin,
          RopeDirection direction);

}  // namespace pesc
