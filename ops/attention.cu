// Causal attention on the GPU: by cuDNN where it applies (ops/attention_library.h), else by our own tile
// kernels (ops/attention_tiles.cuh), which compute in float32, are deterministic, take any head_dim up to 256
// and any segments, and never store the scores.
#include <vector>

#include "ops/attention.h"
#include "ops/attention_library.h"
#include "ops/attention_tiles.cuh"
#include "ops/cuda_ops.h"

namespace pesc::cuda {
namespace {

constexpr int64_t kMaxHeadDim = 256;

void check_heads(const AttentionShape& shape, const Tensor& t, int64_t heads, DType dtype, const char* name) {
  PESC_CHECK(t.cols == heads * shape.head_dim && t.dtype == dtype, name, " has ", t.cols, " columns of ",
             dtype_name(t.dtype), " for ", heads, " heads of ", shape.head_dim, " in ", dtype_name(dtype));
}

void check_shape(const AttentionShape& shape, std::span<const AttentionSegment> segments, int64_t queries,
                 int64_t keys) {
  PESC_CHECK(shape.kv_heads >= 1 && shape.q_heads % shape.kv_heads == 0 && shape.head_dim >= 1, shape.q_heads,
             " query heads, ", shape.kv_heads, " KV heads of ", shape.head_dim);
  if (shape.head_dim > kMaxHeadDim) {
    throw UsageError(str_cat("attention on a GPU takes head_dim up to ", kMaxHeadDim, ", and the model has ",
                             shape.head_dim, "; set parallel.device: CPU"));
  }
  for (const AttentionSegment& s : segments)
    PESC_CHECK(s.q_len >= 1 && s.kv_len >= s.q_len && s.q_begin >= 0 && s.kv_begin >= 0 &&
                   s.q_begin + s.q_len <= queries && s.kv_begin + s.kv_len <= keys,
               "segment ", s.q_begin, "+", s.q_len, ", ", s.kv_begin, "+", s.kv_len, " of ", queries,
               " queries and ", keys, " keys");
}

struct Tiles {
  const AttentionTile* data;
  unsigned count;
};

// The query tiles of all segments, in device memory from `scratch`. The last tiles of a segment attend to the
// most keys, so they come first.
Tiles upload_tiles(Stream& stream, std::span<const AttentionSegment> segments, Arena& scratch) {
  std::vector<AttentionTile> tiles;
  for (const AttentionSegment& s : segments)
    for (int32_t first = (s.q_len - 1) / kTile * kTile; first >= 0; first -= kTile)
      tiles.push_back({s.q_begin, s.q_len, s.kv_begin, s.kv_len, first});
  return {cuda::upload(stream, std::span<const AttentionTile>(tiles), scratch),
          static_cast<unsigned>(tiles.size())};
}

// Launches a kernel with kColumns columns of the head per thread and shared memory for `tiles` tiles and
// `scores` score tiles.
template <class T, class Kernel>
void launch(Stream& stream, Kernel kernel, const AttentionViews<T>& views, const Tiles& tiles, int64_t heads,
            int shared_tiles, int score_tiles) {
  const size_t bytes = tile_shared_bytes(views.head_dim, shared_tiles, score_tiles);
  PESC_CUDA(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  kernel<<<dim3(tiles.count, static_cast<unsigned>(heads)), kThreads, bytes, stream_of(stream)>>>(views,
                                                                                                  tiles.data);
  PESC_LAUNCHED("attention tiles");
}

// Calls f(std::integral_constant<int, columns per thread>) for the head's width.
template <class F>
void with_columns(int64_t head_dim, F f) {
  if (head_dim <= 64) return f(std::integral_constant<int, 64 / kRowThreads>{});
  if (head_dim <= 128) return f(std::integral_constant<int, 128 / kRowThreads>{});
  return f(std::integral_constant<int, kMaxHeadDim / kRowThreads>{});
}

View<float> lse_view(const Tensor& lse, const AttentionShape& shape, int64_t queries) {
  if (!lse.present()) return {};
  PESC_CHECK(lse.rows == shape.q_heads && lse.cols == queries, "lse ", lse.rows, "x", lse.cols);
  return view<float>(lse);
}

}  // namespace

void attention_forward(Stream& stream, const AttentionForward& args, Arena& scratch) {
  const AttentionShape& shape = args.shape;
  check_shape(shape, args.segments, args.q.rows, args.k.rows);
  const DType dtype = args.q.dtype;
  check_heads(shape, args.q, shape.q_heads, dtype, "q");
  check_heads(shape, args.k, shape.kv_heads, dtype, "k");
  check_heads(shape, args.v, shape.kv_heads, dtype, "v");
  check_heads(shape, args.out, shape.q_heads, dtype, "out");
  PESC_CHECK(args.v.rows == args.k.rows && args.out.rows == args.q.rows, "k ", args.k.rows, ", v ",
             args.v.rows, ", q ", args.q.rows, ", out ", args.out.rows, " rows");
  if (args.segments.empty() || library_attention_forward(stream, args, scratch)) return;
  const Arena::Scope scope(scratch);
  const Tiles tiles = upload_tiles(stream, args.segments, scratch);
  with_element(dtype, [&](auto t) {
    using T = decltype(t);
    AttentionViews<T> views{};
    views.q = view<T>(args.q);
    views.k = view<T>(args.k);
    views.v = view<T>(args.v);
    views.out = view<T>(args.out);
    views.lse = lse_view(args.lse, shape, args.q.rows);
    views.head_dim = static_cast<int>(shape.head_dim);
    views.group = static_cast<int>(shape.q_heads / shape.kv_heads);
    views.scale = shape.scale;
    with_columns(shape.head_dim, [&](auto columns) {
      launch(stream, attention_forward_tiles<T, columns()>, views, tiles, shape.q_heads, 3, 1);
    });
  });
}

void attention_backward(Stream& stream, const AttentionBackward& args, Arena& scratch) {
  const AttentionShape& shape = args.shape;
  check_shape(shape, args.segments, args.q.rows, args.k.rows);
  const DType dtype = args.q.dtype;
  for (const auto& [tensor, name] :
       {std::pair{&args.q, "q"}, {&args.out, "out"}, {&args.dout, "dout"}, {&args.dq, "dq"}}) {
    check_heads(shape, *tensor, shape.q_heads, dtype, name);
    PESC_CHECK(tensor->rows == args.q.rows, name, " has ", tensor->rows, " rows, q ", args.q.rows);
  }
  for (const auto& [tensor, name] :
       {std::pair{&args.k, "k"}, {&args.v, "v"}, {&args.dk, "dk"}, {&args.dv, "dv"}}) {
    check_heads(shape, *tensor, shape.kv_heads, dtype, name);
    PESC_CHECK(tensor->rows == args.k.rows, name, " has ", tensor->rows, " rows, k ", args.k.rows);
  }
  for (const AttentionSegment& s : args.segments)
    PESC_CHECK(s.kv_len == s.q_len, "backward of ", s.q_len, " queries over ", s.kv_len, " keys");
  if (args.segments.empty()) return;
  PESC_CHECK(args.lse.present(), "the backward needs lse");
  if (library_attention_backward(stream, args, scratch)) return;
  const Arena::Scope scope(scratch);
  const Tensor delta = scratch.allocate(shape.q_heads, args.q.rows);
  const Tiles tiles = upload_tiles(stream, args.segments, scratch);
  with_element(dtype, [&](auto t) {
    using T = decltype(t);
    AttentionViews<T> views{};
    views.q = view<T>(args.q);
    views.k = view<T>(args.k);
    views.v = view<T>(args.v);
    views.out = view<T>(args.out);
    views.dout = view<T>(args.dout);
    views.dq = view<T>(args.dq);
    views.dk = view<T>(args.dk);
    views.dv = view<T>(args.dv);
    views.lse = lse_view(args.lse, shape, args.q.rows);
    views.delta = view<float>(delta);
    views.head_dim = static_cast<int>(shape.head_dim);
    views.group = static_cast<int>(shape.q_heads / shape.kv_heads);
    views.scale = shape.scale;
    const int64_t warps = args.q.rows * shape.q_heads;
    const auto blocks = static_cast<unsigned>((warps * kWarp + kThreads - 1) / kThreads);
    attention_delta<T><<<blocks, kThreads, 0, stream_of(stream)>>>(views, static_cast<int>(shape.q_heads));
    PESC_LAUNCHED("attention_delta");
    with_columns(shape.head_dim, [&](auto columns) {
      launch(stream, attention_dq_tiles<T, columns()>, views, tiles, shape.q_heads, 4, 1);
      launch(stream, attention_dkv_tiles<T, columns()>, views, tiles, shape.kv_heads, 4, 2);
    });
  });
}

}  // namespace pesc::cuda
