// What is saved in a checkpoint, and a checkpoint that has been verified. runtime/README.md describes the
// format.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ops/core/device.h"
#include "ops/core/tensor.h"
#include "parallel/shard_spec.h"
#include "runtime/filesystem/filesystem.h"

namespace pesc {

namespace proto {
class Manifest;
}  // namespace proto

// This rank's piece of one trainable parameter and its optimizer state, in device memory: F32 [spec.rows,
// spec.cols], any row stride. A tensor without data is neither saved nor loaded. REQUIRES: it then has no
// data on any rank.
struct TrainableTensor {
  ShardSpec spec;
  Tensor master;
  Tensor exp_avg;
  Tensor exp_avg_sq;
};

// The checkpoint with the lowest eval loss.
struct BestCheckpoint {
  int64_t step = 0;
  double eval_loss = 0;
  friend bool operator==(const BestCheckpoint&, const BestCheckpoint&) = default;
};

// Everything that a resumed run needs besides the tensors. The same on every rank.
struct CheckpointState {
  int64_t step = 0;              // optimizer steps done
  int64_t consumed_samples = 0;  // rows taken from the data order
  uint64_t seed = 0;
  std::string config_text;  // the resolved configuration
  std::string base_path, base_digest;
  std::map<std::string, std::string> extra;     // further scalar state by name, any bytes
  std::map<std::string, std::string> versions;  // of libraries and kernels
  std::optional<BestCheckpoint> best;           // of the run so far, this one perhaps; nothing: none is kept
  int tp = 1, ep = 1;                           // the layout that saved; any layout can load
};

// A checkpoint of which every byte has been verified.
struct LoadedCheckpoint {
  std::string directory;
  CheckpointState state;
  uint64_t launch_id = 0;
  int world = 1;      // ranks that saved it
  int64_t bytes = 0;  // of all its shards
  std::shared_ptr<const proto::Manifest> manifest;
};

// Writes this rank's pieces from a checkpoint of any layout, reading only the byte ranges that it needs. Not
// collective; complete when it returns. Throws DataError, naming the tensor, when one is missing or has
// another shape; tensors that were loaded before it keep the loaded values.
void load_checkpoint(FileSystem& files, const LoadedCheckpoint& checkpoint, Stream& stream,
                     std::span<const TrainableTensor> tensors);

// Throws DataError when the checkpoint belongs to a base model of another digest. The same base under another
// path is fine: returns a note to log, or nothing.
[[nodiscard]] std::string check_base(const CheckpointState& saved, const std::string& path,
                                     const std::string& digest);

}  // namespace pesc
