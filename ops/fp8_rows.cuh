// What kernels that write the codes of their rows share: see Fp8Rows in ops/fp8.h.
#pragma once

#include "ops/core/e4m3.cuh"
#include "ops/fp8.h"

namespace pesc::cuda {

// An operation's optional codes of [rows, cols].
inline void check_codes(const Fp8Rows& codes, int64_t rows, int64_t cols) {
  if (!codes.present()) return;
  PESC_CHECK(codes.codes.rows == rows && codes.codes.cols >= cols && codes.scales.rows == rows &&
                 codes.scales.cols == 1 && codes.scales.contiguous(),
             "codes ", codes.codes.rows, "x", codes.codes.cols, " of ", rows, "x", cols);
  PESC_CHECK(codes.column_scales.cols == 0 || codes.column_scales.cols == cols, codes.column_scales.cols,
             " column scales of ", cols);
}

}  // namespace pesc::cuda
