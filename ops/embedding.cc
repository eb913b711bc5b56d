// Token embedding on the CPU. The forward is cut over threads by tokens, the backward by columns, so that a
// row of the table is summed in token order. T tokens, V local rows, H hidden.
#include "ops/embedding.h"

#include <algorithm>

#include "ops/core/threads.h"
#include "ops/cuda_ops.h"

namespace pesc {
namespace {

void check(const Tensor& ids, const Tensor& table, const Tensor& rows) {
  PESC_CHECK(table.dtype == DType::kF32 && rows.dtype == DType::kF32 && ids.dtype == DType::kI32,
             dtype_name(table.dtype), ", ", dtype_name(rows.dtype), ", ", dtype_name(ids.dtype));
  PESC_CHECK(ids.rows == 1 && ids.cols == rows.rows && rows.cols == table.cols, "ids ", ids.rows, "x",
             ids.cols, ", rows ", rows.rows, "x", rows.cols, ", table ", table.rows, "x", table.cols);
}

}  // namespace

void embedding_forward(Stream& stream, const Tensor& ids, const Tensor& table, int64_t vocab_begin,
                       const Tensor& out) {
  if (stream.on_cuda()) return cuda_ops().embedding_forward(stream, ids, table, vocab_begin, out);
  check(ids, table, out);
  parallel_for(stream, out.rows, row_grain(out.cols), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t id = ids.i32()[t];
      const int64_t row = id - vocab_begin;
      float* to = out.f32() + t * out.ld;
      if (id >= 0 && 0 <= row && row < table.rows) {
        std::copy_n(table.f32() + row * table.ld, out.cols, to);
      } else {
        std::fill_n(to, out.cols, 0.0F);
      }
    }
  });
}

void embedding_backward(Stream& stream, const Tensor& ids, const Tensor& dout, int64_t vocab_begin,
                        const Tensor& dtable) {
  if (stream.on_cuda()) return cuda_ops().embedding_backward(stream, ids, dout, vocab_begin, dtable);
  check(ids, dtable, dout);
  parallel_for(stream, dout.cols, row_grain(dout.rows), [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < dout.rows; ++t) {
      const int64_t id = ids.i32()[t];
      const int64_t row = id - vocab_begin;
      if (id < 0 || row < 0 || row >= dtable.rows) continue;
      const float* from = dout.f32() + t * dout.ld;
      float* to = dtable.f32() + row * dtable.ld;
#pragma omp simd
      for (int64_t c = begin; c < end; ++c) to[c] += from[c];
    }
  });
}

}  // namespace pesc
