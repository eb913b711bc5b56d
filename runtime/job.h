// What every verb that runs the model has in common: configuration, ranks, base model, tokenizer, decoder.
// All of it is checked by all ranks together before any of them starts work.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/checkpoint/store.h"
#include "runtime/config/experiment.h"
#include "runtime/config/same_run.h"
#include "runtime/data/dataset.h"
#include "runtime/data/special_tokens.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/hf/hf_folder.h"
#include "runtime/ranks.h"

namespace pesc {

struct Job {
  ExperimentConfig config;
  ModelConfig model;
  HostPlacement placement;
  std::unique_ptr<HfFolder> base;           // null: random weights of config.model.shape
  std::unique_ptr<Tokenizer> tokenizer;     // null: a benchmark of random tokens
  SpecialTokens special;                    // of the tokenizer
  Device device;                            // of this rank
  std::unique_ptr<Communicator> gpu_world;  // the world of `ranks` on CUDA devices
  std::unique_ptr<Ranks> ranks;

  [[nodiscard]] bool first() const { return ranks->first(); }
  [[nodiscard]] const Mesh& mesh() const { return ranks->mesh(); }
};

enum class BaseWeights {
  kFromFiles,
  kRandom,  // of the base only config.json is read
};
// Collective. Throws AgreedError on all ranks alike.
[[nodiscard]] Job open_job(Communicator& world, const HostPlacement& placement, ExperimentConfig config,
                           DataUse use, BaseWeights weights = BaseWeights::kFromFiles);

// The rows of data.train, tokenised; those of data.eval, each once. Not collective.
[[nodiscard]] std::unique_ptr<Dataset> load_training_data(const Job& job);
// Where `rows` is given, it gets the text of every good row, with the tag that counts.
[[nodiscard]] std::unique_ptr<Dataset> load_held_out_data(const Job& job, std::vector<Row>* rows = nullptr);
// "training data: ..." and the warnings of its report, on the first rank.
void log_data(const Job& job, const char* what, const Dataset& data);

// A decoder for micro-batches of up to `rows` rows (over all dp ranks) of `sequence` tokens, with its dense
// weights loaded and the rest at its initial values. Collective.
[[nodiscard]] std::unique_ptr<Decoder> make_training_decoder(Job& job, int64_t rows, int64_t sequence);
// The same without anything for a backward, and with a KV cache of `cache_slots` sequences per dp rank (0:
// none).
[[nodiscard]] std::unique_ptr<Decoder> make_inference_decoder(Job& job, int64_t rows, int64_t sequence,
                                                              int64_t cache_slots);
// Sequences of `length` tokens that a rank takes in one inference pass: at most 32, about 8k tokens together.
[[nodiscard]] int64_t inference_slots(int64_t length);

// This rank's trained pieces, as checkpoints see them.
[[nodiscard]] std::vector<TrainedTensor> trained_tensors(const Decoder& decoder, bool with_optimizer);

// The digest of the base's files and of the tokenizer, the same on every rank. Collective.
[[nodiscard]] std::string base_digest(Job& job);

// Loads the newest checkpoint of config.run_dir (or of `directory`, where given) into the decoder, values
// only. Refuses one of another model, and says once what changes rounding (runtime/same_run.h). Throws when
// there is none that verifies. Collective. Returns its step.
int64_t load_trained_values(Job& job, Decoder& decoder, const std::string& directory, CheckpointUse use);

}  // namespace pesc
