// Which fields a checkpoint's configuration must share with the experiment that loads it (runtime/README.md).
//
// Every field of the schema is of one of five kinds:
//
//   model      what the trained model computes: train.mode, model.shape, lora.{r, lora_alpha,
//              target_modules}, moe.{num_experts, num_experts_per_tok, adapter_dim, adapter_scaling}. Every
//              verb refuses another value.
//   training   what else the run's loss curve depends on: data, batches, rates, seed, dropout,
//              router_aux_loss_coef. A resumed run refuses another value; eval, generate and export do not
//              read these fields, except that eval refuses another data.validation_fraction where it
//              evaluates one: its rows would be among those that were trained on.
//   frozen     train.frozen_dtype. A resumed run refuses another value; eval and generate take that of the experiment and
//              export that of the run, and each warns. On a base that is quantised already it is rounding for these.
//   rounding   device, compute type, layout, threads, chunks, timed kernels. Another value gives a warning.
//   free       names, paths, columns, logging, saving, evaluation, early stopping, recovery. Paths and
//              columns may change: the files behind model.path, model.tokenizer, model.adapter and data.train[].path are
//              compared by content (runtime/same_run.h).
//
// A field that is in the schema but not in this list is of kind training. Where the recorded configuration
// lacks a field, today's default counts as its value: a field that is added to the schema with a default
// refuses no older checkpoint until it is given another value.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pesc {

// What a checkpoint is loaded for.
enum class CheckpointUse {
  kResume,    // train
  kEvaluate,  // eval
  kAnswer,    // generate
  kExport,    // the values alone
};

struct RunDifferences {
  std::vector<std::string> refused;   // "moe.adapter_scaling: 1 -> 3"
  std::vector<std::string> rounding;  // "parallel.device: CUDA -> CPU"
  std::vector<std::string> frozen;    // "train.frozen_dtype: NF4 -> FP8", where it is not refused
};

// Compares two resolved texts; the first may be of another version. AUTO of train.compute_dtype counts as the
// type that it resolves to, with quantised weights as BF16 (compare_frozen_gemm). Layout, threads and chunks, which the text does not resolve, are not compared
// here.
// Throws DataError when the recorded text cannot be read.
[[nodiscard]] RunDifferences compare_runs(const std::string& recorded, const std::string& now,
                                          CheckpointUse use);

// AUTO of train.compute_dtype is FP8 or BF16 by the GPU. Where both runs say what their quantised weights were multiplied in
// ("FP8", "BF16"), this replaces in `rounding` what compare_runs says of the field.
void compare_frozen_gemm(const std::string& recorded, const std::string& now,
                         std::vector<std::string>& rounding);

// Throws UsageError listing the fields; nothing when there are none.
void refuse_differences(const std::vector<std::string>& refused, CheckpointUse use);

// Checks that the numbers which a manifest repeats agree with its own configuration. Throws DataError.
void check_recorded_numbers(const std::string& recorded, int64_t step, int64_t consumed_samples,
                            uint64_t seed);

}  // namespace pesc
