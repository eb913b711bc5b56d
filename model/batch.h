// One rank's share of a micro-batch: packed sequences of any length, padded only by the few tokens that make
// the tensor-parallel slices equal.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/attention.h"
#include "ops/core/arena.h"
#include "parallel/mesh.h"
#include "parallel/shard_spec.h"

namespace pesc {

// Host side; every tp rank of a dp rank holds the same. T tokens; sequence i is [starts[i], starts[i+1]).
struct HostBatch {
  std::vector<int32_t> tokens;     // [T]
  std::vector<int32_t> targets;    // [T] the token that position t predicts, or -100: not supervised
  std::vector<int32_t> positions;  // [T] within the sequence
  std::vector<int64_t> samples;    // [T] global number of the sequence: keys the dropout masks
  std::vector<int32_t> starts{0};  // [sequences + 1]
  // Decoding with a KV cache: the cache slot of each sequence, and the number of its tokens that are in the
  // cache already. Empty in training.
  std::vector<int32_t> slots, past;  // [sequences]
  [[nodiscard]] int64_t size() const { return static_cast<int64_t>(tokens.size()); }
};

// Device side. `padded` = slice * tp tokens; ids of padding are -1.
struct Batch {
  int64_t tokens = 0;      // T, real ones
  int64_t slice = 0;       // tokens per tp rank, padding included
  int64_t padded = 0;      // slice * tp
  int64_t slice_real = 0;  // real tokens of this rank's slice; they are its first rows
  Tensor ids;              // [1, padded] I32
  Tensor positions;        // [1, padded] I32
  Tensor samples;          // [1, padded] I64
  Tensor slice_positions;  // [1, slice]
  Tensor slice_samples;    // [1, slice]
  // positions and samples in the order of the FFN's rows: chunk by chunk, each chunk gathered over tp
  Tensor chunked_positions, chunked_samples;  // [1, padded]
  Tensor rows;                                // [1, N] I32 supervised positions, rising
  Tensor targets;                             // [1, N] I32
  std::vector<AttentionSegment> segments;
  bool cached = false;                      // keys and values are in the KV cache
  std::vector<int64_t> slice_samples_host;  // [slice_real], for recorded routing
  std::vector<int32_t> slice_positions_host;
  [[nodiscard]] int64_t supervised() const { return rows.cols; }
};

// Splits the rows of a slice into `chunks` (1 or 2) ranges, the first of which is the longer. The FFN and the
// token exchange process them one after the other, so that they overlap.
[[nodiscard]] std::vector<Range> chunk_rows(int64_t slice, int chunks);

// Rows `rows` of every rank's slice as a batch, for ops that work on each token separately. It has no ids,
// targets or segments.
struct BatchChunk {
  Range rows;
  Batch batch;
  BatchChunk(const Batch& whole, const Range& rows);
};

// Device memory for batches of up to `max_tokens` tokens; one batch at a time.
class BatchBuffers {
 public:
  BatchBuffers(int64_t max_tokens, const Mesh& mesh, int chunks, Arena& arena);
  // Throws InternalError when the batch is larger than planned. `cache_length`: tokens per slot of the KV
  // cache, 0 without one.
  [[nodiscard]] Batch load(Stream& stream, const HostBatch& host, int64_t cache_length) const;

 private:
  int tp_ = 1, tp_rank_ = 0, chunks_ = 1;
  Tensor ids_, positions_, samples_, rows_, targets_;
  Tensor chunked_positions_, chunked_samples_;  // several chunks and tp > 1
};

}  // namespace pesc
