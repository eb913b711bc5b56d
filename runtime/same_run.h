// Whether a checkpoint belongs to the experiment; every verb that loads one checks. See runtime/README.md.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "runtime/base_digest.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/config/same_run.h"
#include "runtime/job.h"

namespace pesc {

// What the results of a run depend on besides its configuration and files, kept in every checkpoint:
// library_versions(), and what the configuration leaves open: the threads of a rank, the chunks of the token exchange,
// and on a GPU what quantised weights are multiplied in.
[[nodiscard]] std::map<std::string, std::string> run_versions(const Job& job);

// Name of what a checkpoint further keeps: RowEncoder::digest(), of rows as the prompt and the tokenizer encode
// them. For the published prompt nothing in an experiment changes it; another version of pesc or other files of
// the tokenizer may.
inline constexpr const char* kTemplateDigest = "template_digest";
// PeftFolder::digest() of the adapter that the run began with; absent: it began with none.
inline constexpr const char* kAdapterDigest = "adapter_digest";

// Compares the run that saved the checkpoint with this one: base model, tokenizer and template, then the
// configuration (see runtime/config/same_run.h), then versions and layout. `digest`: base_digest() (of either
// form). Throws UsageError naming each field that must not differ with both values, DataError for another
// base model. Returns what is to be said once: another path, another train.frozen_dtype, and in one line all that
// changes rounding.
struct CheckpointNotes {
  std::string information;  // empty: nothing to say
  std::vector<std::string> warnings;
};
[[nodiscard]] CheckpointNotes check_same_run(const Job& job, const LoadedCheckpoint& checkpoint,
                                             const BaseDigest& digest, CheckpointUse use);

}  // namespace pesc
