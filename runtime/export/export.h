// A tuned model out of the program: `pesc export`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "ops/core/tensor.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/export/export_format.h"
#include "runtime/filesystem/filesystem.h"
#include "runtime/job.h"

namespace pesc {

struct ExportOptions {
  std::string out;  // the folder to be made
  ExportFormat format = ExportFormat::kHf;
  // Absent: BF16 where the base's embedding has 16 bits and the format is not PEFT and the mode not FULL, else F32.
  std::optional<DType> dtype;
  // Of a run on quantised frozen weights in a format that merges LoRA, and of no other.
  std::optional<MergeInto> merge_into;
};

// "BF16" or "F32", in any case of letters; nothing for an empty text. Throws UsageError.
[[nodiscard]] std::optional<DType> export_dtype(const std::string& text);

// Throws UsageError where the format cannot have the model of the experiment's run, or an option does not fit it, and says
// why. What the checkpoint says of the run is checked by export_model().
void check_export(const Job& job, const ExportOptions& options);

// Writes `options.out` on the one rank that there is, from the base and the checkpoint, of which no more than some slices
// are in memory at a time. The folder appears whole or not at all; one that is there is never touched. Returns the bytes
// of its files. Throws UsageError, DataError, IoError.
int64_t export_model(Job& job, const LoadedCheckpoint& checkpoint, const ExportOptions& options,
                     FileSystem& files = posix_filesystem());

}  // namespace pesc
