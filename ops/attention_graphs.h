// Graphs of cuDNN's frontend for causal attention, forward and deterministic backward
// (ops/attention_cudnn.cc).
#pragma once

#include <cudnn_frontend.h>

#include <compare>
#include <cstdint>
#include <memory>

namespace pesc::cuda {

// Names of tensors towards the library. The last ones are of ragged graphs, in int32: kLengthsQ and
// kLengthsKv [batch], tokens; the others [batch + 1], elements from a tensor's beginning to each sequence's.
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

// `batch` sequences of `length` tokens; rows of q, k, v (and their gradients) and of out (and its) so many
// elements apart. The log-sum-exps are [batch, q_heads, length] in float32. Ragged: sequences of up to
// `length` tokens (none as well) that stand where offsets say; the log-sum-exps are [tokens, q_heads].
struct AttentionGraphShape {
  int64_t batch, length, q_heads, kv_heads, head_dim, ld_qkv, ld_out;
  float scale;
  bool ragged;
  auto operator<=>(const AttentionGraphShape&) const = default;
};

// Not yet built: what is wrong with a shape, building it says.
[[nodiscard]] std::shared_ptr<cudnn_frontend::graph::Graph> attention_forward_graph(
    const AttentionGraphShape& shape);
[[nodiscard]] std::shared_ptr<cudnn_frontend::graph::Graph> attention_backward_graph(
    const AttentionGraphShape& shape);

}  // namespace pesc::cuda
