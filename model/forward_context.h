// The context of a forward or backward of one micro-batch, which every module gets.
#pragma once

#include <array>
#include <cstdint>

#include "model/activations.h"
#include "model/batch.h"
#include "model/config.h"
#include "ops/core/arena.h"
#include "ops/dropout.h"
#include "parallel/tensor_parallel.h"

namespace pesc {

enum class ForwardMode { kTrain, kEval };  // kEval: without dropout

// The scratch of the token exchange, which runs on stream.comm_stream(), and the events between that stream
// and the compute stream. routed: the router's choice is written. ready[c]: the FFN output of chunk c is
// written. arrived[c]: the rows of chunk c are received. combined[c]: the adapters' results of chunk c are
// added at home.
struct CommContext {
  Arena& scratch;
  Event routed;
  std::array<Event, kMaxChunks> ready, arrived, combined;
};

struct ForwardContext {
  Stream& stream;
  const TensorParallel& tp;
  const Workspace& ws;
  Arena& scratch;
  CommContext& comm;
  const ModelConfig& model;
  const PescConfig& pesc;
  const Batch& batch;
  ForwardMode kind = ForwardMode::kTrain;
  uint64_t seed = 0;  // of the dropout masks
  uint32_t step = 0;  // optimizer step

  // The same context for a part of the batch. REQUIRES: `part` outlives it.
  [[nodiscard]] ForwardContext over(const Batch& part) const {
    return {stream, tp, ws, scratch, comm, model, pesc, part, kind, seed, step};
  }

  // The dropout mask of an input whose rows are this rank's slice of the tokens, or all gathered tokens.
  [[nodiscard]] Dropout slice_dropout(int64_t layer, DropoutSite site) const {
    return make(layer, site, batch.slice_samples, batch.slice_positions, 0);
  }
  [[nodiscard]] Dropout full_dropout(int64_t layer, DropoutSite site, int64_t column0) const {
    return make(layer, site, batch.samples, batch.positions, column0);
  }

 private:
  [[nodiscard]] Dropout make(int64_t layer, DropoutSite site, const Tensor& samples, const Tensor& positions,
                             int64_t column0) const {
    const double rate = site == DropoutSite::kAdapter ? pesc.moe.adapter_dropout : pesc.lora.lora_dropout;
    Dropout d;
    d.rate = kind == ForwardMode::kTrain ? static_cast<float>(rate) : 0.0F;
    d.seed = seed;
    d.step = step;
    d.layer = static_cast<uint32_t>(layer);
    d.site = site;
    d.samples = samples;
    d.positions = positions;
    d.column0 = column0;
    return d;
  }
};

}  // namespace pesc
