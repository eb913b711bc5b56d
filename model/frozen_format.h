// The formats of frozen weights. model/frozen_linear.h has their memory and GEMMs.
#pragma once

#include <cstdint>

namespace pesc {

// kF32, kBF16: the values themselves, in the compute type. kFP8: E4M3 with a scale for each output, which is a
// power of two where it is made here (ops/fp8.h). kNF4: ops/nf4.h. The others are those of folders that are
// quantised already, and are never made here. kFP8Blocks: E4M3 with a scale for each block of 128 x 128.
// kNF4Single: NF4 whose absmaxes are float32 values, without double quantisation.
enum class FrozenFormat : uint8_t { kF32, kBF16, kFP8, kNF4, kFP8Blocks, kNF4Single };
// As train.frozen_dtype names it: "F32", "BF16", "FP8" (also of kFP8Blocks), "NF4" (also of kNF4Single).
[[nodiscard]] const char* frozen_format_name(FrozenFormat format);
// Whether the format holds codes, which a tensor is quantised to as a whole.
[[nodiscard]] bool is_quantized(FrozenFormat format);
[[nodiscard]] constexpr bool is_nf4(FrozenFormat format) {
  return format == FrozenFormat::kNF4 || format == FrozenFormat::kNF4Single;
}
// What a person calls it: "FP8 with blocks of 128 x 128".
[[nodiscard]] const char* frozen_format_text(FrozenFormat format);

}  // namespace pesc
