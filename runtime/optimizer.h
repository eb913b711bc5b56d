// The optimizer step over sharded parameters: reduction of gradients, the global norm counted once, clipping,
// AdamW.
#pragma once

#include <cstdint>

#include "model/decoder.h"
#include "parallel/gradient_reduction.h"
#include "runtime/config/adamw_config.h"

namespace pesc {

// When the gradients of a layer are reduced over ranks: after the whole backward, or on the comm stream while
// the backward computes the layers below.
enum class Reduce { kAtEnd, kOverlapped };

// Reduces the gradients of one step over the ranks that hold the same pieces, in buckets of whole layers. The
// buckets, and so the results bit for bit, do not depend on `when`.
class GradientReducer {
 public:
  // Layers are merged until a bucket has at least `bucket_bytes` of gradients, so that the latency of a
  // collective costs little.
  GradientReducer(Decoder& decoder, const GradientReduction& reduction, Reduce when,
                  int64_t bucket_bytes = int64_t{8} << 20);

  // The callback for Decoder::backward of the step's last micro-batch, after which nothing is added to the
  // gradients.
  [[nodiscard]] Decoder::LayerDone overlapped();
  // Reduces the remaining layers and all other gradients. Returns the L2 norm over every trainable parameter,
  // each counted once, before clipping. Collective over world.
  [[nodiscard]] double finish(Communicator& world);

 private:
  void reduce_layers(int64_t begin, int64_t end);

  Decoder& decoder_;
  const GradientReduction& reduction_;
  Reduce when_;
  int64_t bucket_layers_;  // layers of a bucket
  int64_t left_;           // layers [0, left_) are not reduced yet
};

// One AdamW update; `update` is 1 at the first. The clipping factor is min(1, clip / (norm + 1e-6)).
void optimizer_step(Decoder& decoder, const AdamWConfig& config, double lr, int64_t update, double norm);

}  // namespace pesc
