// CRC-32C, the checksum of TensorFlow's record files.
#pragma once

#include <cstdint>
#include <string_view>

namespace pesc {

// CRC-32C (Castagnoli, RFC 3720 appendix B.4): crc32c("123456789") is 0xe3069283.
[[nodiscard]] uint32_t crc32c(std::string_view bytes);

// The form in which a record file has it, so that the checksum of bytes that contain checksums is no special
// case: rotated right by 15 bits, plus 0xa282ead8.
[[nodiscard]] uint32_t masked_crc32c(std::string_view bytes);

}  // namespace pesc
