#include "runtime/same_run.h"

#include <cstdio>
#include <set>
#include <vector>

#include "runtime/config/experiment.h"
#include "runtime/decoder_options.h"
#include "runtime/expert_exchange.h"
#include "runtime/versions.h"

namespace pesc {
namespace {

// Of run_versions(): what quantised weights are multiplied in on a GPU.
constexpr const char* kFrozenGemm = "frozen_gemm";

std::string layout_text(int world, int tp, int ep) {
  return str_cat(world, world == 1 ? " rank" : " ranks", " (tp ", tp, ", ep ", ep, ")");
}

void check_tokenizer(const Job& job, const LoadedCheckpoint& c, const std::string& digest) {
  const std::string saved = tokenizer_part(c.state.base_digest);
  const std::string now = tokenizer_part(digest);
  const std::string& folder = job.config.model.tokenizer;
  const std::string prefix = job.config.places.prefix("model.tokenizer");
  if (weights_part(c.state.base_digest) == weights_part(digest) && saved != now) {
    throw UsageError(str_cat(prefix, "model.tokenizer: the tokenizer of '", folder,
                             "' is not the one that the checkpoint of step ", c.state.step,
                             " was trained with (digest ", saved, " -> ", now,
                             "); name the folder that holds that one"));
  }
  const auto rows = c.state.extra.find(kTemplateDigest);
  if (rows == c.state.extra.end() || job.encoder == nullptr) return;
  const std::string encoded = job.encoder->digest();
  if (saved == now && rows->second != encoded) {
    throw UsageError(str_cat(
        "the checkpoint of step ", c.state.step,
        " was trained on rows that another prompt encoded, or the same one otherwise (template digest ",
        rows->second, " -> ", encoded, "); now conversations are written with ", job.encoder->name(),
        ". Set data.chat_template to that of the run, or use the files of the tokenizer and the version of "
        "pesc "
        "of that time"));
  }
}

// Of a run that goes on: from the same adapter as it began, for a checkpoint that was lost would be made up for from it.
void check_adapter(const Job& job, const CheckpointState& s) {
  const auto recorded = s.extra.find(kAdapterDigest);
  const std::string before = recorded == s.extra.end() ? "" : recorded->second;
  if (before == job.adapter_digest) return;
  const auto text = [](const std::string& digest) {
    return digest.empty() ? "none" : "one of digest " + digest;
  };
  throw UsageError(
      str_cat(job.config.places.prefix("model.adapter"),
              "model.adapter: the run directory holds a checkpoint of a run that began with another "
              "adapter (",
              text(before), " -> ", text(job.adapter_digest), "); put it back, or use another run_dir"));
}

// Of answers only what a forward depends on; a layout of theirs promises nothing.
bool concerns(const std::string& version, CheckpointUse use) {
  static const std::set<std::string> kTrainingAlone{
      "dispatch_chunks", "expert_exchange", "num_threads", "mpi", "nccl", "nccl_settings"};
  return use == CheckpointUse::kResume || !kTrainingAlone.contains(version);
}

void compare_versions(const Job& job, const LoadedCheckpoint& c, CheckpointUse use,
                      std::vector<std::string>& rounding) {
  const auto now = run_versions(job);
  // Of another device all of these are others, and it has been said.
  static const std::set<std::string> kOfTheDevice{"gemm", "gpu", "nccl", "nccl_settings", "num_threads"};
  bool other_device = false;
  for (const std::string& line : rounding) other_device |= line.starts_with("parallel.device:");
  for (const auto& [name, value] : now) {
    const auto before = c.state.versions.find(name);
    if (before == c.state.versions.end() || before->second == value) continue;
    if (!concerns(name, use) || (other_device && kOfTheDevice.contains(name))) continue;
    if (name == kFrozenGemm) continue;
    rounding.push_back(str_cat(name, ": ", before->second, " -> ", value));
  }
  const auto recorded = c.state.versions.find(kFrozenGemm);
  const auto mine = now.find(kFrozenGemm);
  if (recorded != c.state.versions.end() && mine != now.end())
    compare_frozen_gemm(recorded->second, mine->second, rounding);
}

// `line`: train.frozen_dtype with both values.
std::string other_frozen_weights(const std::string& line, int64_t step, CheckpointUse use) {
  return str_cat("the checkpoint of step ", step,
                 " was trained on frozen weights of another type than the experiment names, ",
                 use == CheckpointUse::kExport
                     ? "and the export takes that of the run"
                     : "so that losses and answers are not those of the model that was trained",
                 " (run -> experiment): ", line);
}

}  // namespace

std::map<std::string, std::string> run_versions(const Job& job) {
  std::map<std::string, std::string> versions = library_versions(job.device);
  const Mesh& mesh = job.mesh();
  const TrainSection& t = job.config.train;
  const int64_t tokens =
      split_range(t.micro_batch_rows(), mesh.dp(), 0).size() * job.config.data.max_seq_length;
  versions["num_threads"] = std::to_string(job.placement.threads);
  if (job.device.kind == DeviceKind::kCuda && t.frozen_dtype)
    versions[kFrozenGemm] = multiplies_in_fp8(job.config, job.device) ? "FP8" : dtype_name(t.compute_dtype);
  if (job.config.pesc.mode != TrainMode::kPesc) return versions;
  const ExpertExchange exchange = expert_exchange(job.config, mesh.world());
  const int chunks =
      exchange == ExpertExchange::kWeights ? 1 : job.config.parallel.chunks(job.config.pesc, mesh, tokens);
  versions["dispatch_chunks"] = std::to_string(chunks);
  if (mesh.ep() > 1) versions["expert_exchange"] = expert_exchange_name(exchange);
  return versions;
}

CheckpointNotes check_same_run(const Job& job, const LoadedCheckpoint& checkpoint, const BaseDigest& base,
                               CheckpointUse use) {
  const CheckpointState& s = checkpoint.state;
  const std::string& digest = base.to_compare(s.base_digest);
  CheckpointNotes notes;
  check_recorded_numbers(s.config_text, s.step, s.consumed_samples, s.seed);
  check_tokenizer(job, checkpoint, digest);
  if (use == CheckpointUse::kResume) check_adapter(job, s);
  notes.information = check_base(s, job.config.model.path, digest);
  RunDifferences found = compare_runs(s.config_text, job.config.text, use);
  refuse_differences(found.refused, use);
  // A base that is quantised already has the same values whether they are dequantised when they are read or later.
  for (const std::string& line : found.frozen) {
    if (job.model.quantized)
      found.rounding.push_back(line);
    else
      notes.warnings.push_back(other_frozen_weights(line, s.step, use));
  }
  if (use == CheckpointUse::kExport) return notes;
  if (use == CheckpointUse::kResume) {
    const std::string before = layout_text(checkpoint.world, s.tp, s.ep);
    const std::string now = layout_text(job.mesh().world(), job.mesh().tp(), job.mesh().ep());
    if (before != now) found.rounding.push_back(str_cat("layout: ", before, " -> ", now));
  }
  compare_versions(job, checkpoint, use, found.rounding);
  if (found.rounding.empty()) return notes;
  std::string text =
      str_cat("the checkpoint of step ", s.step,
              " was saved under other conditions; the mathematics is the same, rounding is not "
              "(saved -> now):");
  for (size_t i = 0; i < found.rounding.size(); ++i) text += str_cat(i == 0 ? " " : "; ", found.rounding[i]);
  notes.warnings.push_back(std::move(text));
  return notes;
}

}  // namespace pesc
