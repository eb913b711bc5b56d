#include "runtime/export/model_card.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "model/frozen_linear.h"
#include "runtime/base_digest.h"
#include "runtime/data/row_record.h"
#include "runtime/hf/json_file.h"
#include "runtime/metrics/evaluations_file.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

// In a table or a sentence: nothing of a name is taken for markup.
std::string code(std::string_view text) {
  std::string tamed = printable(text);
  for (char& c : tamed)
    if (c == '`' || c == '|') c = '\'';
  return "`" + tamed + "`";
}

std::string fixed(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.4f", value);
  return text;
}

const char* mode_name(TrainMode mode) {
  switch (mode) {
    case TrainMode::kPesc:
      return "PESC: a router and adapters behind every FFN, and LoRA, on a frozen base";
    case TrainMode::kLora:
      return "LORA: LoRA alone, on a frozen base";
    case TrainMode::kFull:
      return "FULL: every dense parameter";
  }
  throw InternalError("mode_name: no such mode");
}

void add_recipe(const ModelCard& card, const CheckpointState& state, std::string& out) {
  const ExperimentConfig& c = card.config;
  out += "\n## Recipe\n\n| | |\n| --- | --- |\n";
  const auto row = [&](std::string_view what, const auto&... value) {
    out += str_cat("| ", what, " | ", value..., " |\n");
  };
  row("mode", mode_name(c.pesc.mode));
  row("optimizer steps", state.step);
  row("rows", state.consumed_samples);
  row("global batch", c.train.global_batch_size, " rows of at most ", c.data.max_seq_length, " tokens");
  row("seed", state.seed);
  if (c.pesc.mode != TrainMode::kFull && c.pesc.lora.r > 0) {
    std::string targets;
    for (const Linear linear : c.pesc.lora.target_modules)
      targets += str_cat(targets.empty() ? "" : ", ", linear_name(linear));
    row("LoRA", "r ", c.pesc.lora.r, ", alpha ", c.pesc.lora.lora_alpha, ", on ", targets);
  }
  if (c.pesc.mode == TrainMode::kPesc) {
    const MoeConfig& moe = c.pesc.moe;
    row("experts", moe.num_experts, " a layer, ", moe.num_experts_per_tok, " for each token; adapter_dim ",
        moe.adapter_dim, ", adapter_scaling ", moe.adapter_scaling);
  }
  out += "\nThe whole experiment, as the checkpoint has it:\n\n";
  std::istringstream lines(state.config_text);
  for (std::string line; std::getline(lines, line);) out += "    " + printable(line, kUncut) + "\n";
}

void add_quantisation(const ModelCard& card, std::string& out) {
  const TrainSection& train = card.config.train;
  if (!train.frozen_dtype) return;
  if (card.quantized_base) {
    out += str_cat("\nThe base's linears are quantised to ", frozen_format_name(*train.frozen_dtype),
                   ", and the run computed with them as they are. ",
                   card.format == ExportFormat::kPeft
                       ? "The adapter belongs to that\nbase.\n"
                       : "This folder has the values that\nthey stand for, with LoRA merged into them.\n");
    return;
  }
  out += str_cat("\nThe run computed with frozen weights that were quantised to ",
                 frozen_format_name(*train.frozen_dtype), " when the base was loaded.\n");
  if (!card.merge_into) {
    out +=
        "The adapter was trained on weights quantised so; on the unquantised base it is not the model that "
        "was "
        "trained.\n";
    return;
  }
  if (*card.merge_into == MergeInto::kOriginal) {
    out +=
        "LoRA was merged into the base's own, unquantised weights (`--merge_into ORIGINAL`). This is not the "
        "model "
        "that was\ntrained: it differs by the error of quantising, and the run's losses are not its own.\n";
    return;
  }
  out +=
      "LoRA was merged into the values that the quantised weights stand for (`--merge_into DEQUANTISED`): "
      "but for "
      "rounding\nthis is the model that was trained.\n";
  if (train.frozen_gemm != FrozenGemm::kDequantized) {
    out +=
        "Where the run multiplied in FP8 it quantised activations too, which this folder does not ask "
        "for.\n";
  }
}

void add_data(const CheckpointState& state, std::string& out) {
  const auto record = state.extra.find(kTrainingRows);
  if (record == state.extra.end()) return;
  out += "\n## Data\n\n| file | rows | digest of what was trained on |\n| --- | --- | --- |\n";
  std::istringstream lines(record->second);
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(' '), second = line.find(' ', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    out += str_cat("| ", code(line.substr(second + 1)), " | ", printable(line.substr(0, first)), " | ",
                   code(line.substr(first + 1, second - first - 1)), " |\n");
  }
}

void add_evaluation(const ModelCard& card, std::string& out) {
  if (!card.evaluation) return;
  const RecordedEvaluation& found = *card.evaluation;
  const bool exact = found.total.exact.has_value();
  out += str_cat("\n## Evaluation\n\nThe last one of the run, at step ", found.step,
                 card.merge_into == MergeInto::kOriginal ? " and with its quantised weights" : "",
                 ": mean loss of a supervised token in nats",
                 exact ? ", and the share of the rows that it answers exactly" : "", ".\n\n| rows | loss |",
                 exact ? " exact match |" : "", "\n| --- | --- |", exact ? " --- |" : "", "\n");
  const auto row = [&](const std::string& name, const RecordedEvaluation::Score& score) {
    out += str_cat("| ", name, " | ", fixed(score.loss), " |");
    if (exact) out += score.exact ? str_cat(" ", fixed(*score.exact), " |") : " |";
    out += "\n";
  };
  row("all", found.total);
  for (const auto& [tag, score] : found.tags) row(code(tag), score);
}

void add_prompt(const ModelCard& card, std::string& out) {
  if (card.prompt.empty()) return;
  out += str_cat("\n## Prompt\n\nConversations were written with ", code(card.prompt), ".\n");
  if (!card.published_prompt) return;
  out +=
      "It is tokenised piece by piece and is no chat template. A question is\n\n    tokenizer(\"### "
      "Human:\\n\" + "
      "question + \"\\n### Assistant:\\n\")\n";
}

void add_tokenizer_class(const ModelCard& card, std::string& out) {
  if (!card.names_tokenizer_class) return;
  out +=
      "\nFor a model of this type transformers takes another tokenizer than `tokenizer.json` says, unless\n"
      "`tokenizer_config.json` names a class in `auto_map`: here that of `tokenization_pesc.py`. Without\n"
      "`trust_remote_code` the file is not run, and the tokens are the same.\n";
}

void add_loading(const ModelCard& card, std::string& out) {
  out += "\n## Loading\n\n";
  const bool experts = card.config.pesc.mode == TrainMode::kPesc;
  const char* trust = experts ? ", trust_remote_code=True" : "";
  const auto model_in_transformers = [&](const std::string& folder) {
    return str_cat(
        "    from transformers import AutoModelForCausalLM", card.loads_tokenizer ? ", AutoTokenizer" : "",
        "\n    model = AutoModelForCausalLM.from_pretrained(\"", folder, "\"", trust, ")\n",
        // Without `trust` it asks at the terminal whether to run the configuration's file.
        card.loads_tokenizer
            ? str_cat("    tokenizer = AutoTokenizer.from_pretrained(\"", folder, "\"", trust, ")\n")
            : "");
  };
  switch (card.format) {
    case ExportFormat::kHf:
      out += "With transformers (FOLDER is this folder):\n\n" + model_in_transformers("FOLDER");
      out += str_cat("\nWith lm-evaluation-harness:\n\n    lm_eval --model hf --model_args pretrained=FOLDER",
                     experts ? ",trust_remote_code=True" : "", " --tasks ...\n");
      out += "\nWith vLLM: by design, not run";
      out += experts ? " (`trust_remote_code=True`; its backend for models of transformers).\n" : ".\n";
      if (experts) {
        out += "Without `trust_remote_code` loading fails: the model is more than its dense base.\n";
      }
      break;
    case ExportFormat::kPeft:
      if (experts) {
        out +=
            "`base/` has the configuration and the modelling file, and no weights: link those of the dense "
            "base into "
            "it,\n\n    ln -s BASE/*.safetensors* FOLDER/base/\n\nand load the adapter on top (the warning "
            "that "
            "`moe_adapter` weights are newly\ninitialised is of the base alone; the adapter brings "
            "them):\n\n" +
            model_in_transformers("FOLDER/base");
      } else {
        out += "With PEFT, on the dense base:\n\n" + model_in_transformers("BASE");
      }
      out += "    from peft import PeftModel\n    model = PeftModel.from_pretrained(model, \"FOLDER\")\n";
      if (card.loads_tokenizer) {
        out += str_cat("\nWith lm-evaluation-harness:\n\n    lm_eval --model hf --model_args pretrained=",
                       experts ? "FOLDER/base,peft=FOLDER,trust_remote_code=True" : "BASE,peft=FOLDER",
                       " --tasks ...\n");
      } else {
        out +=
            "\nThe tokenizer has no tokenizer.json; transformers may give other tokens than the run was "
            "trained on.\n";
      }
      out += experts
                 ? "\nWith vLLM: by design, not run; it takes no experts from an adapter: use `pesc export "
                   "--format HF`.\n"
                 : "\nWith vLLM: by design, not run (`--enable-lora`).\n";
      break;
    case ExportFormat::kCamelidae:
      out +=
          "The folder has the form of the published Camelidae models. Their `configuration_camelidae.py` "
          "and\n"
          "`modeling_camelidae.py`, which run on transformers 4.33, belong beside `config.json`; they are "
          "not "
          "brought along.\n";
      break;
  }
}

}  // namespace

namespace {

// Of evaluations.jsonl. What was found before a launch that went on from an earlier step is of a step that was computed again.
std::optional<RecordedEvaluation> last_of_pesc_eval(const std::string& run_dir, int64_t step,
                                                    const std::vector<std::pair<int64_t, double>>& launches) {
  std::optional<RecordedEvaluation> found;
  for (const Evaluation& e : read_evaluations(run_dir)) {  // by step
    const bool again = std::ranges::any_of(
        launches, [&e](const auto& launch) { return launch.first < e.step && launch.second > e.time; });
    if (e.base || e.step > step || again) continue;
    const auto score = [](const EvaluationScore& s) {
      return RecordedEvaluation::Score{s.loss, s.rows > 0 ? std::optional(s.exact) : std::nullopt};
    };
    found = RecordedEvaluation{e.step, score(e.total), {}};
    for (const auto& [tag, of_tag] : e.datasets) found->tags.emplace_back(tag, score(of_tag));
  }
  return found;
}

}  // namespace

std::optional<RecordedEvaluation> last_evaluation(const std::string& run_dir, int64_t step) {
  std::optional<RecordedEvaluation> found;
  std::vector<std::pair<int64_t, double>> launches;  // the step that they went on from, and when
  std::ifstream in(run_dir + "/metrics.jsonl");
  for (std::string line; std::getline(in, line);) {
    const nlohmann::json j = nlohmann::json::parse(line, nullptr, false);
    if (!j.is_object() || !j.contains("step") || !j["step"].is_number_integer()) continue;
    const auto of = j["step"].get<int64_t>();
    const auto kind = j.find("kind");
    const bool launch = kind != j.end() && *kind == "launch", eval = kind != j.end() && *kind == "eval";
    if (launch && found && of < found->step) found.reset();  // the step is computed again
    if (const auto time = j.find("time"); launch && time != j.end() && time->is_number())
      launches.emplace_back(of, time->get<double>());
    const auto total = j.find("eval_loss_total");
    if (!eval || of > step || total == j.end() || !total->is_number()) continue;
    found = RecordedEvaluation{of, {total->get<double>(), {}}, {}};
    const auto tags = j.find("eval_loss");
    if (tags == j.end() || !tags->is_object()) continue;
    for (const auto& [tag, loss] : tags->items())
      if (loss.is_number()) found->tags.emplace_back(tag, RecordedEvaluation::Score{loss.get<double>(), {}});
  }
  const auto later = last_of_pesc_eval(run_dir, step, launches);
  return later && (!found || later->step >= found->step) ? later : found;
}

std::string model_card_text(const ModelCard& card, const CheckpointState& state) {
  const bool peft = card.format == ExportFormat::kPeft;
  std::string out = str_cat("---\nlibrary_name: ", peft ? "peft" : "transformers",
                            "\npipeline_tag: text-generation\ntags:\n- pesc\n---\n\n# ",
                            printable(card.config.name), "\n\n");
  out +=
      str_cat("Made by `pesc export --format ", format_name(card.format), "` of step ", state.step,
              " of a run; the values are ", card.dtype,
              card.config.pesc.mode == TrainMode::kPesc ? ", the routers float32" : "", ".\n\n## Base\n\n");
  if (card.config.model.path.empty()) {
    out += str_cat("None: a ", card.model_type, " model of the experiment's shape, from random weights.\n");
  } else {
    out += str_cat("A ", card.model_type, " model, ", code(state.base_path), ", of digest ",
                   code(weights_part(state.base_digest)), "; tokenizer of digest ",
                   code(tokenizer_part(state.base_digest)), ".\n");
    if (!card.config.model.adapter.empty())
      out += str_cat("The run began with the adapter ", code(card.config.model.adapter), ".\n");
  }
  add_quantisation(card, out);
  add_evaluation(card, out);
  add_prompt(card, out);
  add_loading(card, out);
  add_tokenizer_class(card, out);
  add_data(state, out);
  add_recipe(card, state, out);
  out += "\n## Versions\n\n| | |\n| --- | --- |\n";
  for (const auto& [name, value] : state.versions)
    out += str_cat("| ", printable(name), " | ", code(value), " |\n");
  return out;
}

}  // namespace pesc
