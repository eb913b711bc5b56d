// Causal softmax attention with grouped query heads over packed sequences of any length, without padding.
//   s = scale * q k^T,  query i of a segment attends to keys 0 .. i + (kv_len - q_len);  o = softmax(s) v
// Deterministic.
//
// Letters: Q query tokens, K key tokens, HQ and HK query and KV heads (HK divides HQ; query head h reads KV
// head h / (HQ / HK)), D head_dim.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "ops/core/arena.h"

namespace pesc {

// One sequence: queries [q_begin, q_begin + q_len), keys [kv_begin, kv_begin + kv_len). The queries are the
// last q_len positions of the keys. REQUIRES: kv_len >= q_len >= 1. In training the ranges are equal; with a
// KV cache the keys begin earlier.
struct AttentionSegment {
  int32_t q_begin = 0;
  int32_t q_len = 0;
  int32_t kv_begin = 0;
  int32_t kv_len = 0;
};

struct AttentionShape {
  int64_t q_heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  float scale = 0;  // 1/sqrt(head_dim)
};

struct AttentionForward {
  AttentionShape shape;
  std::span<const AttentionSegment> segments;  // host memory
  Tensor q;                                    // [Q, HQ * D], any row stride
  Tensor k;                                    // [K, HK * D], any row stride
  Tensor v;                                    // [K, HK * D], any row stride
  Tensor out;                                  // [Q, HQ * D]; the rows of the segments are written
  // [HQ, Q] F32, optional: written with the log-sum-exp of each row's scaled scores. Only attention_backward
  // of the same segments on the same device may read it: the order of its elements is up to the device.
  Tensor lse;
};
void attention_forward(Stream& stream, const AttentionForward& args, Arena& scratch);

struct AttentionBackward {
  AttentionShape shape;
  std::span<const AttentionSegment> segments;  // kv_len == q_len
  Tensor q, k, v, out, lse;                    // as in the forward
  Tensor dout;                                 // [Q, HQ * D]
  Tensor dq, dk, dv;  // like q, k, v, any row stride; the rows of the segments are written
};
void attention_backward(Stream& stream, const AttentionBackward& args, Arena& scratch);

// Bytes that either call may take from `scratch` for `tokens` queries in total, in sequences of up to
// `max_kv` keys. `activations` is the element type of q (F32 on the CPU).
[[nodiscard]] int64_t attention_scratch_bytes(const Device& device, const AttentionShape& shape,
                                              int64_t tokens, int64_t max_kv,
                                              DType activations = DType::kF32);

// The implementation that this stream uses, for logs: "cuDNN 9.14.0, 2 plans", "own kernels: ...".
[[nodiscard]] std::string attention_library(const Stream& stream);

}  // namespace pesc
