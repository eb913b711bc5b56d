// An experiment's settings as the options of its decoder: the only place that derives these, for the ranks of
// a run as for `pesc plan`, which has none.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/decoder.h"
#include "runtime/config/experiment.h"

namespace pesc {

// What a decoder is made for.
struct DecoderUse {
  Purpose purpose = Purpose::kTraining;
  int64_t rows = 0;         // of a micro-batch, over all dp ranks
  int64_t sequence = 0;     // tokens of the longest row
  int64_t cache_slots = 0;  // sequences of the KV cache of a dp rank; 0: none
};
// Of the training that the experiment describes.
[[nodiscard]] DecoderUse training_use(const ExperimentConfig& config);

// `threads`: CPU threads of a rank. The CUDA device is the first, until a rank knows its own.
[[nodiscard]] Device device_of(const ExperimentConfig& config, int threads);

// Whether quantised frozen weights are multiplied in FP8. Where the device decides (FP8 weights, compute type AUTO)
// and there is none, as for a plan, it is taken to be a Hopper GPU.
[[nodiscard]] bool multiplies_in_fp8(const ExperimentConfig& config, const Device& device);
// Throws UsageError, naming the GPU, where train.compute_dtype FP8 is set and it cannot.
void check_fp8(const ExperimentConfig& config, int index, const cuda::DeviceInfo& info);
// Throws UsageError, naming two ranks, where some ranks' GPUs multiply in FP8 (1) and others do not (0).
void check_same_gemms(const std::vector<int64_t>& fp8_of_ranks);
// The same as check_fp8 of a GPU that is not there: "--gpu A100-80 has no FP8 GEMMs that pesc can use".
[[noreturn]] void refuse_fp8(const std::string& reason);

[[nodiscard]] DecoderOptions decoder_options(const ExperimentConfig& config, const Mesh& mesh,
                                             const Device& device, const DecoderUse& use);

}  // namespace pesc
