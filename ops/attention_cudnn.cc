// Attention by cuDNN's fused kernels, through graphs of its frontend: see ops/attention_library.h.
//
// Sequences of one length that is a multiple of 128 form a dense batch. All others form ragged batches:
// groups of adjacent sequences, in graphs for a power of two of sequences of up to a bucketed length, so that
// real batches, whose lengths all differ, need few graphs. A graph is built once and cached. The
// deterministic backward stores the gradients of the scores, 2 HQ L^2 bytes per sequence: a call takes as
// many sequences as fit kLibraryBackwardBytes.
#include <algorithm>
#include <bit>
#include <limits>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "ops/attention_graphs.h"
#include "ops/attention_library.h"
#include "ops/core/stream_cuda.h"

namespace pesc::cuda {
namespace {

namespace fe = cudnn_frontend;
using Shape = AttentionGraphShape;

struct Plan {
  std::shared_ptr<fe::graph::Graph> graph;
  int64_t workspace = 0;
};

constexpr int64_t kTile = 128;  // tokens; cuDNN's kernels split sequences into tiles of this size

// The start and the common length of segments that form a dense batch; length 0 when they do not.
struct Uniform {
  int64_t begin = 0, length = 0;
};

Uniform uniform(std::span<const AttentionSegment> segments) {
  if (segments.empty()) return {};
  const AttentionSegment& first = segments.front();
  if (first.q_len % kTile != 0) return {};
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

// Whether cuDNN supports the shapes, types and alignments of a call; building a plan may still fail.
bool acceptable(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                const Tensor& out) {
  const bool places = aligned(q) && aligned(k) && aligned(v) && aligned(out) && q.ld == k.ld && q.ld == v.ld;
  return q.dtype == DType::kBF16 && shape.head_dim % 8 == 0 && shape.head_dim <= kLibraryMaxHeadDim && places;
}

// A group of adjacent sequences of a ragged batch, and the shape of its graph.
struct Group {
  size_t begin, end;
  Shape shape;
};

// The bucketed lengths of graphs: 128, 256, 384, 512, 768, 1024, 1536, ...
int64_t step_up(int64_t length) {
  int64_t step = kTile;
  while (step < length && !(step > kTile && step * 3 / 2 >= length)) step *= 2;
  return step >= length ? step : step * 3 / 2;
}

// The groups of a ragged batch; empty where cuDNN does not apply. The same for forward and backward of the
// same segments and arena: a group grows, in powers of two of sequences of the bucketed length, as long as it
// fits library_workspace_bytes.
std::vector<Group> ragged_groups(const AttentionShape& heads, std::span<const AttentionSegment> segments,
                                 const Tensor& q, const Tensor& out, const Arena& scratch) {
  constexpr int64_t kMostElements = std::numeric_limits<int32_t>::max();
  if (q.rows * std::max({q.ld, out.ld, heads.q_heads}) > kMostElements) return {};
  const int64_t most = std::min(kLibraryBackwardBytes, scratch.capacity() - kLibrarySlackBytes);
  const auto length_of = [&](const AttentionSegment& s) {
    const int64_t step = step_up(s.q_len);
    return library_sequence_bytes(heads, step) <= most ? step : (s.q_len + kTile - 1) / kTile * kTile;
  };
  std::vector<Group> groups;
  for (size_t i = 0; i < segments.size(); ++i) {
    const AttentionSegment& s = segments[i];
    if (s.kv_begin != s.q_begin || s.kv_len != s.q_len) return {};
    const int64_t length = length_of(s);
    if (!groups.empty()) {
      Group& last = groups.back();
      const int64_t longest = std::max(length, last.shape.length);
      const auto batch = static_cast<int64_t>(std::bit_ceil(i + 1 - last.begin));
      if (batch * library_sequence_bytes(heads, longest) <= most) {
        last.end = i + 1;
        last.shape.batch = batch;
        last.shape.length = longest;
        continue;
      }
    }
    groups.push_back(
        {i, i + 1,
         Shape{1, length, heads.q_heads, heads.kv_heads, heads.head_dim, q.ld, out.ld, heads.scale, true}});
  }
  return groups;
}

void* at_row(const Tensor& t, int64_t row) {
  return t.row_range(row, t.rows).data;
}

}  // namespace

struct AttentionCache {
  cudnnHandle_t handle = nullptr;
  std::map<Shape, Plan> forward, backward;
  std::map<Shape, bool> ragged;  // whether both plans existed, and had room, at the first forward
  std::string refusal;           // why the last refused shape has no plan
  int64_t calls = 0;             // computed by cuDNN

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

// The stream's cache. Without a handle cuDNN could not be initialised (a part of it is missing, for example),
// and `refusal` says why.
AttentionCache& cache_of(const Stream& stream) {
  CudaStream& cuda_stream = stream.cuda_stream();
  if (cuda_stream.attention != nullptr) return *cuda_stream.attention;
  cuda_stream.attention = std::make_shared<AttentionCache>();
  AttentionCache& cache = *cuda_stream.attention;
  cudnnStatus_t status = cudnnCreate(&cache.handle);
  if (status == CUDNN_STATUS_SUCCESS) status = cudnnSetStream(cache.handle, cuda_stream.stream);
  if (status != CUDNN_STATUS_SUCCESS) {
    cache.handle = nullptr;
    cache.refusal = str_cat("any batch: the library does not start: ", cudnnGetErrorString(status));
  }
  return cache;
}

// The plan of a shape; one without a graph where cuDNN has none, and `refusal` says why.
const Plan& plan_of(AttentionCache& cache, std::map<Shape, Plan>& plans, const Shape& shape,
                    std::shared_ptr<fe::graph::Graph> (*make)(const Shape&)) {
  const auto found = plans.find(shape);
  if (found != plans.end()) return found->second;
  Plan plan{make(shape), 0};
  auto status = plan.graph->build(cache.handle, {fe::HeurMode_t::A});
  if (status.is_good()) status = plan.graph->get_workspace_size(plan.workspace);
  if (status.is_bad()) {
    cache.refusal = str_cat(shape.batch, shape.ragged ? " ragged sequences of up to " : " sequences of ",
                            shape.length, ", ", shape.q_heads, "/", shape.kv_heads, " heads of ",
                            shape.head_dim, ": ", status.get_message());
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

// The number of sequences of one backward call: as many as the planned workspace holds, or fewer where cuDNN
// asks for more memory. 0: no plan fits.
int64_t backward_batch(AttentionCache& cache, const AttentionShape& heads, Shape shape,
                       const Arena& scratch) {
  shape.batch = std::clamp<int64_t>(kLibraryBackwardBytes / library_sequence_bytes(heads, shape.length), 1,
                                    shape.batch);
  for (; shape.batch >= 1; shape.batch /= 2) {
    const Plan& plan = plan_of(cache, cache.backward, shape, attention_backward_graph);
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
          heads.scale,
          false};
}

// The lengths and offsets of a group in device memory, by their ids in the graph.
void add_places(Stream& stream, const Group& group, std::span<const AttentionSegment> segments,
                Arena& scratch, std::unordered_map<int64_t, void*>& tensors) {
  const auto batch = static_cast<size_t>(group.shape.batch);
  std::vector<int32_t> numbers(batch, 0);
  for (size_t i = group.begin; i < group.end; ++i) numbers[i - group.begin] = segments[i].q_len;
  for (const int64_t width : {group.shape.ld_qkv, group.shape.ld_out, group.shape.q_heads}) {
    for (size_t i = 0; i <= batch; ++i) {
      const bool real = group.begin + i < group.end;
      const AttentionSegment& s = segments[real ? group.begin + i : group.end - 1];
      numbers.push_back(static_cast<int32_t>((s.q_begin + (real ? 0 : s.q_len)) * width));
    }
  }
  const auto bytes = static_cast<int64_t>(numbers.size() * sizeof(int32_t));
  auto* at = static_cast<int32_t*>(scratch.allocate(1, bytes, DType::kU8).data);
  upload(stream.cuda_stream(), numbers.data(), at, bytes);
  tensors[kLengthsQ] = tensors[kLengthsKv] = at;
  tensors[kOffsetsQ] = tensors[kOffsetsK] = tensors[kOffsetsV] = at + batch;
  tensors[kOffsetsOut] = at + batch + (batch + 1);
  tensors[kOffsetsStats] = at + batch + 2 * (batch + 1);
}

// What add_places takes from scratch for a group of `batch` sequences.
int64_t places_bytes(int64_t batch) {
  return (batch + 3 * (batch + 1)) * int64_t{sizeof(int32_t)};
}

bool ragged_taken(AttentionCache& cache, const Shape& shape, const Arena& scratch) {
  const auto settled = cache.ragged.find(shape);
  if (settled != cache.ragged.end()) return settled->second;
  const Plan& forward = plan_of(cache, cache.forward, shape, attention_forward_graph);
  const Plan& backward = plan_of(cache, cache.backward, shape, attention_backward_graph);
  bool taken = forward.graph != nullptr && backward.graph != nullptr;
  const int64_t most = std::max(forward.workspace, backward.workspace);
  if (taken && most + places_bytes(shape.batch) + Arena::kAlignment > free_bytes(scratch)) {
    cache.refusal = str_cat(shape.batch, " ragged sequences of up to ", shape.length, " want ", most,
                            " bytes, and there are ", free_bytes(scratch));
    taken = false;
  }
  return cache.ragged[shape] = taken;
}

bool ragged_forward(Stream& stream, AttentionCache& cache, const AttentionForward& args, Arena& scratch) {
  const auto groups = ragged_groups(args.shape, args.segments, args.q, args.out, scratch);
  if (groups.empty()) return false;
  for (const Group& group : groups)
    if (!ragged_taken(cache, group.shape, scratch)) return false;
  for (const Group& group : groups) {
    const Arena::Scope scope(scratch);
    std::unordered_map<int64_t, void*> tensors{{kQ, args.q.data},
                                               {kK, args.k.data},
                                               {kV, args.v.data},
                                               {kOut, args.out.data},
                                               {kStats, args.lse.data}};
    add_places(stream, group, args.segments, scratch, tensors);
    execute(cache, cache.forward.at(group.shape), tensors, scratch);
  }
  ++cache.calls;
  return true;
}

void check_gradients(const AttentionBackward& args) {
  PESC_CHECK(args.dq.ld == args.q.ld && args.dk.ld == args.q.ld && args.dv.ld == args.q.ld &&
                 args.dout.ld == args.out.ld && aligned(args.dq) && aligned(args.dk) && aligned(args.dv) &&
                 aligned(args.dout),
             "the forward's lse is the library's, so gradients must lie as what they are of does: rows ",
             args.dq.ld, " ", args.dk.ld, " ", args.dv.ld, " ", args.dout.ld, " apart for ", args.q.ld,
             " and ", args.out.ld);
}

bool ragged_backward(Stream& stream, AttentionCache& cache, const AttentionBackward& args, Arena& scratch) {
  const auto groups = ragged_groups(args.shape, args.segments, args.q, args.out, scratch);
  if (groups.empty()) return false;
  for (const Group& group : groups) {
    const auto settled = cache.ragged.find(group.shape);
    if (settled == cache.ragged.end() || !settled->second) return false;
  }
  check_gradients(args);
  for (const Group& group : groups) {
    const Arena::Scope scope(scratch);
    std::unordered_map<int64_t, void*> tensors{
        {kQ, args.q.data},     {kK, args.k.data},       {kV, args.v.data},
        {kOut, args.out.data}, {kDout, args.dout.data}, {kStats, args.lse.data},
        {kDq, args.dq.data},   {kDk, args.dk.data},     {kDv, args.dv.data}};
    add_places(stream, group, args.segments, scratch, tensors);
    const Plan& plan = cache.backward.at(group.shape);
    PESC_CHECK(plan.workspace <= free_bytes(scratch), "cuDNN attention: a ragged backward wants ",
               plan.workspace, " bytes, and there are ", free_bytes(scratch));
    execute(cache, plan, tensors, scratch);
  }
  ++cache.calls;
  return true;
}

}  // namespace

bool library_attention_built() {
  return true;
}

bool library_attention_forward(Stream& stream, const AttentionForward& call, Arena& scratch) {
  if (!acceptable(call.shape, call.q, call.k, call.v, call.out)) return false;
  AttentionCache& cache = cache_of(stream);
  if (cache.handle == nullptr) return false;
  AttentionForward args = call;
  const Arena::Scope scope(scratch);
  if (!args.lse.present()) {
    if (args.shape.q_heads * args.q.rows * int64_t{sizeof(float)} > free_bytes(scratch)) return false;
    args.lse = scratch.allocate(args.shape.q_heads, args.q.rows);
  }
  const Uniform u = uniform(args.segments);
  if (u.length == 0) return ragged_forward(stream, cache, args, scratch);
  const Shape shape = shape_of(args.shape, args.segments, u.length, args.q.ld, args.out.ld);
  const Plan& plan = plan_of(cache, cache.forward, shape, attention_forward_graph);
  if (plan.graph == nullptr || plan.workspace > free_bytes(scratch) ||
      backward_batch(cache, args.shape, shape, scratch) == 0)
    return false;
  std::unordered_map<int64_t, void*> tensors{{kQ, at_row(args.q, u.begin)},
                                             {kK, at_row(args.k, u.begin)},
                                             {kV, at_row(args.v, u.begin)},
                                             {kOut, at_row(args.out, u.begin)},
                                             {kStats, args.lse.data}};
  execute(cache, plan, tensors, scratch);
  ++cache.calls;
  return true;
}

bool library_attention_backward(Stream& stream, const AttentionBackward& args, Arena& scratch) {
  if (!acceptable(args.shape, args.q, args.k, args.v, args.out)) return false;
  AttentionCache& cache = cache_of(stream);
  const Uniform u = uniform(args.segments);
  if (u.length == 0) return ragged_backward(stream, cache, args, scratch);
  Shape shape = shape_of(args.shape, args.segments, u.length, args.q.ld, args.out.ld);
  const auto forward = cache.forward.find(shape);
  if (forward == cache.forward.end() || forward->second.graph == nullptr) return false;
  const int64_t all = shape.batch;
  const int64_t batch = backward_batch(cache, args.shape, shape, scratch);
  if (batch == 0) return false;
  check_gradients(args);
  for (int64_t first = 0; first < all; first += batch) {
    shape.batch = std::min(batch, all - first);
    const Plan& plan = plan_of(cache, cache.backward, shape, attention_backward_graph);
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
  ++cache.calls;
  return true;
}

int64_t library_attention_scratch_bytes(const AttentionShape& shape, int64_t tokens, int64_t length) {
  return library_workspace_bytes(shape, tokens, length);
}

std::string library_attention_report(const Stream& stream) {
  const AttentionCache* cache = stream.cuda_stream().attention.get();
  if (cache == nullptr) return "own kernels";
  size_t plans = 0;
  for (const auto* all : {&cache->forward, &cache->backward})
    for (const auto& [shape, plan] : *all) plans += plan.graph == nullptr ? 0 : 1;
  const auto v = static_cast<int64_t>(cudnnGetVersion());
  std::string text = str_cat("cuDNN ", v / 10000, ".", v / 100 % 100, ".", v % 100, ", ", plans, " plans, ",
                             cache->calls, " calls");
  if (!cache->refusal.empty()) text += str_cat("; none for ", cache->refusal);
  return text;
}

}  // namespace pesc::cuda
