// The optimizer step over sharded parameters: reduction of gradients, the global norm counted once, clipping,
// AdamW.
#pragma once

#include <cstdint>

#include "model/decoder.h"
#include "parallel/gradient_reduction.h"
#include "runtime/config/adamw_config.h"

namespace pesc {

// When the gradients of a layer are summed over ranks: once the backward is through with everything, or while
// it works on the layers below, on the communication stream.
enum class Reduce { kAtEnd, kBehindLayers };

// Sums the gradients of one step over the ranks that hold the same pieces. The pieces in which it does so,
// and with them the results bit for bit, do not depend on `when`.
class GradientSum {
 public:
  // Layers go together until they have `piece_bytes` of gradients: a collective's start shall cost little.
  GradientSum(Decoder& decoder, const GradientReduction& reduction, Reduce when,
              int64_t piece_bytes = int64_t{8} << 20);

  // For Decoder::backward of the step's last micro-batch, when nothing else will be added to the gradients.
  [[nodiscard]] Decoder::LayerDone behind_layers();
  // What is left; then the norm over every trained parameter counted once, before clipping. Collective over
  // world.
  [[nodiscard]] double finish(Communicator& world);

 private:
  void reduce_layers(int64_t begin, int64_t end);

  Decoder& decoder_;
  const GradientReduction& reduction_;
  Reduce when_;
  int64_t piece_;  // layers
  int64_t left_;   // layers [0, left_) are not summed yet
};

// All of it after the backward.
[[nodiscard]] double reduce_gradients(Decoder& decoder, Communicator& world,
                                      const GradientReduction& reduction);

// One AdamW update; `update` is 1 at the first. The clipping factor is min(1, clip / (norm + 1e-6)).
void optimizer_step(Decoder& decoder, const AdamWConfig& config, double lr, int64_t update, double norm);

}  // namespace pesc
