// An experiment as plain structs: read from a protobuf text file (configs/schema/experiment.proto),
// overridden by `--set` (runtime/config/overrides.h), and checked. Code outside runtime/config does not see
// protobuf.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/activations.h"
#include "model/config.h"
#include "model/decoder.h"
#include "model/frozen_linear.h"
#include "parallel/mesh.h"
#include "runtime/chat/train_on.h"
#include "runtime/config/adamw_config.h"
#include "runtime/config/field_places.h"
#include "runtime/config/learning_rate.h"
#include "runtime/hf/mapped_file.h"
#include "runtime/recovery/fault.h"
#include "runtime/recovery/recovery_section.h"

namespace pesc {

struct ModelSection {
  std::string path;       // empty: random weights of `shape`
  std::string tokenizer;  // folder
  std::string adapter;    // folder of PEFT; empty: none
  std::string cache_dir;  // of quantised weights; empty: none
  Links links = Links::kInside;
  ModelConfig shape;
  double initializer_range = 0.02;
};

enum class OnNonfinite { kEnd, kSkip };
enum class OnLossSpike { kWarn, kSkip, kEnd };
struct TrainSection {
  int64_t max_steps = 0;  // 0: `num_train_epochs` decides
  double num_train_epochs = 0;
  int64_t global_batch_size = 0, gradient_accumulation_steps = 1;
  AdamWConfig adamw;
  LearningRate lr;  // warmup and total are set once the number of steps is known
  int64_t warmup_steps = 0;
  double warmup_ratio = 0;
  uint64_t seed = 1;
  DType compute_dtype = DType::kF32;         // of activations: F32 or BF16
  std::optional<FrozenFormat> frozen_dtype;  // FP8 or NF4; absent: as compute_dtype
  // What quantised frozen weights are multiplied as; absent: FP8 where the device supports it.
  std::optional<FrozenGemm> frozen_gemm = FrozenGemm::kDequantized;
  Recompute recompute_granularity = Recompute::kNone;
  int64_t eval_steps = 0, max_eval_samples = 0, logging_steps = 10;
  int64_t early_stopping_patience = 0;  // evaluations; 0: the run does not end early
  OnNonfinite on_nonfinite = OnNonfinite::kEnd;
  double loss_spike_ratio = 2;
  OnLossSpike on_loss_spike = OnLossSpike::kWarn;
  // Rows of a micro-batch over all ranks.
  [[nodiscard]] int64_t micro_batch_rows() const { return global_batch_size / gradient_accumulation_steps; }
};

struct ParallelSection {
  DeviceKind device = DeviceKind::kCpu;
  int tp = 1, ep = 1, num_threads = 0;
  double buffer_factor = 2;
  bool gemm_autotune = true;
  int dispatch_chunks = 0;                                                  // 0: usual_dispatch_chunks
  std::optional<ExpertExchange> expert_exchange = ExpertExchange::kTokens;  // absent: AUTO
  Overlap overlap_comm = Overlap::kOff;
  // Of a training run whose ranks have up to `max_tokens` tokens at a time.
  [[nodiscard]] int chunks(const PescConfig& pesc, const Mesh& mesh, int64_t max_tokens) const {
    if (pesc.mode != TrainMode::kPesc || mesh.ep() == 1) return 1;  // nothing travels
    if (dispatch_chunks > 0) return dispatch_chunks;
    return overlap_comm == Overlap::kOn ? usual_dispatch_chunks(device, pesc, mesh, max_tokens) : 1;
  }
};

struct SourceSection {
  std::string path, tag;
  double weight = 1;                           // of an evaluation file always
  std::map<std::string, std::string> columns;  // from the file's name of a field to ours
};
enum class BadRowPolicy { kFail, kSkip };
enum class LongRowPolicy { kCut, kDrop };
enum class PackingPolicy { kNone, kBestFit };
struct DataSection {
  std::vector<SourceSection> train, eval;
  int64_t max_seq_length = 2048;
  BadRowPolicy on_bad_row = BadRowPolicy::kFail;
  std::string chat_template = "auto";
  std::string template_date;  // empty: none
  TrainOn train_on = TrainOn::kAll;
  LongRowPolicy on_long_row = LongRowPolicy::kCut;
  PackingPolicy packing = PackingPolicy::kNone;
  double validation_fraction = 0;  // of the rows of `train`; 0: none
  std::string cache_dir;           // of tokenised rows; empty: none
  // Whether there are rows to evaluate.
  [[nodiscard]] bool evaluates() const { return !eval.empty() || validation_fraction > 0; }
};

enum class OnSaveError { kStop, kContinue };
struct CheckpointSection {
  int64_t save_steps = 0, save_total_limit = 2, keep_every_steps = 0;
  bool async_save = true;
  OnSaveError on_save_error = OnSaveError::kStop;
  bool keep_best = false;
};

struct GenerateSection {
  int64_t max_new_tokens = 128;
  double temperature = 0, top_p = 1;
  uint64_t seed = 1;
};

struct MetricsSection {
  bool tensorboard = true;
};

// Test modes.
struct DebugSection {
  std::string routing_record, routing_replay;  // folders; empty: off
  std::vector<FaultPoint> faults;
  bool share_gpu = false;
};

// A setting that nothing reads because of another one: said once, by those whom it concerns.
struct UnusedSetting {
  enum class Concerns {
    kAll,
    kTraining,
    kAnswers,
    kEvaluations,    // `pesc train` and `pesc eval`
    kWithoutLaunch,  // `pesc train` by itself
  };
  Concerns concerns = Concerns::kAll;
  std::string text;  // "e.textproto:9: moe.num_experts has no effect in train.mode LORA"
};

struct ExperimentConfig {
  std::string name, run_dir;
  ModelSection model;
  PescConfig pesc;
  TrainSection train;
  ParallelSection parallel;
  DataSection data;
  CheckpointSection checkpoint;
  GenerateSection generate;
  RecoverySection recovery;
  MetricsSection metrics;
  DebugSection debug;
  // The resolved experiment as protobuf text, every default spelled out: read again it gives this
  // configuration and the same text.
  std::string text;
  FieldPlaces places;  // for messages
  std::vector<UnusedSetting> unused;
};

enum class ExperimentUse {
  kRun,
  kBench,  // run_dir, data.train and a shape's tokenizer may be absent; a shape may have any train.mode
};

// Reads `path`, applies overrides of the form "path.to.field=value" in order, fills defaults and checks every
// field. Paths in the experiment stay as they are: relative to the current directory. Throws UsageError with
// file, line (or the override) and the nearest valid name.
[[nodiscard]] ExperimentConfig load_experiment(const std::string& path,
                                               const std::vector<std::string>& overrides,
                                               ExperimentUse use = ExperimentUse::kRun);
// The same from text; `where` stands for the file in messages.
[[nodiscard]] ExperimentConfig parse_experiment(const std::string& text, const std::string& where,
                                                const std::vector<std::string>& overrides,
                                                ExperimentUse use = ExperimentUse::kRun);

// What a verb reads of the experiment's data.
enum class DataUse { kNone, kEval, kAll };
// Refuses a model folder, tokenizer folder or data file that is to be read and cannot be. Throws UsageError
// naming field and line.
void check_paths(const ExperimentConfig& config, DataUse use);

// Refuses what does not fit the model: a shape that cannot be built (DataError), an impossible layout of
// `world` ranks, a sequence longer than the model's positions or its sliding window (UsageError naming field
// and line).
void check_against_model(const ExperimentConfig& config, const ModelConfig& model, int world);

// Fields whose values differ between two resolved texts: "train.seed: 1 -> 2".
[[nodiscard]] std::vector<std::string> experiment_differences(const std::string& before,
                                                              const std::string& after);

}  // namespace pesc
