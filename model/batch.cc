#include "model/batch.h"

#include <algorithm>

namespace pesc {

namespace {

// [padded] values in the order of the gathered tokens -> in that of the FFN's rows.
template <class T>
std::vector<T> chunk_by_chunk(const std::vector<T>& values, const std::vector<Range>& chunks, int64_t slice,
                              int tp) {
  std::vector<T> out;
  out.reserve(values.size());
  for (const Range& c : chunks) {
    for (int r = 0; r < tp; ++r)
      out.insert(out.end(), values.begin() + r * slice + c.begin, values.begin() + r * slice + c.end);
  }
  return out;
}

}  // namespace

std::vector<Range> chunk_rows(int64_t slice, int chunks) {
  if (chunks == 1) return {{0, slice}};
  constexpr int64_t kTile = 256;  // rows of whole tiles of the GEMMs, where there are many
  int64_t first = (slice + 1) / 2;
  if (first >= 2 * kTile) first = (first + kTile - 1) / kTile * kTile;
  return {{0, first}, {first, slice}};
}

BatchChunk::BatchChunk(const Batch& whole, const Range& range) : rows(range) {
  const int64_t tp = whole.slice == 0 ? 1 : whole.padded / whole.slice;
  const Range all{range.begin * tp, range.end * tp};
  batch.slice = rows.size();
  batch.padded = all.size();
  batch.slice_real = std::clamp(whole.slice_real - rows.begin, int64_t{0}, rows.size());
  batch.slice_positions = whole.slice_positions.col_range(rows.begin, rows.end);
  batch.slice_samples = whole.slice_samples.col_range(rows.begin, rows.end);
  batch.positions = batch.chunked_positions = whole.chunked_positions.col_range(all.begin, all.end);
  batch.samples = batch.chunked_samples = whole.chunked_samples.col_range(all.begin, all.end);
}

BatchBuffers::BatchBuffers(int64_t max_tokens, const Mesh& mesh, int chunks, Arena& arena)
    : tp_(mesh.tp()), tp_rank_(mesh.tp_rank()), chunks_(chunks) {
  const int64_t padded = (max_tokens + tp_ - 1) / tp_ * tp_;
  ids_ = arena.allocate(1, padded, DType::kI32);
  positions_ = arena.allocate(1, padded, DType::kI32);
  samples_ = arena.allocate(1, padded, DType::kI64);
  rows_ = arena.allocate(1, padded, DType::kI32);
  targets_ = arena.allocate(1, padded, DType::kI32);
  if (chunks_ == 1 || tp_ == 1) return;
  chunked_positions_ = arena.allocate(1, padded, DType::kI32);
  chunked_samples_ = arena.allocate(1, padded, DType::kI64);
}

Batch BatchBuffers::load(Stream& stream, const HostBatch& host, int64_t cache_length) const {
  Batch b;
  b.tokens = host.size();
  b.slice = (b.tokens + tp_ - 1) / tp_;
  b.padded = b.slice * tp_;
  PESC_CHECK(b.padded <= ids_.cols, "a batch of ", b.tokens, " tokens where ", ids_.cols, " were planned");
  const int64_t begin = std::min(b.slice * tp_rank_, b.tokens);
  const int64_t end = std::min(begin + b.slice, b.tokens);
  b.slice_real = end - begin;

  const auto padded = static_cast<size_t>(b.padded);
  std::vector<int32_t> ids(host.tokens);
  std::vector<int32_t> positions(host.positions);
  std::vector<int64_t> samples(host.samples);
  ids.resize(padded, -1);
  positions.resize(padded, 0);
  samples.resize(padded, 0);
  std::vector<int32_t> rows;
  std::vector<int32_t> targets;
  for (int64_t t = 0; t < b.tokens; ++t) {
    const int32_t target = host.targets.empty() ? -100 : host.targets[static_cast<size_t>(t)];
    if (target < 0) continue;
    rows.push_back(static_cast<int32_t>(t));
    targets.push_back(target);
  }
  const auto supervised = static_cast<int64_t>(rows.size());
  b.ids = ids_.col_range(0, b.padded);
  b.positions = positions_.col_range(0, b.padded);
  b.samples = samples_.col_range(0, b.padded);
  b.rows = rows_.col_range(0, supervised);
  b.targets = targets_.col_range(0, supervised);
  copy_from_host(stream, ids.data(), b.ids);
  copy_from_host(stream, positions.data(), b.positions);
  copy_from_host(stream, samples.data(), b.samples);
  copy_from_host(stream, rows.data(), b.rows);
  copy_from_host(stream, targets.data(), b.targets);

  const int64_t first = b.slice * tp_rank_;
  b.slice_positions = b.positions.col_range(first, first + b.slice);
  b.slice_samples = b.samples.col_range(first, first + b.slice);
  b.chunked_positions = b.positions;
  b.chunked_samples = b.samples;
  if (chunked_samples_.cols > 0) {
    const auto chunks = chunk_rows(b.slice, chunks_);
    b.chunked_positions = chunked_positions_.col_range(0, b.padded);
    b.chunked_samples = chunked_samples_.col_range(0, b.padded);
    copy_from_host(stream, chunk_by_chunk(positions, chunks, b.slice, tp_).data(), b.chunked_positions);
    copy_from_host(stream, chunk_by_chunk(samples, chunks, b.slice, tp_).data(), b.chunked_samples);
  }
  b.slice_samples_host.assign(host.samples.begin() + begin, host.samples.begin() + end);
  b.slice_positions_host.assign(host.positions.begin() + begin, host.positions.begin() + end);
  b.cached = !host.slots.empty();
  for (size_t i = 0; i + 1 < host.starts.size(); ++i) {
    const int32_t start = host.starts[i];
    const int32_t length = host.starts[i + 1] - start;
    if (length == 0) continue;
    AttentionSegment segment{start, length, start, length};
    if (!host.slots.empty()) {
      segment.kv_begin = static_cast<int32_t>(host.slots[i] * cache_length);
      segment.kv_len = host.past[i] + length;
      PESC_CHECK(segment.kv_len <= cache_length, "sequence of ", segment.kv_len, " in a cache of ",
                 cache_length);
    }
    b.segments.push_back(segment);
  }
  return b;
}

}  // namespace pesc
