// Causal attention on the CPU. A work item is one segment and one KV head; one thread processes it, so that
// dk and dv have one writer and results do not depend on the number of threads. An item packs its keys and
// values once (ops/core/micro_gemm.h) and processes the queries in tiles of kTileRows rows. The GEMMs of a
// tile stop at the last key that its last row attends to, so that little of the masked half is computed.
//
//   forward    s = q k^T;  p = exp(scale (s - max));  o = p v / sum(p);  lse = scale max + log(sum(p))
//   backward   p = exp(scale s - lse);  dp = do v^T;  ds = scale p (dp - delta),  delta = sum over D of do o
//              dq = ds k;  dk += ds^T q;  dv += p^T do
// dk and dv are summed over blocks of kBlock queries, for which p and ds are kept.
//
// A few queries over many keys (decoding) do not repay packing: they read k and v in place.
#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "ops/attention_library.h"
#include "ops/core/causal_rows.h"
#include "ops/core/micro_gemm.h"
#include "ops/core/threads.h"
#include "ops/cuda_ops.h"

namespace pesc {
namespace {

constexpr int64_t kBlock = 8 * kTileRows;
// Up to this many rows (queries times heads of a group), keys and values are read in place.
constexpr int64_t kDirectRows = 8;

enum class Pass { kForward, kBackward };

// One thread's memory. Kp = keys rounded up to kPanel, Dp = head_dim rounded up to kPanel.
struct Workspace {
  Tensor keys_t, values_t;  // [D, Kp] panels of k^T and v^T
  Tensor keys, values;      // [K, Dp] panels of k and v
  Tensor p, ds;             // [rows, Kp + kLanes]: the gap keeps rows out of one another's cache sets
  Tensor dk, dv;            // [K, Dp] sums
  Tensor q, dout;           // [kBlock, Dp] panels of a block of queries

  Workspace(Arena& scratch, Pass pass, int64_t head_dim, int64_t max_kv) {
    const int64_t kp = round_up(max_kv, kPanel);
    const int64_t dp = round_up(head_dim, kPanel);
    keys_t = scratch.allocate(head_dim, kp);
    if (pass == Pass::kForward) {
      values = scratch.allocate(max_kv, dp);
      p = scratch.allocate(kTileRows, kp + kLanes);
      return;
    }
    values_t = scratch.allocate(head_dim, kp);
    keys = scratch.allocate(max_kv, dp);
    p = scratch.allocate(kBlock, kp + kLanes);
    ds = scratch.allocate(kBlock, kp + kLanes);
    dk = scratch.allocate(max_kv, dp);
    dv = scratch.allocate(max_kv, dp);
    q = scratch.allocate(kBlock, dp);
    dout = scratch.allocate(kBlock, dp);
  }
};

struct Item {
  AttentionSegment segment;
  int64_t kv_head;
};

// Assigns the items to threads: the most expensive first, always to the thread with the least work.
std::vector<std::vector<Item>> assign(std::span<const AttentionSegment> segments, int64_t kv_heads,
                                      int threads) {
  std::vector<Item> items;
  for (const AttentionSegment& segment : segments)
    for (int64_t h = 0; h < kv_heads; ++h) items.push_back({segment, h});
  const auto cost = [](const Item& item) {
    return static_cast<int64_t>(item.segment.q_len + 2) * (2 * item.segment.kv_len - item.segment.q_len + 1);
  };
  std::stable_sort(items.begin(), items.end(),
                   [&](const Item& a, const Item& b) { return cost(a) > cost(b); });
  std::vector<std::vector<Item>> out(static_cast<size_t>(threads));
  std::vector<int64_t> load(out.size());
  for (const Item& item : items) {
    const auto least = static_cast<size_t>(std::min_element(load.begin(), load.end()) - load.begin());
    out[least].push_back(item);
    load[least] += cost(item);
  }
  return out;
}

// Calls use(item, workspace) for every item.
template <class Use>
void for_each_item(Stream& stream, Arena& scratch, Pass pass, const AttentionShape& shape,
                   std::span<const AttentionSegment> segments, Use use) {
  int64_t max_kv = 0;
  for (const AttentionSegment& s : segments) max_kv = std::max<int64_t>(max_kv, s.kv_len);
  const int threads = std::max(1, stream.threads());
  const std::vector<std::vector<Item>> work = assign(segments, shape.kv_heads, threads);
  Arena::Scope scope(scratch);
  std::vector<Workspace> spaces;
  for (int t = 0; t < threads; ++t) spaces.emplace_back(scratch, pass, shape.head_dim, max_kv);
  parallel_for(stream, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (const Item& item : work[static_cast<size_t>(t)]) use(item, spaces[static_cast<size_t>(t)]);
  });
}

// The piece of one item in a [tokens, heads * D] tensor.
float* at(const Tensor& t, int64_t token, int64_t head, int64_t head_dim) {
  return t.f32() + token * t.ld + head * head_dim;
}

void scale_row(float* x, int64_t n, float factor) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

// The rows of one tile: consecutive queries of one head, or (decoding) all heads of a group for one query.
struct Rows {
  int64_t token, head;  // of the first one
  int64_t count;
  int64_t seen;    // keys that the first row attends to
  int64_t growth;  // more keys per row: 1 for queries, 0 for heads
  int64_t out_stride;
  [[nodiscard]] int64_t last_seen() const { return seen + (count - 1) * growth; }
};

// Turns the scores in space.p into probabilities and writes out and lse.
void finish_rows(const AttentionForward& args, const Rows& rows, const Panels& values, const Tensor& space) {
  const int64_t d = args.shape.head_dim;
  const Edge edge(rows.seen, rows.count, rows.growth);
  RowSum sums[kTileRows];
  if (rows.count == kTileRows) {
    exp_rows<kTileRows>(space.f32(), space.ld, edge, 0, args.shape.scale, sums);
  } else {
    for (int64_t r = 0; r < rows.count; ++r)
      exp_rows<1>(space.f32() + r * space.ld, space.ld, edge, r, args.shape.scale, sums + r);
  }
  float* out = at(args.out, rows.token, rows.head, d);
  multiply_rows<Into::kWrite>(rows.count, d, rows.last_seen(), {space.f32(), space.ld, 1}, values, out,
                              rows.out_stride);
  for (int64_t r = 0; r < rows.count; ++r) {
    scale_row(out + r * rows.out_stride, d, 1.0F / sums[r].sum);
    if (!args.lse.present()) continue;
    const int64_t head = rows.head + r * (1 - rows.growth);
    const int64_t token = rows.token + r * rows.growth;
    args.lse.f32()[head * args.lse.ld + token] = sums[r].max + std::log(sums[r].sum);
  }
}

void forward_packed(const AttentionForward& args, const Item& item, const Workspace& space) {
  const AttentionSegment& s = item.segment;
  const int64_t d = args.shape.head_dim;
  const int64_t group = args.shape.q_heads / args.shape.kv_heads;
  const Panels keys =
      pack_transposed(at(args.k, s.kv_begin, item.kv_head, d), args.k.ld, d, s.kv_len, space.keys_t.f32());
  const Panels values =
      pack_panels(at(args.v, s.kv_begin, item.kv_head, d), args.v.ld, s.kv_len, d, space.values.f32());
  for (int64_t head = item.kv_head * group; head < (item.kv_head + 1) * group; ++head) {
    for (int64_t first = 0; first < s.q_len; first += kTileRows) {
      const Rows rows{.token = s.q_begin + first,
                      .head = head,
                      .count = std::min(kTileRows, s.q_len - first),
                      .seen = s.kv_len - s.q_len + first + 1,
                      .growth = 1,
                      .out_stride = args.out.ld};
      multiply_rows<Into::kWrite>(rows.count, round_up(rows.last_seen(), kLanes), d,
                                  {at(args.q, rows.token, head, d), args.q.ld, 1}, keys, space.p.f32(),
                                  space.p.ld);
      finish_rows(args, rows, values, space.p);
    }
  }
}

void forward_direct(const AttentionForward& args, const Item& item, const Workspace& space) {
  const AttentionSegment& s = item.segment;
  const int64_t d = args.shape.head_dim;
  const int64_t group = args.shape.q_heads / args.shape.kv_heads;
  const float* k = at(args.k, s.kv_begin, item.kv_head, d);
  const Panels values{at(args.v, s.kv_begin, item.kv_head, d), args.v.ld, kPanel};
  for (int64_t i = 0; i < s.q_len; ++i) {
    for (int64_t first = 0; first < group; first += kTileRows) {
      const Rows rows{.token = s.q_begin + i,
                      .head = item.kv_head * group + first,
                      .count = std::min(kTileRows, group - first),
                      .seen = s.kv_len - s.q_len + i + 1,
                      .growth = 0,
                      .out_stride = d};
      const float* q = at(args.q, rows.token, rows.head, d);
      for (int64_t r = 0; r < rows.count; ++r)
        dot_rows(rows.seen, d, q + r * d, 0, k, args.k.ld, space.p.f32() + r * space.p.ld);
      finish_rows(args, rows, values, space.p);
    }
  }
}

// The state that the blocks of one item share in the backward.
struct PackedItem {
  Panels keys_t, values_t, keys;
};

// Writes p, ds and dq of the tile that starts at query `first` of the segment and row `row` of the block,
// given the block's delta.
void backward_tile(const AttentionBackward& args, const Item& item, int64_t head, int64_t first, int64_t row,
                   const PackedItem& packed, const float* delta, const Workspace& space) {
  const AttentionSegment& s = item.segment;
  const int64_t d = args.shape.head_dim;
  const int64_t count = std::min(kTileRows, s.q_len - first);
  const Edge edge(first + 1, count, 1);
  const int64_t token = s.q_begin + first;
  float* p = space.p.f32() + row * space.p.ld;
  float* ds = space.ds.f32() + row * space.ds.ld;
  const float* dout = at(args.dout, token, head, d);
  multiply_rows<Into::kWrite>(count, edge.width, d, {at(args.q, token, head, d), args.q.ld, 1}, packed.keys_t,
                              p, space.p.ld);
  multiply_rows<Into::kWrite>(count, edge.width, d, {dout, args.dout.ld, 1}, packed.values_t, ds,
                              space.ds.ld);
  gradient_rows({.p = p,
                 .ds = ds,
                 .ld = space.p.ld,
                 .rows = count,
                 .scale = args.shape.scale,
                 .lse = args.lse.f32() + head * args.lse.ld + token,
                 .delta = delta + row},
                edge);
  multiply_rows<Into::kWrite>(count, d, first + count, {ds, space.ds.ld, 1}, packed.keys,
                              at(args.dq, token, head, d), args.dq.ld);
}

// Adds the contribution of queries [begin, end), whose p and ds are in the workspace, to dk and dv of the
// item's keys. Tiles of keys and of queries start at the same multiples of kTileRows; in a tile on the
// diagonal, p and ds are zero above it.
void add_key_gradients(const AttentionBackward& args, const Item& item, int64_t head, int64_t begin,
                       int64_t end, const Workspace& space) {
  const int64_t d = args.shape.head_dim;
  const int64_t token = item.segment.q_begin + begin;
  const int64_t ld = space.p.ld;
  const Panels q = pack_panels(at(args.q, token, head, d), args.q.ld, end - begin, d, space.q.f32());
  const Panels dout =
      pack_panels(at(args.dout, token, head, d), args.dout.ld, end - begin, d, space.dout.f32());
  for (int64_t key = 0; key < end; key += kTileRows) {
    const int64_t count = std::min(kTileRows, end - key);
    const int64_t skip = std::max<int64_t>(0, key - begin);  // queries before the tile's first key
    const int64_t rows = end - begin - skip;
    const int64_t from = skip * ld + key;
    multiply_rows<Into::kAdd>(count, round_up(d, kLanes), rows, {space.p.f32() + from, 1, ld},
                              {dout.data + skip * kPanel, dout.row, dout.panel},
                              space.dv.f32() + key * space.dv.ld, space.dv.ld);
    multiply_rows<Into::kAdd>(count, round_up(d, kLanes), rows, {space.ds.f32() + from, 1, ld},
                              {q.data + skip * kPanel, q.row, q.panel}, space.dk.f32() + key * space.dk.ld,
                              space.dk.ld);
  }
}

void backward_item(const AttentionBackward& args, const Item& item, const Workspace& space) {
  const AttentionSegment& s = item.segment;
  const int64_t d = args.shape.head_dim;
  const int64_t group = args.shape.q_heads / args.shape.kv_heads;
  const float* k = at(args.k, s.kv_begin, item.kv_head, d);
  const float* v = at(args.v, s.kv_begin, item.kv_head, d);
  const PackedItem packed{pack_transposed(k, args.k.ld, d, s.kv_len, space.keys_t.f32()),
                          pack_transposed(v, args.v.ld, d, s.kv_len, space.values_t.f32()),
                          pack_panels(k, args.k.ld, s.kv_len, d, space.keys.f32())};
  std::fill_n(space.dk.f32(), s.kv_len * space.dk.ld, 0.0F);
  std::fill_n(space.dv.f32(), s.kv_len * space.dv.ld, 0.0F);
  for (int64_t head = item.kv_head * group; head < (item.kv_head + 1) * group; ++head) {
    for (int64_t begin = 0; begin < s.q_len; begin += kBlock) {
      const int64_t end = std::min<int64_t>(begin + kBlock, s.q_len);
      float delta[kBlock];
      dot_rows(end - begin, d, at(args.dout, s.q_begin + begin, head, d), args.dout.ld,
               at(args.out, s.q_begin + begin, head, d), args.out.ld, delta);
      for (int64_t first = begin; first < end; first += kTileRows)
        backward_tile(args, item, head, first, first - begin, packed, delta, space);
      add_key_gradients(args, item, head, begin, end, space);
    }
  }
  for (int64_t j = 0; j < s.kv_len; ++j) {
    std::copy_n(space.dk.f32() + j * space.dk.ld, d, at(args.dk, s.kv_begin + j, item.kv_head, d));
    std::copy_n(space.dv.f32() + j * space.dv.ld, d, at(args.dv, s.kv_begin + j, item.kv_head, d));
  }
}

void check(const AttentionShape& shape, std::span<const AttentionSegment> segments, const Tensor& q,
           const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse) {
  PESC_CHECK(shape.kv_heads >= 1 && shape.q_heads % shape.kv_heads == 0 && shape.head_dim >= 1, shape.q_heads,
             " query heads, ", shape.kv_heads, " KV heads of ", shape.head_dim);
  for (const Tensor& t : {q, out})
    PESC_CHECK(t.dtype == DType::kF32 && t.cols == shape.q_heads * shape.head_dim && t.rows == q.rows, "q ",
               q.rows, "x", q.cols, ", out ", out.rows, "x", out.cols);
  for (const Tensor& t : {k, v})
    PESC_CHECK(t.dtype == DType::kF32 && t.cols == shape.kv_heads * shape.head_dim && t.rows == k.rows, "k ",
               k.rows, "x", k.cols, ", v ", v.rows, "x", v.cols);
  if (lse.present())
    PESC_CHECK(lse.dtype == DType::kF32 && lse.rows == shape.q_heads && lse.cols == q.rows, "lse ", lse.rows,
               "x", lse.cols);
  for (const AttentionSegment& s : segments)
    PESC_CHECK(s.q_begin >= 0 && s.q_len >= 1 && s.q_begin + s.q_len <= q.rows && s.kv_begin >= 0 &&
                   s.kv_len >= s.q_len && s.kv_begin + s.kv_len <= k.rows,
               "queries ", s.q_begin, " + ", s.q_len, " of ", q.rows, ", keys ", s.kv_begin, " + ", s.kv_len,
               " of ", k.rows);
}

}  // namespace

void attention_forward(Stream& stream, const AttentionForward& args, Arena& scratch) {
  if (stream.on_cuda()) return cuda_ops().attention_forward(stream, args, scratch);
  check(args.shape, args.segments, args.q, args.k, args.v, args.out, args.lse);
  const int64_t group = args.shape.q_heads / args.shape.kv_heads;
  for_each_item(stream, scratch, Pass::kForward, args.shape, args.segments,
                [&](const Item& item, const Workspace& space) {
                  // In place, v needs whole vectors.
                  if (item.segment.q_len * group <= kDirectRows && args.shape.head_dim % kLanes == 0) {
                    forward_direct(args, item, space);
                  } else {
                    forward_packed(args, item, space);
                  }
                });
}

void attention_backward(Stream& stream, const AttentionBackward& args, Arena& scratch) {
  if (stream.on_cuda()) return cuda_ops().attention_backward(stream, args, scratch);
  check(args.shape, args.segments, args.q, args.k, args.v, args.out, args.lse);
  check(args.shape, {}, args.dq, args.dk, args.dv, args.dout, {});
  PESC_CHECK((args.lse.present() || args.segments.empty()) && args.dq.rows == args.q.rows &&
                 args.dk.rows == args.k.rows,
             "dq ", args.dq.rows, "x", args.dq.cols, ", dk ", args.dk.rows, "x", args.dk.cols);
  for (const AttentionSegment& s : args.segments)
    PESC_CHECK(s.kv_len == s.q_len, "backward of ", s.q_len, " queries over ", s.kv_len, " keys");
  for_each_item(stream, scratch, Pass::kBackward, args.shape, args.segments,
                [&](const Item& item, const Workspace& space) { backward_item(args, item, space); });
}

int64_t attention_scratch_bytes(const Device& device, const AttentionShape& shape, int64_t tokens,
                                int64_t max_kv, DType activations) {
  if (device.kind == DeviceKind::kCuda) {
    // D = rowsum(dO o O) [HQ, tokens], and a list of tiles: one for each 32 queries or keys begun, four
    // numbers each.
    Arena arena = Arena::planning("attention scratch");
    (void)arena.allocate(shape.q_heads, tokens);
    (void)arena.allocate(tokens, 8, DType::kI32);
    const int64_t own = arena.peak() + (int64_t{64} << 10);
    if (activations != DType::kBF16) return own;
    return std::max(own, cuda::library_attention_scratch_bytes(shape, tokens, max_kv));
  }
  int64_t most = 0;
  for (const Pass pass : {Pass::kForward, Pass::kBackward}) {
    Arena arena = Arena::planning("attention scratch");
    for (int t = 0; t < std::max(1, device.threads); ++t) Workspace(arena, pass, shape.head_dim, max_kv);
    most = std::max(most, arena.peak());
  }
  return most;
}

std::string attention_library(const Stream& stream) {
  return stream.on_cuda() ? cuda::library_attention_report(stream) : "own kernels";
}

}  // namespace pesc
