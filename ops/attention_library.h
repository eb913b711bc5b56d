// Causal attention by cuDNN (ops/attention_cudnn.cc), or by no library (ops/attention_no_cudnn.cc), for
// ops/attention.cu.
//
// The calls return false where cuDNN does not apply; ops/attention.cu then uses its own kernels. cuDNN needs
// BF16, head_dim a multiple of 8 up to 128, kv_len == q_len in every segment, and one row stride for q, k and
// v. The decision depends on the shape, the segments and the arena, and is taken for forward and backward
// together at the first forward of a shape.
//
// lse has cuDNN's own layout, from the start of the tensor's memory and whatever its row stride: [B, HQ, L]
// for B packed sequences of one length L that is a multiple of 128, else [Q, HQ]. Only
// library_attention_backward can read it.
#pragma once

#include <cstdint>
#include <string>

#include "ops/attention.h"

namespace pesc::cuda {

// Whether this pesc was built with cuDNN.
[[nodiscard]] bool library_attention_built();

[[nodiscard]] bool library_attention_forward(Stream& stream, const AttentionForward& args, Arena& scratch);
[[nodiscard]] bool library_attention_backward(Stream& stream, const AttentionBackward& args, Arena& scratch);

// Bytes of scratch of either cuDNN call for `tokens` tokens in sequences of up to `length` tokens: enough for
// the backward of as many sequences at a time as fit kLibraryBackwardBytes, and at least of one. 0 for a
// head_dim that cuDNN does not take.
inline constexpr int64_t kLibraryBackwardBytes = int64_t{1120} << 20;
inline constexpr int64_t kLibrarySlackBytes = int64_t{32} << 20;  // added for what is not counted
inline constexpr int64_t kLibraryMaxHeadDim = 128;
[[nodiscard]] int64_t library_sequence_bytes(const AttentionShape& shape, int64_t length);
[[nodiscard]] int64_t library_workspace_bytes(const AttentionShape& shape, int64_t tokens, int64_t length);

// library_workspace_bytes where this build calls cuDNN, or where it has no CUDA and so can only plan for one
// that has; else 0.
[[nodiscard]] int64_t library_attention_scratch_bytes(const AttentionShape& shape, int64_t tokens,
                                                      int64_t length);

// For logs, of a stream that has computed attention: "cuDNN 9.14.0, 2 plans, 64 calls", and why the last
// batch that cuDNN refused was refused.
[[nodiscard]] std::string library_attention_report(const Stream& stream);

}  // namespace pesc::cuda
