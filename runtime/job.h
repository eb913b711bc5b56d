// The parts that every verb needs that runs the model: configuration, ranks, base model, tokenizer, decoder.
// All ranks check them and agree on errors before any rank starts work.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/checkpoint/store.h"
#include "runtime/config/experiment.h"
#include "runtime/config/same_run.h"
#include "runtime/data/dataset.h"
#include "runtime/data/row_encoder.h"
#include "runtime/data/row_stream.h"
#include "runtime/data/special_tokens.h"
#include "runtime/hf/hf_folder.h"
#include "runtime/hf/peft_folder.h"
#include "runtime/ranks.h"
#include "runtime/tokenizer/tokenizer.h"

namespace pesc {

struct BaseDigest;  // runtime/base_digest.h

struct Job {
  ExperimentConfig config;
  ModelConfig model;
  HostPlacement placement;
  std::unique_ptr<HfFolder> base;            // null: random weights of config.model.shape
  std::unique_ptr<PeftFolder> adapter;       // that training goes on from; null: none
  std::shared_ptr<const BaseDigest> digest;  // of base and tokenizer, once base_digest() has taken it
  std::string adapter_digest;                // of the same, in a training run; empty: none
  std::unique_ptr<Tokenizer> tokenizer;      // null: a benchmark of random tokens
  std::unique_ptr<RowEncoder> encoder;       // of rows, with that tokenizer; null where there is none
  SpecialTokens special;                     // of the tokenizer
  Device device;                             // of this rank
  std::unique_ptr<Communicator> gpu_world;   // the world of `ranks` on CUDA devices
  std::unique_ptr<Ranks> ranks;
  // Called often while rows, weights and digests are read; may throw an Error to end that. Nothing: no call.
  std::function<void()> still_wanted;

  [[nodiscard]] bool first() const { return ranks->first(); }
  [[nodiscard]] const Mesh& mesh() const { return ranks->mesh(); }
};

enum class BaseWeights {
  kFromFiles,
  kRandom,  // of the base only config.json is read; held in the format that a run would hold it in
};
// Collective. Throws AgreedError on all ranks alike.
[[nodiscard]] Job open_job(Communicator& world, const HostPlacement& placement, ExperimentConfig config,
                           DataUse use, BaseWeights weights = BaseWeights::kFromFiles);

// Called at times while rows are tokenised, or another rank's tokenising is waited for.
using StillAlive = std::function<void()>;

// The rows to train on, tokenised: those of data.train, less those of data.validation_fraction. With data.cache_dir
// one rank tokenises, and the others wait for it. Not collective.
[[nodiscard]] std::unique_ptr<Dataset> load_training_data(const Job& job, const StillAlive& alive = {});
// The order of the training rows, packed as data.packing says. REQUIRES: `training` outlives it.
[[nodiscard]] std::unique_ptr<RowStream> make_row_stream(const Job& job, const Dataset& training);
// The rows to evaluate, each once: those of data.eval, or of data.validation_fraction. Not collective.
// `rows`, if given, receives every good row with its resolved tag; no cache is used then.
[[nodiscard]] std::unique_ptr<Dataset> load_eval_data(const Job& job, std::vector<Row>* rows = nullptr,
                                                      const StillAlive& alive = {});
// "training data: ..." and the warnings of its report, on the first rank.
void log_data(const Job& job, const char* what, const Dataset& data);

// A decoder for micro-batches of up to `rows` rows (over all dp ranks) of `sequence` tokens. Its dense
// weights are loaded, all others have their initial values. Collective.
[[nodiscard]] std::unique_ptr<Decoder> make_training_decoder(Job& job, int64_t rows, int64_t sequence);
// The same for inference: without gradients and optimizer state, with a KV cache of `cache_slots` sequences
// per dp rank (0: no cache).
[[nodiscard]] std::unique_ptr<Decoder> make_inference_decoder(Job& job, int64_t rows, int64_t sequence,
                                                              int64_t cache_slots);
// The number of sequences of `length` tokens per rank in one inference pass: at most 32, and about 8k tokens
// in total.
[[nodiscard]] int64_t inference_slots(int64_t length);

// This rank's trained pieces, as checkpoints see them.
[[nodiscard]] std::vector<TrainableTensor> trainable_tensors(const Decoder& decoder, bool with_optimizer);

// Refuses a base that lacks one of these tensors, which are all that the dense model has, or that has others
// (but for the experts of a PESC model); the first rank logs what is read (runtime/hf/weight_names.h). Not
// collective.
void check_base_weights(Job& job, std::vector<std::string> wanted);

// The newest checkpoint of config.run_dir, or the checkpoint `directory` if given ("best": the one that the run
// has marked, runtime/checkpoint/best_checkpoint.h), every byte of it verified. Refuses one of another model,
// and logs what changes rounding (runtime/same_run.h). Throws when none verifies. Collective.
[[nodiscard]] LoadedCheckpoint open_trained(Job& job, const std::string& directory, CheckpointUse use);

// Loads the weights of that checkpoint, which it opens as open_trained does, into the decoder, without
// optimizer state. Returns its step. Collective.
int64_t load_trainable_weights(Job& job, Decoder& decoder, const std::string& directory, CheckpointUse use);

}  // namespace pesc
