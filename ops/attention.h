// Causal softmax attention with grouped query heads over sequences of any length laid end to end, no padding.
//   s = scale * q k^T, masked so that query i of a segment sees keys 0 .. i + (kv_len - q_len);  o =
//   softmax(s) v
// Q query tokens, K key tokens, HQ and HK query and KV heads (HK divides HQ; query head h reads KV head h /
// (HQ/HK)), D head_dim. Deterministic.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "ops/core/arena.h"

namespace pesc {

// Queries [q_begin, q_begin + q_len) of one sequence read keys [kv_begin, kv_begin + kv_len), kv_len >= q_len
// >= 1: the queries are the last q_len positions. In training both ranges are the same; with a KV cache the
// keys are longer.
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
  Tensor out;                                  // [Q, HQ * D], rows of the segments are written
  // [HQ, Q] log-sum-exp of each row's scaled scores, for the backward of the same segments alone: a device
  // may keep it in another order in the memory from the first to the last element. Absent when not needed.
  Tensor lse;
};
void attention_forward(Stream& stream, const AttentionForward& args, Arena& scratch);

struct AttentionBackward {
  AttentionShape shape;
  std::span<const AttentionSegment> segments;  // kv_len == q_len
  Tensor q, k, v, out, lse;                    // as in the forward
  Tensor dout;                                 // [Q, HQ * D]
  Tensor dq, dk, dv;  // like q, k, v; rows of the segments are written, any row stride
};
void attention_backward(Stream& stream, const AttentionBackward& args, Arena& scratch);

// Scratch bytes that either call may take on the device for `tokens` queries in all, in sequences of up to
// `max_kv` keys; `activations` is the element type of q (F32 on the CPU).
[[nodiscard]] int64_t attention_scratch_bytes(const Device& device, const AttentionShape& shape,
                                              int64_t tokens, int64_t max_kv,
                                              DType activations = DType::kF32);

// What computes attention on this stream, for records: "cuDNN 9.14.0, 2 plans", "own kernels: ...".
[[nodiscard]] std::string attention_library(const Stream& stream);

}  // namespace pesc
