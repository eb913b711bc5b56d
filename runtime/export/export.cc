#include "runtime/export/export.h"

#include <glog/logging.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <map>
#include <system_error>
#include <utility>
#include <vector>

#include "model/dequantized_weights.h"
#include "model/families.h"
#include "model/frozen_linear.h"
#include "model/hf_names.h"
#include "model/parameters.h"
#include "ops/core/arena.h"
#include "parallel/mesh.h"
#include "runtime/base_digest.h"
#include "runtime/config/resolved.h"
#include "runtime/export/export_config.h"
#include "runtime/export/export_folder.h"
#include "runtime/export/export_tensors.h"
#include "runtime/export/export_tokenizer.h"
#include "runtime/export/model_card.h"
#include "runtime/export/python_files.h"
#include "runtime/hf/config_json.h"
#include "runtime/hf/json_file.h"
#include "runtime/hf/peft_folder.h"
#include "runtime/hf/peft_modules.h"
#include "runtime/terminal/progress.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

DType dtype_of(const Job& job, const ExportOptions& options) {
  if (options.dtype) return *options.dtype;
  if (options.format == ExportFormat::kPeft || job.config.pesc.mode == TrainMode::kFull ||
      job.base == nullptr)
    return DType::kF32;
  const SafetensorsEntry* embedding = job.base->entry(hf::kEmbedding);
  if (embedding == nullptr || !embedding->dtype) return DType::kF32;
  return dtype_bytes(*embedding->dtype) == 2 ? DType::kBF16 : DType::kF32;
}

nlohmann::json read_base_config(const ModelSection& section) {
  return read_json_file(section.path, "config.json", kMostConfigBytes, section.links);
}

bool has_text_part(const nlohmann::json& config) {
  const auto text = config.find("text_config");
  return text != config.end() && text->is_object();
}

// Why PEFT could not put this adapter on the base's model in transformers; empty where it can.
std::string why_not_peft(const Job& job) {
  if (!job.config.model.path.empty() && has_text_part(read_base_config(job.config.model)))
    return "the base is a model of more than text, whose modules have other names";
  return {};
}

ExportModel export_model_of(const Job& job) {
  ExportModel m;
  m.model = job.model;
  // A shape names no begin- and end-of-text tokens; without them other programs would not know where to stop.
  if (m.model.bos_id < 0) m.model.bos_id = job.tokenizer->bos_id();
  m.pesc = job.config.pesc;
  m.stops = job.special.stops;
  m.generate = job.config.generate;
  const ModelSection& section = job.config.model;
  m.initializer_range = section.initializer_range;
  if (section.path.empty()) return m;
  m.initializer_range = read_initializer_range(section.path);
  m.base_config = read_base_config(section);
  // Of a model of more than text only the text part is written.
  if (has_text_part(m.base_config)) m.base_config = nlohmann::json(m.base_config.at("text_config"));
  return m;
}

void add_python(const Job& job, const std::string& prefix, ExportFolder& folder) {
  if (job.config.pesc.mode != TrainMode::kPesc) return;
  for (const PythonFile& file : python_files())
    folder.add_file(str_cat(prefix, file.name), python_text(file, traits_of(job.model.family)));
}

// A model of transformers, but for its weights.
void add_model_files(const Job& job, const ExportModel& model, const ExportTokenizer& tokenizer, DType dtype,
                     const std::string& prefix, ExportFolder& folder) {
  folder.add_file(prefix + "config.json", hf_config_text(model, dtype));
  folder.add_file(prefix + "generation_config.json", generation_config_text(model));
  add_python(job, prefix, folder);
  tokenizer.add_to(folder, prefix);
}

void append(std::vector<SafetensorsWriteEntry>& to, std::vector<SafetensorsWriteEntry> more) {
  std::ranges::move(more, std::back_inserter(to));
}

TokenizerJson json_of(ExportFormat format) {
  switch (format) {
    case ExportFormat::kHf:
      return TokenizerJson::kRequired;
    case ExportFormat::kPeft:
      return TokenizerJson::kIfExact;
    case ExportFormat::kCamelidae:
      return TokenizerJson::kNone;  // the published models have none
  }
  throw InternalError("json_of: no such format");
}

// Says to what base the adapter belongs (PeftFolder::base_digest).
std::map<std::string, std::string> peft_metadata(const CheckpointState& state) {
  return {{"format", "pt"}, {kPeftBaseDigest, weights_part(state.base_digest)}};
}

// `frozen`: what the run held its frozen weights in.
bool must_say_merge(const ExportOptions& options, const std::optional<FrozenFormat>& frozen) {
  return options.format != ExportFormat::kPeft && frozen.has_value();
}

// `place`: of what says so. `otherwise`: what to do where it is not so.
void check_merge_is_said(const ExportOptions& options, const std::optional<FrozenFormat>& frozen,
                         const std::string& place, const std::string& otherwise) {
  if (!must_say_merge(options, frozen) || options.merge_into) return;
  throw UsageError(str_cat(place, "--format ", format_name(options.format),
                           ": the run computed with weights of the base that were quantised to ",
                           frozen_format_name(*frozen), "; say what LoRA is merged into: ", kMergeIntoChoices,
                           otherwise));
}

// `frozen`: as the checkpoint has it.
void check_merge(const ExportOptions& options, const std::optional<FrozenFormat>& frozen) {
  check_merge_is_said(options, frozen, "", "");
  if (!options.merge_into || must_say_merge(options, frozen)) return;
  throw UsageError(str_cat("--merge_into ", merge_into_name(*options.merge_into),
                           ": the run of the checkpoint did not quantise the base's weights "
                           "(train.frozen_dtype), so that there is nothing to choose; leave the flag out"));
}

// What the run itself was, whatever the experiment of the command says.
ExperimentConfig recorded_config(const LoadedCheckpoint& checkpoint) {
  const proto::Experiment recorded = read_recorded_experiment(checkpoint.state.config_text);
  return parse_experiment(resolved_text(recorded), str_cat("the checkpoint '", checkpoint.directory, "'"),
                          {});
}

// Of the run in whose folder the checkpoint lies.
std::optional<RecordedEvaluation> run_evaluation_of(const LoadedCheckpoint& checkpoint) {
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::canonical(checkpoint.directory, error);
  if (error) return {};
  return last_evaluation(folder.parent_path().string(), checkpoint.state.step);
}

// Of a run that held its frozen weights in this format.
std::vector<ShardSpec> quantized_tensors(const Job& job, FrozenFormat format) {
  Arena weights = Arena::planning("weights"), compute = Arena::planning("compute weights");
  return ModelParameters(job.model, job.config.pesc, Mesh(1, 0, 1, 1), {DType::kF32, format},
                         {weights, compute, nullptr})
      .quantized_tensors();
}

// Of all entries of the format.
int64_t bytes_of(const std::vector<SafetensorsWriteEntry>& entries) {
  int64_t bytes = 0;
  for (const SafetensorsWriteEntry& entry : entries) bytes += safetensors_bytes(entry);
  return bytes;
}

}  // namespace

std::optional<DType> export_dtype(const std::string& text) {
  std::string upper = text;
  std::ranges::transform(upper, upper.begin(), [](unsigned char c) { return std::toupper(c); });
  if (upper.empty()) return {};
  if (upper == "BF16") return DType::kBF16;
  if (upper == "F32") return DType::kF32;
  throw UsageError(str_cat("--dtype ", in_quotes(text), ": give BF16 or F32"));
}

void check_export(const Job& job, const ExportOptions& options) {
  const PescConfig& pesc = job.config.pesc;
  if (options.format == ExportFormat::kCamelidae) {
    const std::string why = why_not_camelidae(job.model, pesc);
    if (!why.empty()) throw UsageError(str_cat("--format CAMELIDAE: ", why, "; use --format HF"));
  }
  if (options.format != ExportFormat::kPeft) {
    // The format of a folder that is quantised already says nothing of the run: check_merge() asks the checkpoint.
    if (!job.model.quantized)
      check_merge_is_said(options, job.config.train.frozen_dtype,
                          job.config.places.prefix("train.frozen_dtype"),
                          "; or put train.frozen_dtype back to that of the run, if it was another");
    if (job.model.quantized && options.merge_into == MergeInto::kOriginal) {
      throw UsageError(str_cat("--merge_into ORIGINAL: the folder of model.path holds ",
                               frozen_format_text(job.model.quantized->format),
                               " and no other weights; use --merge_into DEQUANTISED"));
    }
    return;
  }
  if (options.merge_into) {
    throw UsageError(
        str_cat("--merge_into ", merge_into_name(*options.merge_into),
                ": --format PEFT merges LoRA into nothing; leave the flag out, or use --format HF"));
  }
  if (pesc.mode == TrainMode::kFull)
    throw UsageError("--format PEFT: a run of train.mode FULL has no adapter; use --format HF");
  if (pesc.lora.r == 0 || pesc.lora.target_modules.empty())
    throw UsageError(
        "--format PEFT: the run has no LoRA (lora.r is 0), which such a folder must have; use --format HF");
  if (job.model.quantized && pesc.mode == TrainMode::kPesc)
    throw UsageError(str_cat(
        "--format PEFT: the base is quantised, and transformers would quantise the routers and adapters with "
        "it; use --format HF --merge_into DEQUANTISED, which dequantises the base"));
  if (const std::string why = why_not_peft(job); !why.empty())
    throw UsageError(str_cat("--format PEFT: ", why, "; use --format HF"));
}

int64_t export_model(Job& job, const LoadedCheckpoint& checkpoint, const ExportOptions& options,
                     FileSystem& files) {
  check_export(job, options);
  const DType dtype = dtype_of(job, options);
  const ExportModel model = export_model_of(job);
  const ExperimentConfig recorded = recorded_config(checkpoint);
  check_merge(options, recorded.train.frozen_dtype);
  const bool experts = job.config.pesc.mode == TrainMode::kPesc;
  Stream stream(Device{.threads = job.device.threads});
  ProgressBar* progress = nullptr;
  // A folder that is quantised itself reads what its codes stand for.
  std::optional<DequantizedWeights> dequantized;
  if (options.merge_into == MergeInto::kDequantised && !job.model.quantized) {
    const FrozenFormat format = *recorded.train.frozen_dtype;
    dequantized.emplace(*job.base, stream, format, quantized_tensors(job, format));
  }
  WeightSource* base = dequantized ? static_cast<WeightSource*>(&*dequantized) : job.base.get();
  ExportTensors tensors(job.model, job.config.pesc, job.config.pesc.mode == TrainMode::kFull ? nullptr : base,
                        files, checkpoint, stream,
                        {.progress = [&](int64_t bytes) { progress->add(bytes); }});
  if (job.base) check_base_weights(job, tensors.dense_names());

  std::vector<SafetensorsWriteEntry> entries;
  if (options.format == ExportFormat::kPeft) {
    append(entries, tensors.lora(dtype, kPeftPrefix));
    if (experts) append(entries, tensors.moe_adapters(dtype, DType::kF32, kPeftPrefix));
  } else {
    append(entries, tensors.dense(dtype));
    // The published code has all of a model in one type.
    if (experts) {
      append(entries,
             tensors.moe_adapters(dtype, options.format == ExportFormat::kCamelidae ? dtype : DType::kF32));
    }
  }
  const ExportTokenizer tokenizer(job, json_of(options.format));
  if (!tokenizer.why_no_json().empty()) LOG(WARNING) << tokenizer.why_no_json();
  // One rank exports.
  ProgressBar bar("writing", bytes_of(entries), ProgressUnit::kBytes, ProgressShown::kYes);
  progress = &bar;

  ExportFolder folder(files, options.out);
  switch (options.format) {
    case ExportFormat::kHf:
      add_model_files(job, model, tokenizer, dtype, "", folder);
      add_weight_files(folder, std::move(entries));
      break;
    case ExportFormat::kCamelidae:
      folder.add_file("config.json", camelidae_config_text(model, dtype));
      folder.add_file("generation_config.json", generation_config_text(model));
      tokenizer.add_to(folder, "");
      add_weight_files(folder, std::move(entries));
      break;
    case ExportFormat::kPeft:
      if (experts) {
        folder.add_folder("base");
        add_model_files(job, model, tokenizer, dtype, "base/", folder);
      } else {
        tokenizer.add_to(folder, "");
      }
      folder.add_file(kPeftConfigFile,
                      adapter_config_text(job.model, job.config.pesc, job.config.model.path));
      folder.add_file(kPeftWeights, [&](const ByteSink& sink) {
        (void)stream_safetensors(kPeftWeights, entries, peft_metadata(checkpoint.state), sink);
      });
      break;
  }
  ModelCard card;
  card.format = options.format;
  card.config = recorded;
  card.quantized_base = job.model.quantized.has_value();
  card.model_type = traits_of(job.model.family).model_type;
  card.merge_into = options.merge_into;
  card.dtype = dtype == DType::kBF16 ? "bfloat16" : "float32";
  card.prompt = job.encoder->name();
  card.published_prompt = job.encoder->templates() == nullptr;
  card.loads_tokenizer = tokenizer.why_no_json().empty();
  card.names_tokenizer_class = tokenizer.names_class();
  card.evaluation = run_evaluation_of(checkpoint);
  folder.add_file("README.md", model_card_text(card, checkpoint.state));
  folder.commit();
  return folder.bytes();
}

}  // namespace pesc
