// What an experiment can be checked against only outside its text: the file system and the model.
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "ops/core/check.h"
#include "runtime/chat/template_source.h"
#include "runtime/config/experiment.h"
#include "runtime/filesystem/file_kind.h"

namespace pesc {
namespace {

enum class PathKind { kFolder, kFile };

void check_readable(const ExperimentConfig& c, const std::string& field, const std::string& path,
                    PathKind kind) {
  const auto refuse = [&](const std::string& why) {
    throw UsageError(str_cat(c.places.prefix(field), field, ": '", path, "' ", why));
  };
  if (const std::string dead = dead_link(path); !dead.empty()) refuse(dead);
  if (access(path.c_str(), R_OK) != 0) {
    refuse(str_cat("cannot be read: ", std::strerror(errno),
                   path.starts_with('/') ? "" : " (relative paths start at the current directory)"));
  }
  std::error_code ignored;
  const bool folder = std::filesystem::is_directory(path, ignored);
  if (kind == PathKind::kFolder && !folder) refuse("is not a folder");
  if (kind == PathKind::kFile && folder) refuse("is a folder; name a file");
}

// validate_layout knows no files: the place of the field that its message names goes in front of it.
void check_layout(const ExperimentConfig& c, const ModelConfig& model, int world) {
  static constexpr std::array kFields{"parallel.tp", "parallel.ep", "moe.num_experts_per_tok",
                                      "moe.adapter_dim", "moe.num_experts"};
  try {
    validate_layout(model, c.pesc, world, c.parallel.tp, c.parallel.ep);
  } catch (const UsageError& e) {
    const std::string what = e.what();
    for (const std::string field : kFields) {
      if (what.find(field) != std::string::npos) throw UsageError(c.places.prefix(field) + what);
    }
    throw;
  }
}

}  // namespace

void check_paths(const ExperimentConfig& c, DataUse use) {
  if (!c.model.path.empty()) check_readable(c, "model.path", c.model.path, PathKind::kFolder);
  if (!c.model.tokenizer.empty())  // a benchmark of random tokens needs none
    check_readable(c, "model.tokenizer", c.model.tokenizer, PathKind::kFolder);
  if (!c.model.adapter.empty()) check_readable(c, "model.adapter", c.model.adapter, PathKind::kFolder);
  if (is_template_file(c.data.chat_template))
    check_readable(c, "data.chat_template", c.data.chat_template, PathKind::kFile);
  const bool split = use == DataUse::kEval && c.data.validation_fraction > 0;
  for (size_t i = 0; (use == DataUse::kAll || split) && i < c.data.train.size(); ++i)
    check_readable(c, str_cat("data.train[", i, "].path"), c.data.train[i].path, PathKind::kFile);
  for (size_t i = 0; use != DataUse::kNone && i < c.data.eval.size(); ++i)
    check_readable(c, str_cat("data.eval[", i, "].path"), c.data.eval[i].path, PathKind::kFile);
  if (use == DataUse::kAll && !c.debug.routing_replay.empty())
    check_readable(c, "debug.routing_replay", c.debug.routing_replay, PathKind::kFolder);
}

void check_against_model(const ExperimentConfig& c, const ModelConfig& model, int world) {
  validate_model(model);
  check_layout(c, model, world);
  const std::string field = "data.max_seq_length";
  if (c.data.max_seq_length > model.max_position_embeddings) {
    throw UsageError(str_cat(c.places.prefix(field), field, " is ", c.data.max_seq_length,
                             "; the model knows ", model.max_position_embeddings,
                             " positions (max_position_embeddings), use at most those"));
  }
  if (model.sliding_window > 0 && c.data.max_seq_length > model.sliding_window) {
    throw UsageError(str_cat(c.places.prefix(field), field, " is ", c.data.max_seq_length,
                             ", beyond the model's sliding_window of ", model.sliding_window,
                             "; attention over a sliding window is not supported, use at most ",
                             model.sliding_window));
  }
}

}  // namespace pesc
