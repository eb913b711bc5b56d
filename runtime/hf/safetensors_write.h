// Writing of safetensors files, tensor by tensor, so that a model need never stand in memory whole.
//
// The order of the data is fixed by the list alone: larger element types first (so that every tensor is
// aligned to its own type), then by name. The header is padded with spaces to a multiple of 8 bytes. Equal
// input gives equal bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "ops/core/tensor.h"

namespace pesc {

// Takes the next bytes of the tensor being written.
using ByteSink = std::function<void(std::span<const std::byte>)>;

struct SafetensorsWriteEntry {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  // Called once, when the tensor's turn comes; gives its bytes, row-major and little-endian, in any number of
  // pieces.
  std::function<void(const ByteSink&)> produce;
};

// An entry whose bytes stand in memory until the file is written.
[[nodiscard]] SafetensorsWriteEntry safetensors_entry(std::string name, DType dtype,
                                                      std::vector<int64_t> shape,
                                                      std::span<const std::byte> data);

// The bytes of the tensor in the file.
[[nodiscard]] int64_t safetensors_bytes(const SafetensorsWriteEntry& entry);

// The order in which write_safetensors calls `produce`: indices of `entries`. Ranks that gather a tensor
// together call this to go through the list alike.
[[nodiscard]] std::vector<size_t> safetensors_order(const std::vector<SafetensorsWriteEntry>& entries);

// Gives the bytes of the whole file to `out`, in order; `where` is for messages. Returns their number. Throws
// InternalError for a repeated name or a tensor that produces other than its shape's bytes.
int64_t stream_safetensors(const std::string& where, const std::vector<SafetensorsWriteEntry>& entries,
                           const std::map<std::string, std::string>& metadata, const ByteSink& out);

// Writes under a temporary name in the same folder, syncs, renames over `path`, syncs the folder: `path` is
// the old file or the whole new one, also after a crash. Returns the file's bytes. Throws IoError when
// writing fails, InternalError for a repeated name or a tensor that produces other than its shape's bytes;
// either leaves `path` as it was.
int64_t write_safetensors(const std::string& path, const std::vector<SafetensorsWriteEntry>& entries,
                          const std::map<std::string, std::string>& metadata);

}  // namespace pesc
