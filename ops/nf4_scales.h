// The scales and codes of a whole NF4 tensor, from which the pieces of ranks are cut. The formats and letters of
// ops/nf4.h.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/nf4.h"

namespace pesc {

struct Nf4Scales {
  float offset = 0;
  std::vector<uint8_t> absmax_codes;  // of each block of the flattened tensor
  std::vector<float> nested;          // of each group

  [[nodiscard]] static int64_t blocks(int64_t values) { return (values + kNf4Block - 1) / kNf4Block; }
  [[nodiscard]] static int64_t groups(int64_t values) { return (values + kNf4Group - 1) / kNf4Group; }

  // Writes absmax, nested and first of row `to` of `out`, whose values begin at the tensor's value `first`.
  void write_row(int64_t first, const Nf4Matrix& out, int64_t to) const;
};

// Writes `to`, (cols + 1) / 2 bytes, with the codes of columns [col, col + cols) of a row whose codes are `row`.
void nf4_cut_codes(const uint8_t* row, int64_t col, int64_t cols, uint8_t* to);

}  // namespace pesc
