#include "runtime/checkpoint/best_checkpoint.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <sstream>

#include "ops/core/check.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr int64_t kMostBytes = 4096;

std::string to_string(const BestCheckpoint& best) {
  std::ostringstream text;
  text.precision(std::numeric_limits<double>::max_digits10);
  text << "step " << best.step << "\neval_loss " << best.eval_loss << "\n";
  return text.str();
}

std::string path_of(const std::string& run_dir) {
  return join_path(run_dir, kBestFile);
}

}  // namespace

std::optional<BestCheckpoint> read_best_mark(FileSystem& files, const std::string& run_dir) {
  const std::string path = path_of(run_dir);
  if (!files.exists(path)) return std::nullopt;
  const std::string text = files.read_all(path, kMostBytes);
  std::istringstream words(text);
  std::string step, loss, more;
  BestCheckpoint best;
  const bool good = (words >> step >> best.step >> loss >> best.eval_loss) && step == "step" &&
                    loss == "eval_loss" && !(words >> more) && best.step >= 0 &&
                    std::isfinite(best.eval_loss);
  if (!good) {
    throw DataError(
        str_cat(path, ": reads ", in_quotes(text, 60),
                ", which is no mark of a best checkpoint; remove the file, and the run marks one anew"));
  }
  return best;
}

void put_best_mark(FileSystem& files, const std::string& run_dir, const std::optional<BestCheckpoint>& best,
                   uint64_t launch_id) {
  const std::string path = path_of(run_dir);
  const bool there = files.exists(path);
  if (!best) {
    if (!there) return;
    files.remove(path);
    files.sync_directory(run_dir);
    return;
  }
  const std::string text = to_string(*best);
  if (there && files.kind(path) == FileKind::kFile && files.size(path) <= kMostBytes &&
      files.read_all(path, kMostBytes) == text)
    return;
  const std::string temporary = str_cat(path, ".new.", launch_id);
  const auto file = files.create_file(temporary);
  file->append(std::as_bytes(std::span(text)));
  file->sync();
  file->close();
  files.rename(temporary, path);
  files.sync_directory(run_dir);
}

std::string best_checkpoint_folder(FileSystem& files, const std::string& run_dir) {
  const std::optional<BestCheckpoint> best = read_best_mark(files, run_dir);
  if (!best) {
    throw DataError(str_cat("run_dir '", run_dir,
                            "' has no best checkpoint: a run marks one where checkpoint.keep_best is true"));
  }
  const std::string folder = join_path(run_dir, str_cat("step-", best->step));
  if (!files.exists(folder))
    throw DataError(str_cat(path_of(run_dir), " names step ", best->step, " as the best checkpoint, but '",
                            folder, "' is not there"));
  return folder;
}

}  // namespace pesc
