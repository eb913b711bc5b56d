// run_logits --config E [--set FIELD=VALUE]... [--checkpoint DIR | --base] --ids FILE --out FILE [--greedy N]
//
// What the model of an experiment computes, for comparison with other programs, on one rank. --base: the base as its folder has
// it, which then needs no tokenizer. FILE of --ids is a JSON list
// of lists of token ids. Without --greedy, --out gets the logits of all their positions, float32 [tokens, vocabulary],
// one list after the other; with it, a JSON list of the greedy continuations of at most N tokens each, which end at a stop
// token of the model, and with each the least gap between the two best logits of its positions.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "parallel/mpi_session.h"
#include "runtime/config/experiment.h"
#include "runtime/hf/config_json.h"
#include "runtime/hf/pesc_folder.h"
#include "runtime/job.h"

namespace pesc {
namespace {

struct Words {
  std::string config, checkpoint, ids, out;
  std::vector<std::string> overrides;
  bool base = false;
  int64_t greedy = 0;
};

Words parse(int argc, char** argv) {
  Words w;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--base") {
      w.base = true;
      continue;
    }
    if (i + 1 >= argc) throw UsageError(str_cat(name, " needs a value"));
    const std::string value = argv[++i];
    if (name == "--config") {
      w.config = value;
    } else if (name == "--set") {
      w.overrides.push_back(value);
    } else if (name == "--checkpoint") {
      w.checkpoint = value;
    } else if (name == "--ids") {
      w.ids = value;
    } else if (name == "--out") {
      w.out = value;
    } else if (name == "--greedy") {
      w.greedy = std::stoll(value);
    } else {
      throw UsageError("no flag " + name);
    }
  }
  if (w.config.empty() || w.ids.empty() || w.out.empty())
    throw UsageError("--config, --ids and --out are needed");
  return w;
}

// [tokens, vocabulary]; of the last position alone where `last`.
std::vector<float> logits_of(Decoder& decoder, const std::vector<int32_t>& ids, bool last) {
  HostBatch batch;
  std::vector<int32_t> rows;
  for (size_t i = 0; i < ids.size(); ++i) {
    batch.tokens.push_back(ids[i]);
    batch.targets.push_back(-100);
    batch.positions.push_back(static_cast<int32_t>(i));
    batch.samples.push_back(0);
    if (!last || i + 1 == ids.size()) rows.push_back(static_cast<int32_t>(i));
  }
  batch.starts.push_back(static_cast<int32_t>(ids.size()));
  decoder.forward(batch, {.kind = ForwardMode::kEval});
  return decoder.logits(rows);
}

nlohmann::json continuation(Decoder& decoder, std::vector<int32_t> ids, const std::vector<int64_t>& stops,
                            int64_t most) {
  nlohmann::json out = {{"ids", nlohmann::json::array()}, {"gaps", nlohmann::json::array()}};
  for (int64_t n = 0; n < most; ++n) {
    std::vector<float> logits = logits_of(decoder, ids, true);
    const auto best = std::max_element(logits.begin(), logits.end());
    const auto id = static_cast<int32_t>(best - logits.begin());
    const float top = *best;
    *best = -INFINITY;
    out["gaps"].push_back(top - *std::max_element(logits.begin(), logits.end()));
    out["ids"].push_back(id);
    ids.push_back(id);
    if (std::ranges::find(stops, id) != stops.end()) break;
  }
  return out;
}

// What open_job makes, but for the tokenizer.
Job open_base(Communicator& world, ExperimentConfig config) {
  Job job;
  job.config = std::move(config);
  const ModelSection& m = job.config.model;
  job.model = read_model_config(m.path, m.links);
  if (const auto experts = read_folder_experts(m.path, m.links))
    check_folder_experts(*experts, job.config.pesc, m.path);
  job.base = std::make_unique<HfFolder>(m.path, m.links);
  job.special.stops = job.model.eos_ids;
  job.ranks = std::make_unique<Ranks>(world, 1, 1, job.model.num_key_value_heads);
  return job;
}

int run(int argc, char** argv) {
  const MpiSession session;
  const auto world = session.world();
  try {
    const Words w = parse(argc, argv);
    std::ifstream in(w.ids);
    const auto prompts = nlohmann::json::parse(in).get<std::vector<std::vector<int32_t>>>();
    ExperimentConfig config = load_experiment(w.config, w.overrides);
    const HostPlacement place =
        place_rank_on_host(session.cores(), session.local_rank(), session.local_size(), 1);
    Job job = w.base ? open_base(*world, std::move(config))
                     : open_job(*world, place, std::move(config), DataUse::kNone);
    size_t longest = 0;
    for (const auto& ids : prompts) longest = std::max(longest, ids.size() + static_cast<size_t>(w.greedy));
    const auto decoder = make_inference_decoder(job, 1, static_cast<int64_t>(longest), 0);
    if (!w.base) (void)load_trainable_weights(job, *decoder, w.checkpoint, CheckpointUse::kAnswer);
    std::ofstream out(w.out, std::ios::binary);
    nlohmann::json answers = nlohmann::json::array();
    for (const auto& ids : prompts) {
      if (w.greedy > 0) {
        answers.push_back(continuation(*decoder, ids, job.special.stops, w.greedy));
        continue;
      }
      const std::vector<float> logits = logits_of(*decoder, ids, false);
      out.write(reinterpret_cast<const char*>(logits.data()),
                static_cast<std::streamsize>(logits.size() * sizeof(float)));
    }
    if (w.greedy > 0) out << answers.dump() << "\n";
    out.close();
    if (!out) throw IoError(w.out + " cannot be written");
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "run_logits: %s\n", e.what());
    return 1;
  }
}

}  // namespace
}  // namespace pesc

int main(int argc, char** argv) {
  return pesc::run(argc, argv);
}
