// Attention by cuDNN's fused kernels, through graphs of its frontend: see ops/attention_library.h.
//
// A graph is built once per shape and kept. The backward is the deterministic one, which stores the scores'
// gradients, 2 HQ L^2 bytes a sequence: a call takes as many sequences as kLibraryBackwardBytes hold.
#include <cudnn_frontend.h>

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <unordered_map>

#include "ops/attention_library.h"
#include "ops/core/queue.h"

namespace pesc::cuda {
namespace {

namespace fe = cudnn_frontend;
using fe::graph::Graph;
using fe::graph::Tensor_attributes;
using TensorPtr = std::shared_ptr<Tensor_attributes>;

// Names of tensors towards the library.
enum Uid : int64_t { kQ = 1, kK, kV, kOut, kStats, kDout, kDq, kDk, kDv };

// `batch` sequences of `length` tokens; rows of q, k, v (and their gradients) and of out (and its) so many
// elements apart.
struct Shape {
  int64_t batch, length, q_heads, kv_heads, head_dim, ld_qkv, ld_out;
  float scale;
  auto operator<=>(const Shape&) const = default;
};

struct Plan {
  std::shared_ptr<Graph> graph;
  int64_t workspace = 0;
};

TensorPtr heads_tensor(Graph& graph, Uid uid, const Shape& s, int64_t heads, int64_t ld) {
  return graph.tensor(Tensor_attributes()
                          .set_uid(uid)
                          .set_dim({s.batch, heads, s.length, s.head_dim})
                          .set_stride({s.length * ld, s.head_dim, ld, 1}));
}

void set_output(const TensorPtr& t, Uid uid, const Shape& s, int64_t heads, int64_t ld) {
  t->set_output(true)
      .set_uid(uid)
      .set_dim({s.batch, heads, s.length, s.head_dim})
      .set_stride({s.length * ld, s.head_dim, ld, 1});
}

std::shared_ptr<Graph> new_graph() {
  auto graph = std::make_shared<Graph>();
  graph->set_io_data_type(fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  return graph;
}

std::shared_ptr<Graph> forward_graph(const Shape& s) {
  auto graph = new_graph();
  const auto [out, stats] = graph->sdpa(heads_tensor(*graph, kQ, s, s.q_heads, s.ld_qkv),
                                        heads_tensor(*graph, kK, s, s.kv_heads, s.ld_qkv),
                                        heads_tensor(*graph, kV, s, s.kv_heads, s.ld_qkv),
                                        fe::graph::SDPA_attributes()
                                            .set_name("attention_forward")
                                            .set_generate_stats(true)
                                            .set_attn_scale(s.scale)
                                            .set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
                                            .set_diagonal_band_right_bound(0));
  set_output(out, kOut, s, s.q_heads, s.ld_out);
  stats->set_output(true)
      .set_uid(kStats)
      .set_data_type(fe::DataType_t::FLOAT)
      .set_dim({s.batch, s.q_heads, s.length, 1})
      .set_stride({s.q_heads * s.length, s.length, 1, 1});
  return graph;
}

std::shared_ptr<Graph> backward_graph(const Shape& s) {
  auto graph = new_graph();
  const TensorPtr stats = graph->tensor(Tensor_attributes()
                                            .set_uid(kStats)
                                            .set_data_type(fe::DataType_t::FLOAT)
                                            .set_dim({s.batch, s.q_heads, s.length, 1})
                                            .set_stride({s.q_heads * s.length, s.length, 1, 1}));
  const auto [dq, dk, dv] = graph->sdpa_backward(
      heads_tensor(*graph, kQ, s, s.q_heads, s.ld_qkv), heads_tensor(*graph, kK, s, s.kv_heads, s.ld_qkv),
      heads_tensor(*graph, kV, s, s.kv_heads, s.ld_qkv), heads_tensor(*graph, kOut, s, s.q_heads, s.ld_out),
      heads_tensor(*graph, kDout, s, s.q_heads, s.ld_out), stats,
      fe::graph::SDPA_backward_attributes()
          .set_name("attention_backward")
          .set_attn_scale(s.scale)
          .set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
          .set_diagonal_band_right_bound(0)
          .set_deterministic_algorithm(true));
  set_output(dq, kDq, s, s.q_heads, s.ld_qkv);
  set_output(dk, kDk, s, s.kv_heads, s.ld_qkv);
  set_output(dv, kDv, s, s.kv_heads, s.ld_qkv);
  return graph;
}

// The first sequence's start and the common length of segments that the library takes; length 0: it does not.
struct Uniform {
  int64_t begin = 0, length = 0;
};

Uniform uniform(std::span<const AttentionSegment> segments) {
  if (segments.empty()) return {};
  const AttentionSegment& first = segments.front();
  for (size_t i = 0; i < segments.size(); ++i) {
    const AttentionSegment& s = segments[i];
    const int64_t begin = first.q_begin + static_cast<int64_t>(i) * first.q_len;
    if (s.q_begin != begin || s.kv_begin != begin || s.q_len != first.q_len || s.kv_len != first.q_len)
      return {};
  }
  return {first.q_begin, first.q_len};
}

bool aligned(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && (t.ld * dtype_bytes(t.dtype)) % 16 == 0;
}

// What of shapes, types and places the library takes; its plans may still refuse.
bool acceptable(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                const Tensor& out) {
  const bool places = aligned(q) && aligned(k) && aligned(v) && aligned(out) && q.ld == k.ld && q.ld == v.ld;
  return q.dtype == DType::kBF16 && shape.head_dim % 8 == 0 && shape.head_dim <= kLibraryMaxHeadDim && places;
}

void* at_row(const Tensor& t, int64_t row) {
  return t.row_range(row, t.rows).data;
}

}  // namespace

struct AttentionCache {
  cudnnHandle_t handle = nullptr;
  std::map<Shape, Plan> forward, backward;
  std::string refusal;  // why a shape got no plan

  AttentionCache() = default;
  AttentionCache(const AttentionCache&) = delete;
  AttentionCache& operator=(const AttentionCache&) = delete;
  ~AttentionCache() {
    forward.clear();
    backward.clear();
    if (handle != nullptr) (void)cudnnDestroy(handle);
  }
};

namespace {

// Without a handle the library does not start here (a part of it is missing, say): `refusal` then tells.
AttentionCache& cache_of(const Stream& stream) {
  Queue& queue = stream.queue();
  if (queue.attention != nullptr) return *queue.attention;
  queue.attention = std::make_shared<AttentionCache>();
  AttentionCache& cache = *queue.attention;
  cudnnStatus_t status = cudnnCreate(&cache.handle);
  if (status == CUDNN_STATUS_SUCCESS) status = cudnnSetStream(cache.handle, queue.stream);
  if (status != CUDNN_STATUS_SUCCESS) {
    cache.handle = nullptr;
    cache.refusal = str_cat("any batch: the library does not start: ", cudnnGetErrorString(status));
  }
  return cache;
}

// The plan of a shape; one without a graph where the library has none, which `refusal` then explains.
const Plan& plan_of(AttentionCache& cache, std::map<Shape, Plan>& plans, const Shape& shape,
                    std::shared_ptr<Graph> (*make)(const Shape&)) {
  const auto found = plans.find(shape);
  if (found != plans.end()) return found->second;
  Plan plan{make(shape), 0};
  auto status = plan.graph->build(cache.handle, {fe::HeurMode_t::A});
  if (status.is_good()) status = plan.graph->get_workspace_size(plan.workspace);
  if (status.is_bad()) {
    cache.refusal = str_cat(shape.batch, " sequences of ", shape.length, ", ", shape.q_heads, "/",
                            shape.kv_heads, " heads of ", shape.head_dim, ": ", status.get_message());
    plan = {};
  }
  return plans.emplace(shape, std::move(plan)).first->second;
}

void execute(AttentionCache& cache, const Plan& plan, std::unordered_map<int64_t, void*>& tensors,
             Arena& scratch) {
  const Arena::Scope scope(scratch);
  void* workspace = scratch.allocate(1, plan.workspace, DType::kU8).data;
  auto status = plan.graph->execute(cache.handle, tensors, workspace);
  PESC_CHECK(status.is_good(), "cuDNN attention: ", status.get_message());
}

int64_t free_bytes(const Arena& scratch) {
  return scratch.capacity() - scratch.used() - Arena::kAlignment;
}

// Sequences of one backward call: as many as the announced workspace holds, or fewer where the library wants
// more. 0: it has no plan that fits.
int64_t backward_batch(AttentionCache& cache, const AttentionShape& heads, Shape shape,
                       const Arena& scratch) {
  shape.batch = std::clamp<int64_t>(kLibraryBackwardBytes / library_sequence_bytes(heads, shape.length), 1,
                                    shape.batch);
  for (; shape.batch >= 1; shape.batch /= 2) {
    const Plan& plan = plan_of(cache, cache.backward, shape, backward_graph);
    if (plan.graph != nullptr && plan.workspace <= free_bytes(scratch)) return shape.batch;
    if (plan.graph != nullptr)
      cache.refusal = str_cat("a backward of ", shape.batch, " sequences of ", shape.length, " wants ",
                              plan.workspace, " bytes, and there are ", free_bytes(scratch));
  }
  return 0;
}

Shape shape_of(const AttentionShape& heads, std::span<const AttentionSegment> segments, int64_t length,
               int64_t ld_qkv, int64_t ld_out) {
  return {static_cast<int64_t>(segments.size()),
          length,
          heads.q_heads,
          heads.kv_heads,
          heads.head_dim,
          ld_qkv,
          ld_out,
          heads.scale};
}

}  // namespace

bool library_attention_forward(Stream& stream, const AttentionForward& args, Arena& scratch) {
  const Uniform u = uniform(args.segments);
  if (u.length == 0 || !args.lse.present() || !acceptable(args.shape, args.q, args.k, args.v, args.out))
    return false;
  AttentionCache& cache = cache_of(stream);
  if (cache.handle == nullptr) return false;
  const Shape shape = shape_of(args.shape, args.segments, u.length, args.q.ld, args.out.ld);
  const Plan& plan = plan_of(cache, cache.forward, shape, forward_graph);
  if (plan.graph == nullptr || plan.workspace > free_bytes(scratch) ||
      backward_batch(cache, args.shape, shape, scratch) == 0)
    return false;
  std::unordered_map<int64_t, void*> tensors{{kQ, at_row(args.q, u.begin)},
                                             {kK, at_row(args.k, u.begin)},
                                             {kV, at_row(args.v, u.begin)},
                                             {kOut, at_row(args.out, u.begin)},
                                             {kStats, args.lse.data}};
  execute(cache, plan, tensors, scratch);
  return true;
}

bool library_attention_backward(Stream& stream, const AttentionBackward& args, Arena& scratch) {
  const Uniform u = uniform(args.segments);
  if (u.length == 0 || !acceptable(args.shape, args.q, args.k, args.v, args.out)) return false;
  AttentionCache& cache = cache_of(stream);
  Shape shape = shape_of(args.shape, args.segments, u.length, args.q.ld, args.out.ld);
  const auto forward = cache.forward.find(shape);
  if (forward == cache.forward.end() || forward->second.graph == nullptr) return false;
  const int64_t all = shape.batch;
  const int64_t batch = backward_batch(cache, args.shape, shape, scratch);
  if (batch == 0) return false;
  PESC_CHECK(args.dq.ld == args.q.ld && args.dk.ld == args.q.ld && args.dv.ld == args.q.ld &&
                 args.dout.ld == args.out.ld && aligned(args.dq) && aligned(args.dk) && aligned(args.dv) &&
                 aligned(args.dout),
             "the forward's lse is the library's, so gradients must lie as what they are of does: rows ",
             args.dq.ld, " ", args.dk.ld, " ", args.dv.ld, " ", args.dout.ld, " apart for ", args.q.ld,
             " and ", args.out.ld);
  for (int64_t first = 0; first < all; first += batch) {
    shape.batch = std::min(batch, all - first);
    const Plan& plan = plan_of(cache, cache.backward, shape, backward_graph);
    PESC_CHECK(plan.graph != nullptr && plan.workspace <= free_bytes(scratch),
               "cuDNN attention: ", cache.refusal);
    const int64_t row = u.begin + first * u.length;
    auto* stats = static_cast<float*>(args.lse.data) + first * shape.q_heads * shape.length;
    std::unordered_map<int64_t, void*> tensors{
        {kQ, at_row(args.q, row)},     {kK, at_row(args.k, row)},       {kV, at_row(args.v, row)},
        {kOut, at_row(args.out, row)}, {kDout, at_row(args.dout, row)}, {kStats, stats},
        {kDq, at_row(args.dq, row)},   {kDk, at_row(args.dk, row)},     {kDv, at_row(args.dv, row)}};
    execute(cache, plan, tensors, scratch);
  }
  return true;
}

int64_t library_attention_scratch_bytes(const AttentionShape& shape, int64_t tokens, int64_t length) {
  return library_workspace_bytes(shape, tokens, length);
}

std::string library_attention_report(const Stream& stream) {
  const AttentionCache* cache = stream.queue().attention.get();
  if (cache == nullptr) return "own kernels";
  size_t plans = 0;
  for (const auto* all : {&cache->forward, &cache->backward})
    for (const auto& [shape, plan] : *all) plans += plan.graph == nullptr ? 0 : 1;
  const auto v = static_cast<int64_t>(cudnnGetVersion());
  std::string text = str_cat("cuDNN ", v / 10000, ".", v / 100 % 100, ".", v % 100, ", ", plans, " plans");
  if (!cache->refusal.empty()) text += str_cat("; none for ", cache->refusal);
  return text;
}

}  // namespace pesc::cuda
