// cuDNN frontend graphs for causal attention, forward and deterministic backward, for ops/attention_cudnn.cc.
#pragma once

#include <cudnn_frontend.h>

#include <compare>
#include <cstdint>
#include <memory>

namespace pesc::cuda {

// The ids of the tensors of a graph. Those from kLengthsQ on exist in ragged graphs only and are int32:
// kLengthsQ and kLengthsKv [batch] in tokens; the offsets [batch + 1] in elements from the start of the
// tensor.
enum AttentionUid : int64_t {
  kQ = 1,
  kK,
  kV,
  kOut,
  kStats,
  kDout,
  kDq,
  kDk,
  kDv,
  kLengthsQ,
  kLengthsKv,
  kOffsetsQ,
  kOffsetsK,
  kOffsetsV,
  kOffsetsOut,
  kOffsetsStats
};

// `batch` sequences of `length` tokens. ld_qkv is the row stride of q, k, v and their gradients, ld_out that
// of out and its gradient, in elements. The log-sum-exps are [batch, q_heads, length] in float32. Ragged:
// sequences of 0 to `length` tokens at the given offsets; the log-sum-exps are [tokens, q_heads].
struct AttentionGraphShape {
  int64_t batch, length, q_heads, kv_heads, head_dim, ld_qkv, ld_out;
  float scale;
  bool ragged;
  auto operator<=>(const AttentionGraphShape&) const = default;
};

// The graphs are returned before they are built; building one reports what cuDNN does not support.
[[nodiscard]] std::shared_ptr<cudnn_frontend::graph::Graph> attention_forward_graph(
    const AttentionGraphShape& shape);
[[nodiscard]] std::shared_ptr<cudnn_frontend::graph::Graph> attention_backward_graph(
    const AttentionGraphShape& shape);

}  // namespace pesc::cuda
