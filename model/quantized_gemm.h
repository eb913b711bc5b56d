// The GEMMs with a quantised frozen weight: what linear_forward and linear_backward_input of
// model/frozen_linear.h do with FP8 and NF4.
//
// FrozenGemm::kDequantized: the weight is dequantised to the compute type in scratch, with LoRA's B beside it
// where the input has LoRA's activations, and multiplied as a plain one. The CPU does so tile by tile.
//
// FrozenGemm::kFP8: W ~ diag(s) Q, with one copy Q for both directions.
//   forward:  y  = diag(sx) (Xq Q^T) diag(s)    Xq, sx: x quantised, a scale for each token
//   backward: dx = diag(sg) (Gq Q)              Gq, sg: dy diag(s) quantised
// The scales of outputs lie along the sum of dx, so they are multiplied into dy before it is quantised. Those that are
// made here are powers of two, so that this rounds nothing; those of a folder may be any. The gradient is thus that of
// the weights which the forward used. LoRA's product B a and the residual are added in the compute type. Both
// directions use fast accumulation (ops/fp8_gemm.h says what it costs). Xq and Gq may come from the operation that made
// x or dy (Fp8Rows), which saves reading x and dy once more.
#pragma once

#include "model/frozen_linear.h"

namespace pesc {

// to [out, n] in the compute type, written with columns [col, col + n) of the weight. REQUIRES: a quantised
// format.
void dequantize_frozen(Stream& stream, const FrozenLinear& w, int64_t col, const Tensor& to);
// As linear_forward, linear_backward_input, linear_scratch_bytes and the members of FrozenLinear. REQUIRES: a
// quantised format.
void quantized_forward(Stream& stream, const FrozenLinear& w, const ConcatView& x, const Tensor& y,
                       Arena& scratch, const Tensor& residual, const Fp8Rows& codes);
void quantized_backward_input(Stream& stream, const FrozenLinear& w, const Tensor& dy, const ConcatView& dx,
                              Arena& scratch, const Fp8Rows& codes);
[[nodiscard]] Fp8Rows quantized_input_codes(const FrozenLinear& w, Arena& scratch, int64_t tokens);
[[nodiscard]] Fp8Rows quantized_output_grad_codes(const FrozenLinear& w, Arena& scratch, int64_t tokens);
[[nodiscard]] int64_t quantized_scratch_bytes(const Device& device, const FrozenLinear& w, int64_t tokens);

}  // namespace pesc
