// Causal attention by a library, for ops/attention.cu: cuDNN (ops/attention_cudnn.cc), or none
// (ops/attention_no_cudnn.cc).
//
// It takes what training batches are: BF16, head_dim a multiple of 8 up to 128, keys that are the queries'
// own tokens, rows as far apart in q, k and v. All else is the own kernels' (false). Its lse holds, at the
// start of the tensor's memory and whatever the row stride, [B, HQ, L] for B sequences of one length L that
// is a multiple of 128 laid end to end, and [Q, HQ] for any others. Only its backward can read that: whether
// it takes a call depends on the shape, the segments and the arena, and is settled for forward and backward
// together at the first forward of a shape.
#pragma once

#include <cstdint>
#include <string>

#include "ops/attention.h"

namespace pesc::cuda {

[[nodiscard]] bool library_attention_forward(Stream& stream, const AttentionForward& args, Arena& scratch);
[[nodiscard]] bool library_attention_backward(Stream& stream, const AttentionBackward& args, Arena& scratch);

// Scratch of either call of cuDNN's for `tokens` tokens in sequences of up to `length`, bytes: the backward
// of as many sequences as kLibraryBackwardBytes holds, one at least. 0 for a head_dim that it does not take.
inline constexpr int64_t kLibraryBackwardBytes = int64_t{1120} << 20;
inline constexpr int64_t kLibrarySlackBytes = int64_t{32} << 20;  // beside what is counted, of either call
inline constexpr int64_t kLibraryMaxHeadDim = 128;
[[nodiscard]] int64_t library_sequence_bytes(const AttentionShape& shape, int64_t length);
[[nodiscard]] int64_t library_workspace_bytes(const AttentionShape& shape, int64_t tokens, int64_t length);

// That, where this build calls cuDNN, or where it has no CUDA at all and can only plan for one that has; else
// 0.
[[nodiscard]] int64_t library_attention_scratch_bytes(const AttentionShape& shape, int64_t tokens,
                                                      int64_t length);

// Of a stream that has computed attention, for records: "cuDNN 9.14.0, 2 plans, 64 calls", and the last batch
// that it could not take, and why.
[[nodiscard]] std::string library_attention_report(const Stream& stream);

}  // namespace pesc::cuda
