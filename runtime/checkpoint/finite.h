// Looks for NaN and infinity in the float32 elements of a checkpoint, as they are written and read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace pesc {

// The number of the first element of little-endian float32 `bytes` that is NaN or infinite; -1: none is.
// Reads at the speed of memory.
[[nodiscard]] int64_t first_not_finite(std::span<const std::byte> bytes);
[[nodiscard]] float float_at(std::span<const std::byte> bytes, int64_t element);

}  // namespace pesc
