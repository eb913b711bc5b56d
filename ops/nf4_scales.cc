#include "ops/nf4_scales.h"

#include <cstring>

namespace pesc {

void Nf4Scales::write_row(int64_t first, const Nf4Matrix& out, int64_t to) const {
  const int64_t group0 = first / kNf4Group;
  const int64_t block0 = first / kNf4Block;
  out.first.i32()[to * out.first.ld] = static_cast<int32_t>(first % kNf4Group);

  float* of_groups = out.nested.f32() + to * out.nested.ld;
  of_groups[0] = offset;
  for (int64_t g = 0; g + 1 < out.nested.cols; ++g)
    of_groups[1 + g] =
        group0 + g < static_cast<int64_t>(nested.size()) ? nested[static_cast<size_t>(group0 + g)] : 0.0F;

  uint8_t* absmax = out.absmax.u8() + to * out.absmax.ld;
  const int64_t touched = (first + out.cols - 1) / kNf4Block - block0 + 1;
  for (int64_t b = 0; b < out.absmax.cols; ++b)
    absmax[b] = b < touched ? absmax_codes[static_cast<size_t>(block0 + b)] : uint8_t{0};
}

void nf4_cut_codes(const uint8_t* row, int64_t col, int64_t cols, uint8_t* to) {
  const uint8_t* from = row + col / 2;
  if (col % 2 == 0) {
    std::memcpy(to, from, static_cast<size_t>(cols / 2));
  } else {
    for (int64_t i = 0; i < cols / 2; ++i) to[i] = static_cast<uint8_t>(from[i] << 4 | from[i + 1] >> 4);
  }
  if (cols % 2 == 0) return;
  const uint8_t two = from[cols / 2];
  to[cols / 2] = static_cast<uint8_t>(col % 2 == 0 ? two & 0xF0 : two << 4);
}

}  // namespace pesc
