// The adapter experts of PESC (Wu et al., 2024; model/README.md), grouped by expert:
//   A_e(f) = scale * Up_e gelu(Down_e f);  out[row] += sum over the row's local experts e of w_e A_e(f[row])
// with the exact (erf) GELU. The caller has applied dropout to f. Sums are taken in expert order.
//
// Letters: R rows, H hidden, d adapter size, E local experts, M assignments (row, expert) sorted by expert, k
// expert choices per row.
#pragma once

#include <cstdint>
#include <span>

#include "ops/core/arena.h"

namespace pesc {

struct AdapterGroups {
  std::span<const int64_t> offsets;  // [E + 1] into row and choice; host memory
  std::span<const int32_t> row;      // [M] strictly rising within an expert
  std::span<const int32_t> choice;   // [M] index of the assignment's weight in the flat [R * k] weights
};

struct AdapterForward {
  AdapterGroups groups;
  Tensor f;             // [R, H]
  Tensor topk_weights;  // [R, k] F32
  Tensor down;          // [E * d, H]: expert e in rows [e * d, (e + 1) * d)
  Tensor up;            // [E * H, d]: expert e in rows [e * H, (e + 1) * H)
  float scale = 1;
  Tensor pre_act;  // [M, d] written with Down_e f, before GELU; the backward needs it
  Tensor out;      // [R, H] added to
};
void adapter_forward(Stream& stream, const AdapterForward& args, Arena& scratch);

struct AdapterBackward {
  AdapterGroups groups;
  Tensor f, topk_weights, down, up;  // as in the forward
  float scale = 1;
  Tensor pre_act;        // [M, d] from the forward
  Tensor dout;           // [R, H]
  Tensor df;             // [R, H] written; zero for rows without an assignment
  Tensor dtopk_weights;  // [R, k] written; 0 for choices without an assignment here
  Tensor ddown;          // [E * d, H] added to
  Tensor dup;            // [E * H, d] added to
};
void adapter_backward(Stream& stream, const AdapterBackward& args, Arena& scratch);

// Recomputes `pre_act` [M, d], bit for bit as adapter_forward wrote it. `out` is not used.
void adapter_pre_act(Stream& stream, const AdapterForward& args, Arena& scratch);

// Bytes that any call above may take from `scratch`. `activations` is the element type of f (F32 on the CPU).
[[nodiscard]] int64_t adapter_scratch_bytes(const Device& device, int64_t rows, int64_t top_k, int64_t hidden,
                                            int64_t adapter_dim, DType activations = DType::kF32);

}  // namespace pesc
