// The mark of the checkpoint with the lowest eval loss (checkpoint.keep_best): the file `pesc.best` in the run
// directory, "step 40\neval_loss 1.25\n". It is written after the checkpoint that it names is committed and
// before the one that it named before is pruned, so it never names one that is gone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/filesystem/filesystem.h"

namespace pesc {

inline constexpr const char* kBestFile = "pesc.best";
// What `--checkpoint` names it by.
inline constexpr const char* kBestCheckpoint = "best";

// Nothing where the directory has no mark. Throws DataError when the file is damaged, IoError.
[[nodiscard]] std::optional<BestCheckpoint> read_best_mark(FileSystem& files, const std::string& run_dir);

// Writes the mark, or removes it where `best` is nothing. Atomic and synced. Does nothing where the mark says
// so already. IoError.
void put_best_mark(FileSystem& files, const std::string& run_dir, const std::optional<BestCheckpoint>& best,
                   uint64_t launch_id);

// The folder of the marked checkpoint. Throws DataError when the run directory has none.
[[nodiscard]] std::string best_checkpoint_folder(FileSystem& files, const std::string& run_dir);

}  // namespace pesc
