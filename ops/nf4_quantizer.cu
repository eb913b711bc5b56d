// NF4 on its way from values on a GPU: see ops/nf4_quantizer.h. Each operation is rounded by itself, so that the
// bytes are those of the CPU.
#include "ops/core/vectors.cuh"
#include "ops/cuda_ops.h"
#include "ops/nf4_quantizer.h"

namespace pesc::cuda {
namespace {

constexpr int kBlockOfValues = static_cast<int>(kNf4Block);

// A warp raises the absmax of one block of the tensor. As bits, magnitudes are in the order of their values,
// with infinity and then NaN behind all others.
__global__ void absmax_kernel(const float* values, int64_t first, int64_t count, float* absmax) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t block0 = first / kBlockOfValues;
  const int64_t blocks = (first + count + kBlockOfValues - 1) / kBlockOfValues - block0;
  for (int64_t b = first_index() / kWarp; b < blocks; b += index_step() / kWarp) {
    unsigned largest = 0;
#pragma unroll
    for (int i = 0; i < kBlockOfValues; i += kWarp) {
      const int64_t at = (block0 + b) * kBlockOfValues + i + lane - first;
      if (at >= 0 && at < count) largest = max(largest, __float_as_uint(values[at]) & 0x7FFFFFFFU);
    }
    largest = __reduce_max_sync(0xffffffffU, largest);
    if (lane == 0) absmax[block0 + b] = __uint_as_float(max(largest, __float_as_uint(absmax[block0 + b])));
  }
}

struct Borders {
  float v[15];
};

__device__ __forceinline__ unsigned code_of(const Borders& borders, float value, float largest) {
  const float inverse = largest > 0.0F ? __fdiv_rn(1.0F, largest) : 0.0F;
  const float normal = fminf(fmaxf(__fmul_rn(value, inverse), -1.0F), 1.0F);
  unsigned code = 0;
#pragma unroll
  for (int i = 0; i < 15; ++i) code += normal > borders.v[i] ? 1U : 0U;
  return code;
}

struct Source {
  const float* values;  // of column `col` of the first row
  int64_t first;        // index of that value in the tensor
  int64_t tensor_cols;  // columns of `values` and of the tensor
  int64_t cols;         // that are quantised
};

// A thread makes a byte: two codes. `codes` [rows, (cols + 1) / 2].
__global__ void quantize_kernel(Source from, const __grid_constant__ Borders borders, const float* absmax,
                                int64_t rows, int64_t bytes, int64_t codes_ld, uint8_t* codes) {
  PESC_FOR_ROWS(r, rows) {
    const float* row = from.values + r * from.tensor_cols;
    const int64_t first = from.first + r * from.tensor_cols;
    PESC_FOR_COLUMNS(byte, bytes) {
      const int64_t c = 2 * byte;
      unsigned out = code_of(borders, row[c], absmax[(first + c) / kBlockOfValues]) << 4;
      if (c + 1 < from.cols) out |= code_of(borders, row[c + 1], absmax[(first + c + 1) / kBlockOfValues]);
      codes[r * codes_ld + byte] = static_cast<uint8_t>(out);
    }
  }
}

}  // namespace

void nf4_absmax(Stream& stream, const Nf4Rows& rows, const Tensor& absmax) {
  const int64_t count = rows.values.size();
  if (count == 0) return;
  const int64_t blocks = count / kNf4Block + 2;
  absmax_kernel<<<blocks_for(blocks * kWarp), kThreads, 0, stream_of(stream)>>>(
      pointer<const float>(rows.values), rows.row * rows.values.cols, count, pointer<float>(absmax));
  PESC_LAUNCHED("nf4_absmax");
}

void nf4_quantize(Stream& stream, const Nf4Rows& rows, int64_t col, const Tensor& absmax,
                  const Nf4Matrix& to) {
  if (to.codes.size() == 0) return;
  PESC_CHECK(to.codes.dtype == DType::kU8, dtype_name(to.codes.dtype), " codes");
  const int64_t cols = rows.values.cols;
  const Source from{pointer<const float>(rows.values) + col, rows.row * cols + col, cols, to.cols};
  Borders borders;
  std::copy(nf4_borders().begin(), nf4_borders().end(), borders.v);
  const RowGrid g(to.codes.rows, to.codes.cols);
  quantize_kernel<<<g.grid, g.block, 0, stream_of(stream)>>>(from, borders, pointer<const float>(absmax),
                                                             to.codes.rows, to.codes.cols, to.codes.ld,
                                                             static_cast<uint8_t*>(to.codes.data));
  PESC_LAUNCHED("nf4_quantize");
}

}  // namespace pesc::cuda
