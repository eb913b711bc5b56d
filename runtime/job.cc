#include "runtime/job.h"

#include <glog/logging.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <span>

#include "model/hf_names.h"
#include "ops/core/cuda.h"
#include "runtime/base_digest.h"
#include "runtime/checkpoint/best_checkpoint.h"
#include "runtime/config/compute_types.h"
#include "runtime/control_tokens.h"
#include "runtime/data/token_cache_key.h"
#include "runtime/data/tokenizing_progress.h"
#include "runtime/decoder_options.h"
#include "runtime/expert_exchange.h"
#include "runtime/filesystem/filesystem.h"
#include "runtime/fitting.h"
#include "runtime/hf/config_json.h"
#include "runtime/hf/peft_folder.h"
#include "runtime/hf/pesc_folder.h"
#include "runtime/hf/published_names.h"
#include "runtime/hf/weight_names.h"
#include "runtime/machine.h"
#include "runtime/same_run.h"
#include "runtime/terminal/progress.h"
#include "runtime/text/printable.h"
#include "runtime/weight_cache/weight_cache.h"

namespace pesc {

namespace {

// The tokenizer, the prompt and the special tokens.
void open_tokenizer_of(Job& job, bool first) {
  const ExperimentConfig& c = job.config;
  const std::string& folder = c.model.tokenizer;
  const SpecialTokenFiles files = read_special_tokens(job.model, c.model.path, folder, c.model.links);
  job.tokenizer = open_tokenizer(folder, files.pieces(), c.model.links);
  check_vocabulary(*job.tokenizer, job.model);
  job.encoder = std::make_unique<RowEncoder>(
      *job.tokenizer,
      open_templates({c.data.chat_template, c.data.template_date}, folder, *job.tokenizer, c.model.links),
      c.data.train_on);
  job.special = agree_on_special_tokens(files, *job.tokenizer, job.model, job.encoder->end_of_turn());
  if (!first) return;
  LOG(INFO) << "tokenizer: " << folder << "/" << tokenizer_file(folder) << "; conversations are written with "
            << job.encoder->name();
  if (const std::string why = job.encoder->why_no_date(); !c.data.template_date.empty() && !why.empty())
    LOG(WARNING) << c.places.prefix("data.template_date") << "data.template_date has no effect: " << why;
  for (const std::string& warning : job.special.warnings) LOG(WARNING) << warning;
  for (const std::string& note : job.special.notes) LOG(INFO) << note;
}

void open_adapter(Job& job, bool first) {
  const ExperimentConfig& c = job.config;
  try {
    job.adapter = std::make_unique<PeftFolder>(c.model.adapter, job.model, c.pesc, c.model.links);
  } catch (const UsageError& error) {
    throw UsageError(c.places.prefix("model.adapter") + error.what());
  }
  if (!first) return;
  LOG(INFO) << "the trained parameters begin with the adapter " << c.model.adapter
            << (job.adapter->base().empty() ? "" : ", which names as its base ")
            << printable(job.adapter->base())
            << (c.pesc.mode == TrainMode::kPesc && !job.adapter->has_experts()
                    ? "; it has no routers and adapters, which begin anew"
                    : "");
}

// Of random weights: only formats that pesc quantises to are made (model/frozen_format.h).
void check_can_be_made(const ExperimentConfig& c) {
  const std::optional<FrozenFormat>& format = c.train.frozen_dtype;
  if (!format || *format == FrozenFormat::kFP8 || *format == FrozenFormat::kNF4) return;
  const FrozenFormat made = is_nf4(*format) ? FrozenFormat::kNF4 : FrozenFormat::kFP8;
  throw UsageError(str_cat(
      c.places.prefix("model.path"), "model.path: the folder '", c.model.path, "' holds ",
      frozen_format_text(*format),
      ", which random weights are not made in; take a folder that is not quantised with ",
      "train.frozen_dtype: ", frozen_format_name(made), ", which is ", frozen_format_text(made),
      ", or set train.frozen_dtype: ", dtype_name(c.train.compute_dtype), ", which dequantises the folder"));
}

// Whether the GPUs can do what train.compute_dtype asks for; where it leaves the choice to them, all must choose alike.
void check_gemms_of_gpus(const Job& job) {
  Communicator& world = job.ranks->world();
  run_collectively(world,
                   [&] { check_fp8(job.config, job.device.index, cuda::device_info(job.device.index)); });
  const int64_t mine = multiplies_in_fp8(job.config, job.device) ? 1 : 0;
  const std::vector<int64_t> of_ranks = world.host_all_gather(std::span(&mine, 1));
  run_collectively(world, [&] { check_same_gemms(of_ranks); });
}

}  // namespace

Job open_job(Communicator& world, const HostPlacement& placement, ExperimentConfig config, DataUse use,
             BaseWeights weights) {
  Job job;
  job.config = std::move(config);
  job.placement = placement;
  run_collectively(world, [&] {
    const ExperimentConfig& c = job.config;
    if (c.parallel.device == DeviceKind::kCuda && !cuda::built()) {
      throw UsageError(
          str_cat(c.places.prefix("parallel.device"),
                  "parallel.device is CUDA, but this pesc was built without CUDA; build it where "
                  "nvcc is found, or set parallel.device to CPU"));
    }
    check_paths(c, use);
    job.model = c.model.path.empty() ? c.model.shape : read_model_config(c.model.path, c.model.links);
    use_folder_format(job.config, job.model);
    if (weights == BaseWeights::kRandom) check_can_be_made(job.config);
    check_against_model(c, job.model, world.size());
    if (use == DataUse::kAll) check_dispatch_chunks(c, c.parallel.ep);  // training
    if (const auto experts =
            c.model.path.empty() ? std::nullopt : read_folder_experts(c.model.path, c.model.links))
      check_folder_experts(*experts, c.pesc, c.model.path);
    if (!c.model.tokenizer.empty()) open_tokenizer_of(job, world.rank() == 0);
    if (!c.model.path.empty() && weights == BaseWeights::kFromFiles) {
      job.base = std::make_unique<HfFolder>(c.model.path, c.model.links);
      use_model_names(*job.base, job.model);
      if (!c.model.adapter.empty()) open_adapter(job, world.rank() == 0);
    }
  });
  job.device = device_of(job.config, placement.threads);
  if (job.device.kind == DeviceKind::kCuda) {
    job.gpu_world = connect_gpus(world, placement, job.config.debug.share_gpu, job.device);
  }
  job.ranks = std::make_unique<Ranks>(job.gpu_world ? *job.gpu_world : world, job.config.parallel.tp,
                                      job.config.parallel.ep, job.model.num_key_value_heads);
  if (job.device.kind == DeviceKind::kCuda) check_gemms_of_gpus(job);
  return job;
}

namespace {

// As Dataset takes them; `list` is the experiment's field.
std::vector<DatasetFile> dataset_files(const std::vector<SourceSection>& sources, const char* list) {
  std::vector<DatasetFile> files;
  for (const SourceSection& s : sources)
    files.push_back({s.path, s.tag, s.weight, {s.columns, str_cat(list, "[", files.size(), "].columns")}});
  return files;
}

TokenCacheOptions cache_options(const Job& job) {
  const ExperimentConfig& config = job.config;
  TokenCacheOptions cache;
  cache.directory = config.data.cache_dir;
  cache.encoding = encoding_identity(*job.encoder, *job.tokenizer,
                                     tokenizer_digest(config.model.tokenizer, config.model.links));
  cache.patience_seconds = config.recovery.setup_limit;
  cache.announces = job.first();
  return cache;
}

// A bar for each file, of whoever tokenises it.
std::function<void(const TokenizingProgress&)> tokenizing_bars() {
  return [bar = std::shared_ptr<ProgressBar>(),
          path = std::string()](const TokenizingProgress& progress) mutable {
    if (progress.ended) {
      bar.reset();
      path.clear();
      return;
    }
    if (!bar || path != progress.path) {
      path = progress.path;
      bar.reset();  // the old one is erased before the new one is drawn
      bar = std::make_shared<ProgressBar>("tokenising " + printable(path),
                                          static_cast<int64_t>(progress.file_bytes), ProgressUnit::kBytes,
                                          ProgressShown::kYes);
    }
    bar->set(static_cast<int64_t>(progress.bytes));
  };
}

std::unique_ptr<Dataset> load_dataset(const Job& job, const std::vector<DatasetFile>& files, RowPart part,
                                      LongText long_text, std::vector<Row>* rows, const StillAlive& alive) {
  const ExperimentConfig& config = job.config;
  DatasetOptions options;
  if (config.data.validation_fraction > 0) options.split = {config.data.validation_fraction, part};
  options.max_seq_length = config.data.max_seq_length;
  options.on_long_row = config.data.on_long_row == LongRowPolicy::kDrop ? OnLongRow::kDrop : OnLongRow::kCut;
  options.long_text = long_text;
  options.rows.on_bad_row = config.data.on_bad_row == BadRowPolicy::kSkip ? OnBadRow::kSkip : OnBadRow::kFail;
  options.rows.policy_field = "data.on_bad_row";
  options.rows.use = job.encoder->row_use();
  options.threads = job.placement.threads;
  options.alive = alive;
  options.still_wanted = job.still_wanted;
  if (!config.data.cache_dir.empty()) options.cache = cache_options(job);
  if (job.first() || options.cache) {  // without a cache all ranks tokenise the same
    options.progress = tokenizing_bars();
  }
  if (rows != nullptr) options.on_row = [rows](const Row& row) { rows->push_back(row); };
  return std::make_unique<Dataset>(files, *job.encoder, options);
}

void check_template_tokens(Job& job) {
  const ModelTemplates* templates = job.encoder ? job.encoder->templates() : nullptr;
  if (templates == nullptr) return;
  ControlTokens control{templates->usual.name(), {}, {}, templates->end_of_turn};
  const std::vector<std::string>& written = templates->usual.control_tokens();
  for (const std::string& text : written) control.tokens.push_back({text, job.tokenizer->piece_id(text)});
  for (const std::string& text : template_tokens(*job.tokenizer).control) {
    if (std::ranges::find(written, text) == written.end())
      control.others.push_back({text, job.tokenizer->piece_id(text)});
  }
  check_control_tokens(*job.base, job.model, control);
}

// Before anything is allocated. All ranks refuse alike, with the figures of the GPU that has least free.
void check_free_memory(const Job& job, const DecoderUse& use) {
  if (job.device.kind != DeviceKind::kCuda) return;
  Communicator& world = job.ranks->world();
  GpuToLoad gpu{job.device.index, {}, 0};
  run_collectively(world, [&] { gpu.info = cuda::device_info(gpu.index); });
  for (const std::string& id : world.host_all_gather(gpu.info.id)) gpu.ranks += id == gpu.info.id ? 1 : 0;
  const int64_t mine = gpu.info.free_bytes / gpu.ranks;
  const std::vector<int64_t> free = world.host_all_gather(std::span(&mine, 1));
  const auto least = std::min_element(free.begin(), free.end()) - free.begin();
  run_collectively(world, [&] {
    if (world.rank() == least) check_memory(job.config, job.model, world.size(), use, gpu);
  });
}

// Random weights are not kept.
bool caches_weights(const Job& job) {
  return job.base != nullptr && job.config.train.frozen_dtype && !job.config.model.cache_dir.empty();
}

// After base_digest().
WeightCacheOptions weight_cache_options(const Job& job) {
  WeightCacheOptions cache;
  cache.directory = job.config.model.cache_dir;
  cache.base_digest = weights_part(job.digest->value);
  cache.format = *job.config.train.frozen_dtype;
  cache.threads = job.device.threads;
  cache.rank = job.ranks->world().rank();
  cache.ranks = job.ranks->world().size();
  cache.patience_seconds = job.config.recovery.setup_limit;
  cache.announces = job.first();
  cache.still_wanted = job.still_wanted;
  return cache;
}

// The first rank says how far its own part has come; the others read as much.
void load_parameters(Job& job, Decoder& decoder) {
  WeightSource* source = job.base.get();
  std::optional<WeightCache> cache;
  if (caches_weights(job)) {
    cache.emplace(*job.base, weight_cache_options(job));
    cache->fill(decoder.parameters().quantized_tensors());
    source = &*cache;
  }
  std::optional<AdaptedBase> adapted;
  if (job.adapter) source = &adapted.emplace(*source, job.adapter.get());
  int64_t values = 0;
  for (const Parameter& p : decoder.parameters().all())
    if (source != nullptr && (p.dense || source->has(p.spec.name))) values += p.spec.size();
  const SafetensorsEntry* embedding = job.base ? job.base->entry(hf::kEmbedding) : nullptr;
  const int64_t bytes = embedding != nullptr && embedding->dtype ? dtype_bytes(*embedding->dtype) : 4;
  ProgressBar bar("loading the model", values * bytes, ProgressUnit::kBytes,
                  source != nullptr && job.first() ? ProgressShown::kYes : ProgressShown::kNo);
  decoder.parameters().initialise(decoder.stream(), source, job.config.train.seed,
                                  job.config.model.initializer_range, [&](int64_t n) {
                                    bar.add(n * bytes);
                                    if (job.still_wanted) job.still_wanted();
                                  });
}

std::unique_ptr<Decoder> make_decoder(Job& job, const DecoderUse& use) {
  check_free_memory(job, use);
  const Mesh& mesh = job.mesh();
  const DecoderOptions o = decoder_options(job.config, mesh, job.device, use);
  std::unique_ptr<Decoder> decoder;
  if (caches_weights(job)) static_cast<void>(base_digest(job));
  run_collectively(job.ranks->world(), [&] {
    decoder = std::make_unique<Decoder>(job.model, job.config.pesc, mesh, job.ranks->groups(), o);
    if (job.base) {
      // Every rank has all dense parameters in its table, or slices of them, so all find the same.
      std::vector<std::string> wanted;
      for (const Parameter& p : decoder->parameters().all())
        if (p.dense) wanted.push_back(p.spec.name);
      check_base_weights(job, wanted);
    }
    ModelParameters& parameters = decoder->parameters();
    parameters.set_replicas([&](ReplicaGroup g) {
      return std::pair(job.ranks->reduction().replica(g), job.ranks->reduction().replicas(g));
    });
    load_parameters(job, *decoder);
  });
  return decoder;
}

}  // namespace

// The values of a second head are compared by one rank: no rank but the first would read all of it otherwise.
void check_base_weights(Job& job, std::vector<std::string> wanted) {
  // Of a PESC model. All of its experts, of which this rank may have some.
  if (job.base->has(hf::router(0)) && job.config.pesc.mode == TrainMode::kPesc) {
    const std::vector<std::string> experts =
        expert_names(job.model.num_hidden_layers, job.config.pesc.moe.num_experts);
    rename_experts(*job.base, experts);
    wanted.insert(wanted.end(), experts.begin(), experts.end());
  }
  const WeightReport report = compare_weights(*job.base, job.model, wanted);
  if (!job.first()) return;
  check_tied_head(*job.base, job.model);
  if (job.config.pesc.mode != TrainMode::kFull) check_template_tokens(job);
  LOG(INFO) << report.summary;
  for (const std::string& warning : report.warnings) LOG(WARNING) << warning;
}

std::unique_ptr<Dataset> load_training_data(const Job& job, const StillAlive& alive) {
  const bool packs = job.config.data.packing != PackingPolicy::kNone;
  return load_dataset(job, dataset_files(job.config.data.train, "data.train"), RowPart::kTraining,
                      packs ? LongText::kSplit : LongText::kAsOtherRows, nullptr, alive);
}

std::unique_ptr<RowStream> make_row_stream(const Job& job, const Dataset& training) {
  const DataSection& data = job.config.data;
  return std::make_unique<RowStream>(
      training, job.config.train.seed,
      data.packing == PackingPolicy::kBestFit ? Packing::kBestFit : Packing::kNone, data.max_seq_length);
}

std::unique_ptr<Dataset> load_eval_data(const Job& job, std::vector<Row>* rows, const StillAlive& alive) {
  const DataSection& data = job.config.data;
  if (data.validation_fraction == 0) {
    return load_dataset(job, dataset_files(data.eval, "data.eval"), RowPart::kAll, LongText::kAsOtherRows,
                        rows, alive);
  }
  std::vector<DatasetFile> files = dataset_files(data.train, "data.train");
  for (DatasetFile& file : files) file.weight = 1;
  return load_dataset(job, files, RowPart::kValidation, LongText::kAsOtherRows, rows, alive);
}

void log_data(const Job& job, const char* what, const Dataset& data) {
  if (!job.first()) return;
  LOG(INFO) << what << ": " << to_string(data.report());
  for (const std::string& warning : data.report().warnings) LOG(WARNING) << warning;
}

std::unique_ptr<Decoder> make_training_decoder(Job& job, int64_t rows, int64_t sequence) {
  return make_decoder(job, {Purpose::kTraining, rows, sequence, 0});
}

std::unique_ptr<Decoder> make_inference_decoder(Job& job, int64_t rows, int64_t sequence,
                                                int64_t cache_slots) {
  return make_decoder(job, {Purpose::kInference, rows, sequence, cache_slots});
}

int64_t inference_slots(int64_t length) {
  return std::clamp<int64_t>(8192 / std::max<int64_t>(length, 1), 1, 32);
}

std::vector<TrainableTensor> trainable_tensors(const Decoder& decoder, bool with_optimizer) {
  std::vector<TrainableTensor> all;
  for (const Parameter& p : decoder.parameters().all()) {
    if (!p.trainable) continue;
    if (with_optimizer) {
      all.push_back({p.spec, p.master, p.exp_avg, p.exp_avg_sq});
    } else {
      all.push_back({p.spec, p.master, {}, {}});
    }
  }
  return all;
}

LoadedCheckpoint open_trained(Job& job, const std::string& directory, CheckpointUse use) {
  Communicator& world = job.ranks->world();
  CheckpointStore store(posix_filesystem(), job.config.run_dir, {});
  LoadedCheckpoint checkpoint;
  if (!directory.empty()) {
    std::string named = directory;
    if (directory == kBestCheckpoint) {
      run_collectively(world, [&] {
        if (job.first()) named = best_checkpoint_folder(posix_filesystem(), job.config.run_dir);
      });
      named = world.host_all_gather(named).front();
    }
    rethrow_agreed(world, [&] { checkpoint = open_checkpoint(posix_filesystem(), world, named); });
  } else {
    Discovery found;
    rethrow_agreed(world, [&] { found = store.find_newest(world); });
    if (job.first()) {
      for (const std::string& line : found.passed_over()) LOG(WARNING) << line;
    }
    if (!found.checkpoint) {
      throw AgreedError(ExitCode::kData,
                        str_cat("run_dir '", job.config.run_dir, "' has no checkpoint to load",
                                found.none_there() ? "; train first, or use --base for the dense model"
                                : found.others.empty()
                                    ? ": all that are there are damaged"
                                    : ": those that are there are damaged or of other runs; name one with "
                                      "--checkpoint"),
                        job.first());
    }
    checkpoint = *found.checkpoint;
  }
  const BaseDigest digest = base_digest(job);
  run_collectively(world, [&] {
    const CheckpointNotes notes = check_same_run(job, checkpoint, digest, use);
    if (job.first() && !notes.information.empty()) LOG(INFO) << notes.information;
    if (job.first()) {
      for (const std::string& warning : notes.warnings) LOG(WARNING) << warning;
    }
  });
  return checkpoint;
}

int64_t load_trainable_weights(Job& job, Decoder& decoder, const std::string& directory, CheckpointUse use) {
  const LoadedCheckpoint checkpoint = open_trained(job, directory, use);
  run_collectively(job.ranks->world(), [&] {
    load_checkpoint(posix_filesystem(), checkpoint, decoder.stream(), trainable_tensors(decoder, false));
    decoder.parameters().refresh_compute_weights(decoder.stream());
  });
  return checkpoint.state.step;
}

}  // namespace pesc
