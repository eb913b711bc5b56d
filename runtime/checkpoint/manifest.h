// The manifest of a checkpoint as bytes: written, read, and checked as a stranger's.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "configs/schema/manifest.pb.h"

namespace pesc {

inline constexpr uint32_t kManifestVersion = 1;
inline constexpr int64_t kChecksumBlockBytes = int64_t{4} << 20;
// Bounds the memory that reading a hostile one takes. Estimated, not measured: some 30 MB for all parameters
// of a 70B model on 512 data-parallel ranks.
inline constexpr int64_t kMaxManifestBytes = int64_t{64} << 20;
inline constexpr const char* kManifestName = "manifest.pb";

// The serialised message with its checksum as the last field.
[[nodiscard]] std::string serialize_manifest(const proto::Manifest& manifest);

// Throws DataError, naming `where` and the field, unless the checksum is right and validate_manifest() holds.
[[nodiscard]] proto::Manifest parse_manifest(std::string_view bytes, const std::string& where);

// Every number is in range, file names stay inside the directory, byte ranges lie inside their files and do
// not overlap, and the pieces of each tensor cover it exactly. Time O(n log n) and memory O(n) in the size of
// the message.
void validate_manifest(const proto::Manifest& manifest, const std::string& where);

[[nodiscard]] inline int64_t checksum_blocks(int64_t size) {
  return size / kChecksumBlockBytes + (size % kChecksumBlockBytes != 0 ? 1 : 0);
}

// "shard-00003.safetensors"; nothing else is accepted as a file of a manifest.
[[nodiscard]] std::string shard_name(int rank);
[[nodiscard]] bool is_shard_name(std::string_view name);

[[nodiscard]] const char* kind_name(proto::TensorKind::Value kind);  // "param", "exp_avg", "exp_avg_sq"

}  // namespace pesc
