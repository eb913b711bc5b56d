#include "runtime/decoder_options.h"

#include <algorithm>

namespace pesc {

DecoderUse training_use(const ExperimentConfig& config) {
  return {Purpose::kTraining, config.train.micro_batch_rows(), config.data.max_seq_length, 0};
}

Device device_of(const ExperimentConfig& config, int threads) {
  const KernelChoice kernel_choice =
      config.parallel.gemm_autotune ? KernelChoice::kAutotuned : KernelChoice::kFirst;
  return {config.parallel.device, 0, std::max(threads, 1), kernel_choice};
}

DecoderOptions decoder_options(const ExperimentConfig& c, const Mesh& mesh, const Device& device,
                               const DecoderUse& use) {
  DecoderOptions o;
  o.device = device;
  o.capacity.max_tokens = split_range(use.rows, mesh.dp(), 0).size() * use.sequence;
  o.capacity.max_sequence = use.sequence;
  o.capacity.buffer_factor = c.parallel.buffer_factor;
  if (use.purpose == Purpose::kTraining)
    o.capacity.dispatch_chunks = c.parallel.chunks(c.pesc, mesh, o.capacity.max_tokens);
  o.max_positions = use.sequence;
  o.cache_slots = use.cache_slots;
  o.purpose = use.purpose;
  o.recompute = c.train.recompute_granularity;
  o.compute = c.train.compute_dtype;
  o.overlap = c.parallel.overlap_comm;
  if (c.debug.share_gpu) o.gpu_use = GpuUse::kShared;
  return o;
}

}  // namespace pesc
