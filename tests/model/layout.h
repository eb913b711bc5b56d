// How a test runs a model, and the decoder's options for that, which come from where a run's do.
#pragma once

#include <optional>

#include "runtime/decoder_options.h"
#include "runtime/optimizer.h"
#include "tests/device.h"

namespace pesc {

struct Layout {
  int tp = 1, ep = 1;
  double buffer_factor = 2;
  int threads = 1;
  int64_t cache_slots = 0;
  Purpose purpose = Purpose::kTraining;
  int chunks = 1;
  Reduce reduce = Reduce::kAtEnd;
  Overlap overlap = Overlap::kOn;
  Recompute recompute = Recompute::kNone;
  DType compute = DType::kF32;
  std::optional<FrozenFormat> frozen{};  // absent: as `compute`
  FrozenGemm frozen_gemm = FrozenGemm::kDequantized;
  ExpertExchange exchange = ExpertExchange::kTokens;
};

// `tokens`: the most that a rank has, whose rows have any lengths up to model.max_positions. A few supervised
// rows have logits at one time, so that there are several chunks of them.
inline DecoderOptions options_of(const ModelConfig& model, const PescConfig& pesc, const Mesh& mesh,
                                 const Layout& layout, int64_t tokens) {
  ExperimentConfig c;
  c.pesc = pesc;
  c.train.recompute_granularity = layout.recompute;
  c.train.compute_dtype = layout.compute;
  c.train.frozen_dtype = layout.frozen;
  c.train.frozen_gemm = layout.frozen_gemm;
  c.parallel.buffer_factor = layout.buffer_factor;
  c.parallel.ep = layout.ep;
  c.parallel.expert_exchange = layout.exchange;
  c.parallel.dispatch_chunks = layout.chunks;
  c.parallel.overlap_comm = layout.overlap;
  DecoderOptions o =
      decoder_options(c, mesh, test_device(layout.threads),
                      {layout.purpose, mesh.dp(), model.max_position_embeddings, layout.cache_slots});
  o.capacity.max_tokens = tokens;
  o.capacity.head_chunk = 8;
  return o;
}

}  // namespace pesc
