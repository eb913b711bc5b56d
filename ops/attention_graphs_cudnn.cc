// Causal attention as graphs of cuDNN's frontend: see ops/attention_graphs.h.
//
// g++ 12 takes an empty vector in the frontend's headers for one of 2^64 bytes.
#pragma GCC diagnostic ignored "-Wstringop-overflow"
#include "ops/attention_graphs.h"

namespace pesc::cuda {
namespace {

namespace fe = cudnn_frontend;
using fe::graph::Graph;
using fe::graph::Tensor_attributes;
using Shape = AttentionGraphShape;
using TensorPtr = std::shared_ptr<Tensor_attributes>;

// Lengths and offsets of a ragged graph; without any, of one that is not.
struct Places {
  TensorPtr lengths_q, lengths_kv, q, k, v, out, stats;

  Places(Graph& graph, const Shape& s) {
    if (!s.ragged) return;
    lengths_q = numbers(graph, kLengthsQ, s.batch);
    lengths_kv = numbers(graph, kLengthsKv, s.batch);
    q = numbers(graph, kOffsetsQ, s.batch + 1);
    k = numbers(graph, kOffsetsK, s.batch + 1);
    v = numbers(graph, kOffsetsV, s.batch + 1);
    out = numbers(graph, kOffsetsOut, s.batch + 1);
    stats = numbers(graph, kOffsetsStats, s.batch + 1);
  }

 private:
  static TensorPtr numbers(Graph& graph, AttentionUid uid, int64_t count) {
    return graph.tensor(Tensor_attributes()
                            .set_uid(uid)
                            .set_data_type(fe::DataType_t::INT32)
                            .set_dim({count, 1, 1, 1})
                            .set_stride({1, 1, 1, 1}));
  }
};

// The tensor of so many heads whose rows are `ld` elements apart.
void describe(Tensor_attributes& t, AttentionUid uid, const Shape& s, int64_t heads, int64_t ld,
              const TensorPtr& offsets) {
  t.set_uid(uid)
      .set_dim({s.batch, heads, s.length, s.head_dim})
      .set_stride({s.length * ld, s.head_dim, ld, 1});
  if (offsets != nullptr) t.set_ragged_offset(offsets);
}

TensorPtr input(Graph& graph, AttentionUid uid, const Shape& s, int64_t heads, int64_t ld,
                const TensorPtr& offsets) {
  Tensor_attributes t;
  describe(t, uid, s, heads, ld, offsets);
  return graph.tensor(t);
}

void output(const TensorPtr& t, AttentionUid uid, const Shape& s, int64_t heads, int64_t ld,
            const TensorPtr& offsets) {
  describe(*t, uid, s, heads, ld, offsets);
  t->set_output(true);
}

void describe_stats(Tensor_attributes& t, const Shape& s, const TensorPtr& offsets) {
  t.set_uid(kStats).set_data_type(fe::DataType_t::FLOAT).set_dim({s.batch, s.q_heads, s.length, 1});
  if (offsets == nullptr) {
    t.set_stride({s.q_heads * s.length, s.length, 1, 1});
  } else {
    t.set_stride({s.q_heads * s.length, 1, s.q_heads, 1}).set_ragged_offset(offsets);
  }
}

template <class Attributes>
Attributes& causal(Attributes& attributes, const Shape& s, const Places& at) {
  attributes.set_attn_scale(s.scale)
      .set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
      .set_diagonal_band_right_bound(0);
  if (s.ragged) attributes.set_padding_mask(true).set_seq_len_q(at.lengths_q).set_seq_len_kv(at.lengths_kv);
  return attributes;
}

std::shared_ptr<Graph> new_graph() {
  auto graph = std::make_shared<Graph>();
  graph->set_io_data_type(fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  return graph;
}

}  // namespace

std::shared_ptr<Graph> attention_forward_graph(const Shape& s) {
  auto graph = new_graph();
  const Places at(*graph, s);
  fe::graph::SDPA_attributes attributes;
  attributes.set_name("attention_forward").set_generate_stats(true);
  const auto [out, stats] = graph->sdpa(
      input(*graph, kQ, s, s.q_heads, s.ld_qkv, at.q), input(*graph, kK, s, s.kv_heads, s.ld_qkv, at.k),
      input(*graph, kV, s, s.kv_heads, s.ld_qkv, at.v), causal(attributes, s, at));
  output(out, kOut, s, s.q_heads, s.ld_out, at.out);
  describe_stats(*stats, s, at.stats);
  stats->set_output(true);
  return graph;
}

std::shared_ptr<Graph> attention_backward_graph(const Shape& s) {
  auto graph = new_graph();
  const Places at(*graph, s);
  Tensor_attributes stats;
  describe_stats(stats, s, at.stats);
  fe::graph::SDPA_backward_attributes attributes;
  attributes.set_name("attention_backward").set_deterministic_algorithm(true);
  const auto [dq, dk, dv] = graph->sdpa_backward(
      input(*graph, kQ, s, s.q_heads, s.ld_qkv, at.q), input(*graph, kK, s, s.kv_heads, s.ld_qkv, at.k),
      input(*graph, kV, s, s.kv_heads, s.ld_qkv, at.v), input(*graph, kOut, s, s.q_heads, s.ld_out, at.out),
      input(*graph, kDout, s, s.q_heads, s.ld_out, at.out), graph->tensor(stats), causal(attributes, s, at));
  output(dq, kDq, s, s.q_heads, s.ld_qkv, at.q);
  output(dk, kDk, s, s.kv_heads, s.ld_qkv, at.k);
  output(dv, kDv, s, s.kv_heads, s.ld_qkv, at.v);
  return graph;
}

}  // namespace pesc::cuda
