// Data movements and sums on the CPU. Letters: T rows, C columns, n rows of an index.
//
// Sums to F64 are taken over blocks of kBlock elements: eight running lanes inside a block, the lanes folded
// in order, then the blocks in order. Blocks are counted along the row-major elements of the view, so that
// the order is a function of the shape alone, never of the row stride or of the number of threads.
#include "ops/reduce.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "ops/core/bf16.h"
#include "ops/core/threads.h"
#include "ops/cuda_ops.h"

namespace pesc {
namespace {

constexpr int64_t kBlock = 4096;
constexpr int kLanes = 8;
constexpr int64_t kGrain = 16384;  // elements that make a piece worth a thread

void check_same_shape(const Tensor& a, const Tensor& b) {
  PESC_CHECK(a.rows == b.rows && a.cols == b.cols && a.dtype == b.dtype, a.rows, "x", a.cols, " ",
             dtype_name(a.dtype), " against ", b.rows, "x", b.cols, " ", dtype_name(b.dtype));
}

void check_indexed(const Tensor& many, const Tensor& index, const Tensor& table) {
  PESC_CHECK(
      index.rows == 1 && index.cols == many.rows && many.cols == table.cols && many.dtype == table.dtype,
      "index of ", index.cols, " for ", many.rows, "x", many.cols, " and ", table.rows, "x", table.cols);
  for (int64_t i = 0; i < index.cols; ++i) {
    const int64_t row = index.i32()[i];
    PESC_CHECK(0 <= row && row < table.rows, "index ", row, " of ", table.rows, " rows");
  }
}

const std::byte* row_bytes(const Tensor& t, int64_t r) {
  return static_cast<const std::byte*>(t.data) + r * t.ld * dtype_bytes(t.dtype);
}
std::byte* mutable_row_bytes(const Tensor& t, int64_t r) {
  return static_cast<std::byte*>(t.data) + r * t.ld * dtype_bytes(t.dtype);
}

void add_span(const float* x, float* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

// Calls span(row, column, n) over pieces of rows, one long row where `contiguous`.
template <class Span>
void for_spans(const Stream& stream, int64_t rows, int64_t cols, bool contiguous, Span span) {
  if (rows == 0 || cols == 0) return;
  if (contiguous) {
    parallel_for(stream, rows * cols, kGrain,
                 [&](int64_t begin, int64_t end) { span(0, begin, end - begin); });
    return;
  }
  parallel_for(stream, rows, row_grain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) span(r, 0, cols);
  });
}

// Calls columns(begin, end) over pieces of the columns of a [rows, cols] tensor, for sums down the rows.
template <class Columns>
void for_columns(const Stream& stream, int64_t rows, int64_t cols, Columns columns) {
  parallel_for(stream, cols, std::max<int64_t>(16, row_grain(rows)), columns);
}

// The sum of term(v) over n <= kBlock values.
template <class Term>
double block_sum(const float* values, int64_t n, Term term) {
  std::array<double, kLanes> lanes{};
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes)
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane)
      lanes[static_cast<size_t>(lane)] += term(static_cast<double>(values[i + lane]));
  for (int64_t i = whole; i < n; ++i)
    lanes[static_cast<size_t>(i - whole)] += term(static_cast<double>(values[i]));
  double total = 0;
  for (double lane : lanes) total += lane;
  return total;
}

// Elements [begin, begin + n) of x in row-major order, copied to `to`.
void copy_elements(const Tensor& x, int64_t begin, int64_t n, float* to) {
  int64_t row = begin / x.cols;
  for (int64_t col = begin % x.cols; n > 0; ++row, col = 0) {
    const int64_t take = std::min(n, x.cols - col);
    std::copy_n(x.f32() + row * x.ld + col, take, to);
    to += take;
    n -= take;
  }
}

// `Term` maps an element to what is summed.
template <class Term>
void sum_terms(const Stream& stream, const Tensor& x, const Tensor& out, Term term) {
  PESC_CHECK(out.rows == 1 && out.cols == 1);
  const int64_t size = x.size();
  std::vector<double> partial(static_cast<size_t>((size + kBlock - 1) / kBlock));
  const float* data = x.f32();
  parallel_for(
      stream, static_cast<int64_t>(partial.size()), kGrain / kBlock, [&](int64_t first, int64_t last) {
        std::array<float, kBlock> buffer;
        for (int64_t b = first; b < last; ++b) {
          const int64_t begin = b * kBlock;
          const int64_t n = std::min(kBlock, size - begin);
          if (!x.contiguous()) copy_elements(x, begin, n, buffer.data());
          partial[static_cast<size_t>(b)] = block_sum(x.contiguous() ? data + begin : buffer.data(), n, term);
        }
      });
  double total = 0;
  for (double block : partial) total += block;
  out.f64()[0] += total;
}

}  // namespace

void fill_zero(Stream& stream, const Tensor& x) {
  if (stream.on_cuda()) return cuda_ops().fill_zero(stream, x);
  const int64_t width = dtype_bytes(x.dtype);
  for_spans(stream, x.rows, x.cols, x.contiguous(), [&](int64_t row, int64_t col, int64_t n) {
    std::memset(mutable_row_bytes(x, row) + col * width, 0, static_cast<size_t>(n * width));
  });
}

void copy(Stream& stream, const Tensor& from, const Tensor& to) {
  if (stream.on_cuda()) return cuda_ops().copy(stream, from, to);
  check_same_shape(from, to);
  if (from.data == to.data && from.ld == to.ld) return;
  const int64_t width = dtype_bytes(from.dtype);
  const bool contiguous = from.contiguous() && to.contiguous();
  for_spans(stream, from.rows, from.cols, contiguous, [&](int64_t row, int64_t col, int64_t n) {
    std::memcpy(mutable_row_bytes(to, row) + col * width, row_bytes(from, row) + col * width,
                static_cast<size_t>(n * width));
  });
}

void cast(Stream& stream, const Tensor& from, const Tensor& to) {
  if (stream.on_cuda()) return cuda_ops().cast(stream, from, to);
  if (from.dtype == to.dtype) return copy(stream, from, to);
  PESC_CHECK(from.rows == to.rows && from.cols == to.cols, from.rows, "x", from.cols, " into ", to.rows, "x",
             to.cols);
  const bool narrow = from.dtype == DType::kF32 && to.dtype == DType::kBF16;
  PESC_CHECK(narrow || (from.dtype == DType::kBF16 && to.dtype == DType::kF32), dtype_name(from.dtype),
             " into ", dtype_name(to.dtype));
  for_spans(stream, from.rows, from.cols, false, [&](int64_t r, int64_t, int64_t n) {
    if (narrow) {
      const float* in = from.f32() + r * from.ld;
      auto* out = reinterpret_cast<uint16_t*>(mutable_row_bytes(to, r));
      for (int64_t i = 0; i < n; ++i) out[i] = f32_to_bf16(in[i]);
    } else {
      const auto* in = reinterpret_cast<const uint16_t*>(row_bytes(from, r));
      float* out = to.f32() + r * to.ld;
      for (int64_t i = 0; i < n; ++i) out[i] = bf16_to_f32(in[i]);
    }
  });
}

void add(Stream& stream, const Tensor& x, const Tensor& y) {
  if (stream.on_cuda()) return cuda_ops().add(stream, x, y);
  check_same_shape(x, y);
  const float* from = x.f32();
  float* to = y.f32();
  const bool contiguous = x.contiguous() && y.contiguous();
  for_spans(stream, x.rows, x.cols, contiguous, [&](int64_t row, int64_t col, int64_t n) {
    add_span(from + row * x.ld + col, to + row * y.ld + col, n);
  });
}

void add_bias(Stream& stream, const Tensor& bias, const Tensor& y) {
  if (stream.on_cuda()) return cuda_ops().add_bias(stream, bias, y);
  PESC_CHECK(bias.rows == 1 && bias.cols == y.cols, "bias of ", bias.cols, " for ", y.cols, " columns");
  const float* from = bias.f32();
  float* to = y.f32();
  for_spans(stream, y.rows, y.cols, false,
            [&](int64_t row, int64_t /*col*/, int64_t n) { add_span(from, to + row * y.ld, n); });
}

void bias_backward(Stream& stream, const Tensor& dy, const Tensor& dbias) {
  if (stream.on_cuda()) return cuda_ops().bias_backward(stream, dy, dbias);
  PESC_CHECK(dbias.rows == 1 && dbias.cols == dy.cols, "bias of ", dbias.cols, " for ", dy.cols, " columns");
  const float* from = dy.f32();
  float* to = dbias.f32();
  for_columns(stream, dy.rows, dy.cols, [&](int64_t begin, int64_t end) {
    for (int64_t r = 0; r < dy.rows; ++r) add_span(from + r * dy.ld + begin, to + begin, end - begin);
  });
}

void gather_rows(Stream& stream, const Tensor& in, const Tensor& index, const Tensor& out) {
  if (stream.on_cuda()) return cuda_ops().gather_rows(stream, in, index, out);
  check_indexed(out, index, in);
  const auto width = static_cast<size_t>(in.cols * dtype_bytes(in.dtype));
  const int32_t* rows = index.i32();
  parallel_for(stream, out.rows, row_grain(in.cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      std::memcpy(mutable_row_bytes(out, i), row_bytes(in, rows[i]), width);
  });
}

void scatter_add_rows(Stream& stream, const Tensor& in, const Tensor& index, const Tensor& out) {
  if (stream.on_cuda()) return cuda_ops().scatter_add_rows(stream, in, index, out);
  check_indexed(in, index, out);
  const int32_t* rows = index.i32();
  const float* from = in.f32();
  float* to = out.f32();
  for_columns(stream, in.rows, in.cols, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < in.rows; ++i)
      add_span(from + i * in.ld + begin, to + rows[i] * out.ld + begin, end - begin);
  });
}

void sum_squares(Stream& stream, const Tensor& x, const Tensor& out) {
  if (stream.on_cuda()) return cuda_ops().sum_squares(stream, x, out);
  sum_terms(stream, x, out, [](double v) { return v * v; });
}

void sum(Stream& stream, const Tensor& x, const Tensor& out) {
  if (stream.on_cuda()) return cuda_ops().sum(stream, x, out);
  sum_terms(stream, x, out, [](double v) { return v; });
}

}  // namespace pesc
