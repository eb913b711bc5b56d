// The way back through LoRA's first half on a GPU, for an x that stands in memory: on tiles
// (ops/core/lora_tiles.cuh) where they take the shape, else in plain products.
#include "ops/core/lora_tiles.cuh"
#include "ops/cuda_ops.h"

namespace pesc::cuda {
namespace {

// dx += mask(B)
struct DownTile {
  static constexpr int kInputs = 2;
  View<const bf16> x;
  View<bf16> dx;
  __device__ __forceinline__ const bf16* input(int i, int64_t row, int64_t column) const {
    return i == 0 ? x.row(row) + column : dx.row(row) + column;
  }
  __device__ __forceinline__ void finish(bool there, int64_t row, int64_t column,
                                         const Pack<bf16, 8> (&in)[kInputs], const float (&term)[8],
                                         float (&out)[8]) const {
    float d[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      out[j] = as_float(in[0].v[j]);
      d[j] = as_float(in[1].v[j]) + term[j];
    }
    if (there) store_floats<8>(dx.row(row) + column, d);
  }
};

}  // namespace

void lora_down_backward(Stream& stream, const LoraBranch& branch, const Tensor& x, const Tensor& dx,
                        Arena& scratch) {
  if (x.size() == 0 || !lora_tiles_fit(branch, {x, dx}))
    return lora_down_backward_by_products(stream, branch, x, dx, scratch);
  PESC_CHECK(x.rows == dx.rows && x.cols == dx.cols && x.rows == branch.dout.rows && x.cols == branch.a.cols,
             "x ", x.rows, "x", x.cols, ", dx ", dx.rows, "x", dx.cols, ", dout of ", branch.dout.rows,
             " tokens, a of ", branch.a.cols, " columns");
  lora_on_tiles(stream, branch, DownTile{view<const bf16>(x), view<bf16>(dx)});
}

}  // namespace pesc::cuda
