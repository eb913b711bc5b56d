// pesc generate: answers one prompt, streaming it to the terminal, or the rows of a file.
#include "launcher/generate.h"

#include <glog/logging.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

#include "launcher/standard_output.h"
#include "runtime/base_digest.h"
#include "runtime/data/refused_rows.h"
#include "runtime/data/row_file.h"
#include "runtime/data/unknown_characters.h"
#include "runtime/evaluation.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

// Questions with characters that the tokenizer does not know, and those of the first.
struct UnknownInPrompts {
  int64_t rows = 0;
  int64_t first = 0;  // its number among the questions, from 0
  std::string characters;

  void look(const Tokenizer& tokenizer, const Row& row, int64_t number, int64_t limit) {
    std::string found = unknown_characters(tokenizer, row, limit);
    if (found.empty() || rows++ > 0) return;
    first = number;
    characters = std::move(found);
  }
  [[nodiscard]] std::string text(const std::string& source, int64_t of) const {
    const std::string which =
        of == 1 ? "" : str_cat(": ", rows, " of ", of, " questions, first number ", first + 1);
    return str_cat(source, which, ": the tokenizer has no piece for ", characters,
                   "; the model reads such characters as unknown");
  }
};

}  // namespace

// Beyond its sliding window the model would attend to less than all of the text, which is not supported.
int64_t longest_text(const ModelConfig& model) {
  return model.sliding_window > 0 ? std::min(model.sliding_window, model.max_position_embeddings)
                                  : model.max_position_embeddings;
}

const char* text_limit_name(const ModelConfig& model) {
  return model.sliding_window > 0 && longest_text(model) == model.sliding_window
             ? "the model's sliding window"
             : "the limit of the model's positions";
}

AnswerPrinter::AnswerPrinter(const Tokenizer& tokenizer)
    : decoder_(tokenizer), terminal_(::isatty(STDOUT_FILENO) != 0) {}

void AnswerPrinter::print(const std::string& answer) const {
  const std::string text = terminal_ ? printable(answer, kUncut, Keep::kLines) : answer;
  std::fwrite(text.data(), 1, text.size(), stdout);
  flush_standard_output();
}

int run_generate(const Process& process, const CommandLine& command) {
  run_collectively(process.world, [&] {
    if ((command.prompt.empty() ? 0 : 1) + (command.prompts.empty() ? 0 : 1) + (command.chat ? 1 : 0) != 1)
      throw UsageError("pesc generate needs exactly one of --prompt TEXT, --prompts FILE and --chat");
  });
  ExperimentConfig config = read_experiment(process, command);
  const HostPlacement placement = place(process, config);
  Job job = open_job(process.world, placement, std::move(config), DataUse::kNone);
  if (command.chat) return run_chat(process, command, job);
  const ExperimentConfig& c = job.config;
  std::vector<Row> rows;
  std::vector<Prompt> prompts;
  int64_t longest = 1, answerable = 0;
  const Mesh& mesh = job.mesh();
  const int64_t limit = longest_text(job.model);
  RowsReport read;
  run_collectively(process.world, [&] {
    RowOptions reading{.answers = Answers::kAllButLast};
    reading.on_bad_row = c.data.on_bad_row == BadRowPolicy::kSkip ? OnBadRow::kSkip : OnBadRow::kFail;
    reading.policy_field = "data.on_bad_row";
    reading.use = job.encoder->row_use();
    if (!command.prompts.empty()) rows = read_rows(command.prompts, reading, &read);
    if (!command.prompt.empty())
      rows.push_back({"", command.system, {{command.prompt, ""}}, "", {}, "--prompt"});
    const auto plain = std::erase_if(rows, [](const Row& r) { return r.turns.empty(); });
    if (plain > 0 && job.first()) {
      LOG(WARNING) << command.prompts << ": " << plain
                   << " rows of plain text hold no question and are left out";
    }
    if (read.bad > 0 && job.first()) {
      LOG(WARNING) << command.prompts << ": " << read.bad
                   << " malformed rows are left out: " << read.messages.front();
    }
    if (!read.unused_warning.empty() && job.first()) LOG(WARNING) << read.unused_warning;
    if (rows.empty())
      throw DataError(command.prompts +
                      ": holds no row with a question; a row needs \"messages\", or \"instruction\", "
                      "\"prompt\" or \"query\"");
    UnknownInPrompts unknown;
    RefusedRows refused = command.prompt.empty() ? RefusedRows(reading.on_bad_row, reading.policy_field)
                                                 : RefusedRows(OnBadRow::kFail, "");
    const Range mine = split_range(static_cast<int64_t>(rows.size()), mesh.dp(), mesh.dp_rank());
    for (int64_t i = 0; i < static_cast<int64_t>(rows.size()); ++i) {
      Prompt p{i, {}};
      try {
        p.tokens = job.encoder->encode_prompt(rows[static_cast<size_t>(i)], limit);
      } catch (const DataError& error) {
        refused.add(rows[static_cast<size_t>(i)], error);
        continue;
      }
      longest = std::max(longest, static_cast<int64_t>(p.tokens.size()));
      if (std::ranges::any_of(p.tokens, [&](int32_t id) { return job.tokenizer->is_unknown(id); }))
        unknown.look(*job.tokenizer, rows[static_cast<size_t>(i)], i, limit);
      if (i >= mine.begin && i < mine.end) prompts.push_back(std::move(p));
    }
    answerable = std::ssize(rows) - refused.rows();
    if (answerable == 0) throw DataError(str_cat("no row is left to answer: ", refused.text()));
    if (refused.rows() > 0 && job.first()) LOG(WARNING) << refused.text();
    if (unknown.rows > 0 && job.first())
      LOG(WARNING) << unknown.text(command.prompts.empty() ? "--prompt" : command.prompts, std::ssize(rows));
  });
  run_collectively(process.world, [&] {
    if (longest < limit) return;
    throw DataError(str_cat("the longest prompt has ", longest > limit ? "more than " : "",
                            std::min(longest, limit), " tokens; this model takes fewer than ", limit,
                            job.model.sliding_window > 0 ? " (its sliding window)" : " (its positions)"));
  });
  const int64_t length = std::min(longest + c.generate.max_new_tokens, limit);
  const int64_t slots = inference_slots(length);
  const auto decoder = make_inference_decoder(job, slots * mesh.dp(), length, slots);
  if (!command.base) {
    load_trainable_weights(job, *decoder, command.checkpoint, CheckpointUse::kAnswer);
  } else if (job.adapter) {
    const BaseDigest digest = base_digest(job);
    run_collectively(process.world, [&] { check_adapter_base(job, digest); });
  }

  GenerateOptions options{
      .sampling = sampling_options(job, c.generate), .cache_slots = slots, .cache_length = length};
  const bool stream = !command.prompt.empty();
  AnswerPrinter printer(*job.tokenizer);
  if (stream && mesh.tp_rank() == 0) {
    options.on_token = [&](const Prompt&, int32_t token) { printer.push(token); };
  }
  const auto [answers, cut] = generate(*decoder, process.world, prompts, options);
  const int64_t all_cut = cut_answers(job, cut);
  if (stream && options.on_token && !prompts.empty()) printer.finish();
  if (job.first() && all_cut > 0) {
    std::fprintf(stderr, "%lld of %lld answers %s cut: prompt and answer have reached %s of %lld tokens\n",
                 static_cast<long long>(all_cut), static_cast<long long>(answerable),
                 all_cut == 1 ? "is" : "are", text_limit_name(job.model), static_cast<long long>(length));
  }
  if (stream) return 0;
  std::string mine;
  for (size_t i = 0; mesh.tp_rank() == 0 && i < prompts.size(); ++i) {
    const Row& row = rows[static_cast<size_t>(prompts[i].index)];
    const nlohmann::json j = {{"dataset", row.tag},
                              {"input", row.turns.back().prompt},
                              {"output", job.tokenizer->decode(answers[i])}};
    mine += j.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  }
  for (const std::string& part : process.world.host_all_gather(mine)) {
    if (process.world.rank() == 0) std::fwrite(part.data(), 1, part.size(), stdout);
  }
  return 0;
}

}  // namespace pesc
