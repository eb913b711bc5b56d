// Token embedding on a GPU. T tokens, V local rows, H hidden; the table and the activations are F32 or BF16
// each, the table's gradient is F32.
#include "ops/core/row_sums.h"
#include "ops/core/vectors.cuh"
#include "ops/cuda_ops.h"
#include "ops/embedding.h"

namespace pesc::cuda {
namespace {

template <int N, class W, class T>
__global__ void forward_kernel(const int32_t* ids, View<const W> table, int64_t vocab_begin, View<T> out) {
  PESC_FOR_ROWS(t, out.rows) {
    const int64_t id = ids[t];
    const int64_t row = id - vocab_begin;
    const bool here = id >= 0 && row >= 0 && row < table.rows;
    PESC_FOR_COLUMNS(c, out.cols / N) {
      float values[N] = {};
      if (here) load_floats<N>(table.row(row) + c * N, values);
      store_floats<N>(out.row(t) + c * N, values);
    }
  }
}

void check(const Tensor& ids, const Tensor& table, const Tensor& rows) {
  PESC_CHECK(ids.dtype == DType::kI32 && ids.rows == 1 && ids.cols == rows.rows && rows.cols == table.cols,
             "ids ", ids.rows, "x", ids.cols, " ", dtype_name(ids.dtype), ", rows ", rows.rows, "x",
             rows.cols, ", table ", table.rows, "x", table.cols);
}

}  // namespace

void embedding_forward(Stream& stream, const Tensor& ids, const Tensor& table, int64_t vocab_begin,
                       const Tensor& out) {
  check(ids, table, out);
  if (out.size() == 0) return;
  with_element(table.dtype, [&](auto weight) {
    with_element(out.dtype, [&](auto element) {
      using W = decltype(weight);
      using T = decltype(element);
      with_pack<T>({table, out}, [&](auto width) {
        constexpr int kWidth = decltype(width)::value;
        const RowGrid g(out.rows, out.cols / kWidth);
        forward_kernel<kWidth, W, T><<<g.grid, g.block, 0, stream_of(stream)>>>(
            ids.i32(), view<const W>(table), vocab_begin, view<T>(out));
        PESC_LAUNCHED("embedding_forward");
      });
    });
  });
}

void embedding_backward(Stream& stream, const Tensor& ids, const Tensor& dout, int64_t vocab_begin,
                        const Tensor& dtable) {
  check(ids, dtable, dout);
  PESC_CHECK(dtable.dtype == DType::kF32, "dtable is ", dtype_name(dtable.dtype));
  add_indexed_rows(stream, dout, ids, vocab_begin, Outside::kSkip, dtable);
}

}  // namespace pesc::cuda
