#include "runtime/hf/tensor_slice.h"

#include <array>
#include <span>

#include "ops/core/check.h"
#include "runtime/hf/dtype_convert.h"
#include "runtime/text/printable.h"

namespace pesc {

int64_t read_tensor_slice(const SafetensorsFile& file, const SafetensorsEntry& entry, const TensorSlice& s,
                          const char* remedy, float* to) {
  const std::string where = str_cat(file.path(), ": tensor ", in_quotes(entry.name));
  if (!entry.dtype || !converts_to_f32(*entry.dtype)) {
    throw DataError(str_cat(where, " is ", in_quotes(entry.type),
                            "; weights must be F32, BF16 or F16: give the model in one of these"));
  }
  const int64_t columns = entry.shape.back();
  const std::span<const std::byte> bytes = file.bytes(entry);
  const auto element = static_cast<size_t>(dtype_bytes(*entry.dtype));
  if (s.cols == columns) {
    convert_to_f32(*entry.dtype, bytes.subspan(s.row * s.cols * element, s.rows * s.cols * element), to);
  } else {
    for (int64_t i = 0; i < s.rows; ++i) {
      convert_to_f32(*entry.dtype, bytes.subspan(((s.row + i) * columns + s.col) * element, s.cols * element),
                     to + i * s.cols);
    }
  }
  const auto size = static_cast<size_t>(s.rows * s.cols);
  if (const size_t at = first_nonfinite({to, size}); at < size) {
    const auto local = static_cast<int64_t>(at);
    const std::array<int64_t, 2> index = {s.row + local / s.cols, s.col + local % s.cols};
    throw DataError(str_cat(where, " holds ", to[at], " at ",
                            shape_text(std::span(index).subspan(entry.shape.size() == 1 ? 1 : 0)),
                            "; every weight must be finite: ", remedy));
  }
  return s.rows * s.cols * static_cast<int64_t>(element);
}

}  // namespace pesc
