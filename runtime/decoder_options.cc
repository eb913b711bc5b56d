#include "runtime/decoder_options.h"

#include <algorithm>
#include <functional>

#include "ops/core/check.h"
#include "ops/fp8_gemm.h"
#include "runtime/expert_exchange.h"

namespace pesc {

DecoderUse training_use(const ExperimentConfig& config) {
  return {Purpose::kTraining, config.train.micro_batch_rows(), config.data.max_seq_length, 0};
}

Device device_of(const ExperimentConfig& config, int threads) {
  const KernelChoice kernel_choice =
      config.parallel.gemm_autotune ? KernelChoice::kAutotuned : KernelChoice::kFirst;
  return {config.parallel.device, 0, std::max(threads, 1), kernel_choice};
}

bool multiplies_in_fp8(const ExperimentConfig& config, const Device& device) {
  if (config.train.frozen_gemm) return *config.train.frozen_gemm == FrozenGemm::kFP8;
  return !cuda::built() || cuda::device_count() <= device.index ||
         multiplies_fp8(cuda::device_info(device.index));
}

void check_fp8(const ExperimentConfig& config, int index, const cuda::DeviceInfo& info) {
  if (config.train.frozen_gemm != FrozenGemm::kFP8 || multiplies_fp8(info)) return;
  refuse_fp8(str_cat("GPU ", index, " (", info.name, ") has ", info.major, ".", info.minor));
}

void check_same_gemms(const std::vector<int64_t>& fp8_of_ranks) {
  const auto other = std::ranges::adjacent_find(fp8_of_ranks, std::ranges::not_equal_to{});
  if (other == fp8_of_ranks.end()) return;
  const auto rank = other - fp8_of_ranks.begin();
  const auto fp8 = *other == 1 ? rank : rank + 1;
  const auto bf16 = *other == 1 ? rank + 1 : rank;
  throw UsageError(str_cat("train.compute_dtype is AUTO, and the frozen weights are FP8: the GPU of rank ",
                           fp8, " would multiply them in FP8, that of rank ", bf16,
                           " in BF16; set train.compute_dtype: BF16, or run on GPUs of one kind"));
}

void refuse_fp8(const std::string& reason) {
  throw UsageError(
      str_cat("train.compute_dtype is FP8, but the FP8 GEMMs of pesc are for compute capability 9.0 "
              "(H100, H200), and ",
              reason, "; leave train.compute_dtype out, or set it to BF16: train.frozen_dtype may stay"));
}

DecoderOptions decoder_options(const ExperimentConfig& c, const Mesh& mesh, const Device& device,
                               const DecoderUse& use) {
  DecoderOptions o;
  o.device = device;
  o.capacity.max_tokens = split_range(use.rows, mesh.dp(), 0).size() * use.sequence;
  o.capacity.max_sequence = use.sequence;
  o.capacity.buffer_factor = c.parallel.buffer_factor;
  // A decoder that answers token by token sends less in tokens, so that AUTO is that.
  const bool answers = use.cache_slots > 0 && !c.parallel.expert_exchange;
  if (!answers) o.capacity.expert_exchange = expert_exchange(c, mesh.world());
  if (use.purpose == Purpose::kTraining && o.capacity.expert_exchange == ExpertExchange::kTokens)
    o.capacity.dispatch_chunks = c.parallel.chunks(c.pesc, mesh, o.capacity.max_tokens);
  o.max_positions = use.sequence;
  o.cache_slots = use.cache_slots;
  o.purpose = use.purpose;
  o.recompute = c.train.recompute_granularity;
  o.compute = c.train.compute_dtype;
  o.frozen = c.train.frozen_dtype;
  if (multiplies_in_fp8(c, device)) o.frozen_gemm = FrozenGemm::kFP8;
  o.overlap = c.parallel.overlap_comm;
  o.capacity.gathers_ahead = has_comm_stream(mesh, o);
  if (c.debug.share_gpu) o.gpu_use = GpuUse::kShared;
  return o;
}

}  // namespace pesc
