// README.md of an exported folder: what the model is, as far as the run itself says so.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/config/experiment.h"
#include "runtime/export/export_format.h"

namespace pesc {

// An evaluation, of metrics.jsonl or of evaluations.jsonl.
struct RecordedEvaluation {
  struct Score {
    double loss = 0;              // nats per supervised token
    std::optional<double> exact;  // share of the rows that are answered exactly, where that was asked
    bool operator==(const Score&) const = default;
  };
  int64_t step = 0;
  Score total;
  std::vector<std::pair<std::string, Score>> tags;
};
// The last one of the run up to this step, by training itself (metrics.jsonl) or by `pesc eval` (evaluations.jsonl), which
// counts where both are of one step. Nothing where there is none. Throws DataError naming the line of evaluations.jsonl that is no
// such record.
[[nodiscard]] std::optional<RecordedEvaluation> last_evaluation(const std::string& run_dir, int64_t step);

struct ModelCard {
  ExportFormat format = ExportFormat::kHf;
  ExperimentConfig config;              // of the checkpoint
  std::optional<MergeInto> merge_into;  // of a run on quantised frozen weights, unless the format is PEFT
  bool loads_tokenizer = true;          // transformers gives the tokens that the run was trained on
  bool names_tokenizer_class = false;   // for that the folder has tokenization_pesc.py
  std::string model_type;               // of the base
  std::string dtype;
  std::string prompt;             // what conversations are written with: RowEncoder::name()
  bool published_prompt = false;  // which is no template
  std::optional<RecordedEvaluation> evaluation;
  bool quantized_base = false;  // the base's folder is quantised
};
[[nodiscard]] std::string model_card_text(const ModelCard& card, const CheckpointState& state);

}  // namespace pesc
