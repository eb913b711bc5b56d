// Which run a checkpoint belongs to.
//
// The file `pesc.run` in a run directory names the run; every manifest that the run writes carries that name.
// A folder that only has the name of a checkpoint is not taken for one, a checkpoint of another run is not
// resumed from unasked, and neither is ever removed.
#pragma once

#include <cstdint>
#include <string>

#include "configs/schema/manifest.pb.h"
#include "runtime/filesystem/filesystem.h"

namespace pesc {

inline constexpr const char* kRunFile = "pesc.run";

struct RunIdentity {
  std::string id;  // 32 hexadecimal digits; empty: the run directory does not have one yet
  // The checkpoint of another run that this run began from, where there is one.
  std::string from;
  int64_t from_step = -1;
  // Launches of this run below this number wrote manifests without a run: they had an older pesc.
  uint64_t unnamed_before = 0;
};

// Empty where the directory has none. Throws DataError when the file is damaged, IoError.
[[nodiscard]] RunIdentity read_run_identity(FileSystem& files, const std::string& run_dir);
void write_run_identity(FileSystem& files, const std::string& run_dir, const RunIdentity& run,
                        uint64_t launch_id);
[[nodiscard]] std::string to_string(const RunIdentity& run);
[[nodiscard]] RunIdentity parse_run_identity(const std::string& text, const std::string& where);

// The identity of a run that begins in a directory without one, from scratch or from a checkpoint that lay
// there.
[[nodiscard]] RunIdentity new_run_identity(const proto::Manifest* resumed, uint64_t launch_id);

// Whether the run may go on from this checkpoint without being asked to: it is its own, or the one that it
// began from. Without an identity every checkpoint is.
[[nodiscard]] bool continues(const RunIdentity& run, const proto::Manifest& manifest);

// Whether the run itself has written this checkpoint. A manifest without a run counts only where this run has
// had launches of an older pesc, and where base, seed and rows of a step are those of `like`.
[[nodiscard]] bool wrote(const RunIdentity& run, const proto::Manifest& manifest,
                         const proto::Manifest& like);

// Why the folder or file `path`, named like a checkpoint, is none; empty when it may be one (damaged,
// perhaps).
[[nodiscard]] std::string why_no_checkpoint(FileSystem& files, const std::string& path);

// A name with which a checkpoint begins, but which is none of those that the program gives: "step-007",
// "step-5-copy".
[[nodiscard]] bool looks_like_checkpoint_name(const std::string& name);

// Removes a folder that holds nothing but files of a checkpoint. Throws IoError, and then nothing is removed,
// when it is no folder or holds anything else: that is the user's.
void remove_checkpoint_folder(FileSystem& files, const std::string& path);
// The first name in the folder that a checkpoint does not have; empty: there is none.
[[nodiscard]] std::string foreign_name(FileSystem& files, const std::string& path);

}  // namespace pesc
