// Reading of safetensors files. The format:
//
//   8 bytes   N, little-endian
//   N bytes   JSON object: {"NAME": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, ...},
//             optionally with "__metadata__": {"string": "string", ...}; it begins with '{' and may end in
//             spaces
//   rest      the data: offsets count from here, and the tensors cover it without gap or overlap
//
// A file is a stranger's: everything is checked before anything is used, in time and memory bounded by the
// header's size, and refused with a DataError naming the file and the tensor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ops/core/tensor.h"
#include "runtime/hf/mapped_file.h"

namespace pesc {

// The limit of the reference implementation.
inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;
// Far more than any model has in one file (the largest have some 100,000 in all); they keep memory and time
// bounded.
inline constexpr size_t kMaxSafetensorsTensors = 250'000;
inline constexpr size_t kMaxSafetensorsMetadata = 100'000;

struct SafetensorsEntry {
  std::string name;
  std::string type;            // as the file has it: "F8_E4M3"
  std::optional<DType> dtype;  // absent: a type that no code here reads
  std::vector<int64_t> shape;  // empty: a scalar
  uint64_t begin = 0;          // byte offsets into the data, begin <= end
  uint64_t end = 0;

  [[nodiscard]] uint64_t bytes() const { return end - begin; }
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> tensors;  // in the order of their data
  std::map<std::string, std::string> metadata;
  uint64_t data_begin = 0;  // file offset where the data starts

  // Null when there is no tensor of that name.
  [[nodiscard]] const SafetensorsEntry* find(std::string_view name) const;

  std::vector<uint32_t> by_name;  // indices of `tensors`, sorted by name
};

// Checks a whole file's bytes; `file_name` is for messages. Throws DataError.
[[nodiscard]] SafetensorsHeader parse_safetensors(std::span<const std::byte> file,
                                                  const std::string& file_name);

// "[2, 3]"
[[nodiscard]] std::string shape_text(std::span<const int64_t> shape);

// A file mapped into memory and checked. Reading a page touches the disk; nothing is read ahead of use.
class SafetensorsFile {
 public:
  // Throws DataError for a file that is not there, not a regular file or not well formed, IoError when it
  // cannot be read. See MappedFile.
  explicit SafetensorsFile(const std::string& path);

  [[nodiscard]] const std::string& path() const { return file_.path(); }
  [[nodiscard]] const MappedFile& file() const { return file_; }
  [[nodiscard]] const SafetensorsHeader& header() const { return header_; }
  [[nodiscard]] bool has(std::string_view name) const { return header_.find(name) != nullptr; }
  // Throws DataError naming the tensor and the file when it is not there.
  [[nodiscard]] const SafetensorsEntry& at(std::string_view name) const;
  // The tensor's bytes, row-major, little-endian, valid as long as this object; of no particular alignment.
  [[nodiscard]] std::span<const std::byte> bytes(const SafetensorsEntry& entry) const;

 private:
  MappedFile file_;
  SafetensorsHeader header_;
};

}  // namespace pesc
