// What a checkpoint's configuration must have in common with the experiment that loads it.
//
// Every field of the schema is of one of four kinds:
//
//   model      what the trained model computes: train.mode, model.shape, lora.{rank, alpha, target},
//              moe.{experts, top_k, adapter_dim, scale}. Every verb refuses another value.
//   training   what a run's further course depends on besides: data, batches, rates, seed, dropout, aux_coef.
//              A resumed run refuses another value; eval, generate and export do not read these fields.
//   rounding   device, compute type, layout, threads, chunks, timed kernels: a warning.
//   free       names, paths, logging, saving, evaluation, recovery. The files behind model.path,
//   model.tokenizer
//              and data.train[].path are compared by their content, elsewhere; the paths may change.
//
// A field that the schema has and this list has not is of kind training. Where the recorded configuration
// lacks a field, today's default counts as recorded.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pesc {

// What a checkpoint is loaded for.
enum class CheckpointUse {
  kResume,  // train
  kAnswer,  // eval, generate
  kExport,  // the values alone
};

struct RunDifferences {
  std::vector<std::string> refused;   // "moe.scale: 1 -> 3"
  std::vector<std::string> rounding;  // "parallel.device: CUDA -> CPU"
};

// Of two resolved texts; the first may be of another version. AUTO of train.compute counts as what it stands
// for. Layout, threads and chunks, which the text does not resolve, are not compared here. Throws DataError
// where the recorded text cannot be read.
[[nodiscard]] RunDifferences compare_runs(const std::string& recorded, const std::string& now,
                                          CheckpointUse use);

// Throws UsageError listing the fields; nothing when there are none.
void refuse_differences(const std::vector<std::string>& refused, CheckpointUse use);

// The numbers that a manifest repeats must be those of its own configuration. Throws DataError.
void check_recorded_numbers(const std::string& recorded, int64_t step, int64_t cursor, uint64_t seed);

}  // namespace pesc
