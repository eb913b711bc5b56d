// The adapter experts of PESC (model/README.md), grouped by expert:
//   A_e(f) = scale * Up_e gelu(Down_e f),  out_row = sum over the row's experts here of w * A_e(f_row), exact
//   (erf) GELU.
// R rows, H hidden, d adapter size, E local experts, M assignments sorted by expert, k weight slots per row.
// `f` comes masked by dropout already. Sums are taken in expert order.
#pragma once

#include <cstdint>
#include <span>

#include "ops/core/arena.h"

namespace pesc {

struct AdapterGroups {
  std::span<const int64_t> offsets;  // [E + 1] into row and slot; host memory
  std::span<const int32_t> row;      // [M] rising within an expert
  std::span<const int32_t> slot;     // [M] index into the flat [R * k] weights
};

struct AdapterForward {
  AdapterGroups groups;
  Tensor f;        // [R, H]
  Tensor weights;  // [R, k] F32
  Tensor down;     // [E * d, H]: expert e in rows [e * d, (e + 1) * d)
  Tensor up;       // [E * H, d]: expert e in rows [e * H, (e + 1) * H)
  float scale = 1;
  Tensor hidden;  // [M, d] written: Down_e f before GELU, kept for the backward
  Tensor out;     // [R, H] added to
};
void adapter_forward(Stream& stream, const AdapterForward& args, Arena& scratch);

struct AdapterBackward {
  AdapterGroups groups;
  Tensor f, weights, down, up;  // as in the forward
  float scale = 1;
  Tensor hidden;    // [M, d] from the forward
  Tensor dout;      // [R, H]
  Tensor df;        // [R, H] written; zero for rows without an assignment
  Tensor dweights;  // [R, k] written; 0 for slots without an assignment here
  Tensor ddown;     // [E * d, H] added to
  Tensor dup;       // [E * H, d] added to
};
void adapter_backward(Stream& stream, const AdapterBackward& args, Arena& scratch);

// `hidden` again, bitwise what the forward wrote (for rows that were not kept).
void adapter_hidden(Stream& stream, const AdapterForward& args, Arena& scratch);

// `activations` is the element type of f (F32 on the CPU).
[[nodiscard]] int64_t adapter_scratch_bytes(const Device& device, int64_t rows, int64_t top_k, int64_t hidden,
                                            int64_t adapter_dim, DType activations = DType::kF32);

}  // namespace pesc
