// One rank's share of a checkpoint: which pieces it writes, their copy in host memory, and the shard file.
//
// Every rank that holds a piece knows its number among the holders (ShardSpec::replica), so who writes what
// needs no messages: a piece is cut by rows into at most `replicas` parts of at least kShardPartBytes, and
// the parts go to the holders in turn, starting at one chosen by the piece's name. So replicas are written
// once and the bytes are spread.
//
// The shard is an ordinary safetensors file. Keys are "KIND:NAME@ROW,COL"; __metadata__ maps each key to
// "[ROWS, COLS]@ROW,COL" with the tensor's global shape.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ops/core/device.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/manifest.h"
#include "runtime/filesystem/filesystem.h"

namespace pesc {

inline constexpr int64_t kShardPartBytes = int64_t{1} << 20;

// The rows of the piece, counted from its first one, that this holder writes; may be empty. The holders' rows
// are disjoint and cover the piece.
[[nodiscard]] Range rows_to_write(const ShardSpec& spec);

// Host memory that grows and is kept from save to save, page-locked for a GPU.
class HostBuffer {
 public:
  HostBuffer() = default;
  ~HostBuffer();
  HostBuffer(const HostBuffer&) = delete;
  HostBuffer& operator=(const HostBuffer&) = delete;
  [[nodiscard]] std::span<std::byte> reserve(const Device& device, int64_t bytes);

 private:
  void release() noexcept;
  Device device_;
  std::byte* data_ = nullptr;
  int64_t capacity_ = 0;
};

// Bytes that a snapshot of these tensors takes on this rank.
[[nodiscard]] int64_t snapshot_bytes(std::span<const TrainableTensor> tensors);

// What this rank writes: its pieces, first as they stand in device memory, after copy() on the host.
class ShardSnapshot {
 public:
  ShardSnapshot() = default;
  // Takes the room in `buffer`, which outlives it, for tensors of `device`, and copies nothing yet.
  ShardSnapshot(const Device& device, std::span<const TrainableTensor> tensors, HostBuffer& buffer);

  // Copies the pieces to host memory; call it between wait_stream() and wait() of `copies`. The device
  // tensors may change only after wait(); write() may be called after copies.synchronize().
  void copy(HostCopies& copies);

  // Writes and syncs `directory`/`file_name`. Local. Returns this rank's part of the manifest: tensors with
  // one piece each, and the file with its checksums. Writes no file, and returns none, when this rank has no
  // pieces. Throws InternalError, naming the tensor, when an element is not finite, since no run can continue
  // from such a state; IoError.
  [[nodiscard]] proto::Manifest write(FileSystem& files, const std::string& directory,
                                      const std::string& file_name) const;

 private:
  struct Piece {
    std::string name;
    proto::TensorKind::Value kind;
    int64_t global_rows, global_cols;
    int64_t row, rows, col, cols;
    Tensor source;  // in device memory
    std::span<std::byte> bytes;
  };
  [[nodiscard]] std::string header() const;
  std::vector<Piece> pieces_;
};

}  // namespace pesc
