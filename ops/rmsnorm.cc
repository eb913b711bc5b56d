// RMSNorm on the CPU. T tokens, H hidden. With r = rstd, z = x r (the normalised row):
//   forward    y = z w
//   backward   dx += r (g - z mean(g z)),  g = dy w;   dw += sum over tokens of dy z
// A row's sums are taken in float32 over kBlock columns and in double over blocks. Rows are cut over threads;
// dw by columns, so that each sum runs in token order.
#include "ops/rmsnorm.h"

#include <algorithm>
#include <cmath>

#include "ops/core/threads.h"
#include "ops/cuda_ops.h"
#include "ops/dropout.h"

namespace pesc {
namespace {

constexpr int64_t kBlock = 1024;

// y = (x r) w, the one place where y is made: rmsnorm_apply must repeat it bitwise.
void apply_row(const float* x, const float* w, float r, int64_t n, float* y) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * r * w[i];
}

void add_row(const float* x, const float* residual, int64_t n, float* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] + residual[i];
}

double sum_of_squares(const float* x, int64_t n) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, n);
    float part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = begin; i < end; ++i) part += x[i] * x[i];
    total += part;
  }
  return total;
}

// sum of dy w x
double sum_of_products(const float* dy, const float* w, const float* x, int64_t n) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, n);
    float part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = begin; i < end; ++i) part += dy[i] * w[i] * x[i];
    total += part;
  }
  return total;
}

void backward_row(const RmsNormBackward& args, int64_t t) {
  const int64_t n = args.x.cols;
  const float* x = args.x.f32() + t * args.x.ld;
  const float* dy = args.dy.f32() + t * args.dy.ld;
  const float* w = args.weight.f32();
  float* dx = args.dx.f32() + t * args.dx.ld;
  const float r = args.rstd.f32()[t];
  const double mean = sum_of_products(dy, w, x, n) * r / static_cast<double>(n);
  const float c = static_cast<float>(mean * r * r);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dx[i] += r * dy[i] * w[i] - c * x[i];
}

void weight_gradient(const RmsNormBackward& args, int64_t begin, int64_t end) {
  float* dw = args.dweight.f32();
  for (int64_t t = 0; t < args.x.rows; ++t) {
    const float* x = args.x.f32() + t * args.x.ld;
    const float* dy = args.dy.f32() + t * args.dy.ld;
    const float r = args.rstd.f32()[t];
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) dw[i] += dy[i] * (x[i] * r);
  }
}

void check(const Tensor& x, const Tensor& weight, const Tensor& rstd, const Tensor& y) {
  PESC_CHECK(weight.rows == 1 && weight.cols == x.cols, "weight of ", weight.cols, " for ", x.cols,
             " columns");
  PESC_CHECK(rstd.rows == 1 && rstd.cols == x.rows, "rstd of ", rstd.cols, " for ", x.rows, " tokens");
  PESC_CHECK(y.rows == x.rows && y.cols == x.cols, "y ", y.rows, "x", y.cols, " for x ", x.rows, "x", x.cols);
  for (const Tensor& t : {x, weight, rstd, y}) PESC_CHECK(t.dtype == DType::kF32, dtype_name(t.dtype));
}

}  // namespace

void rmsnorm_forward(Stream& stream, const RmsNormForward& args) {
  if (stream.on_cuda()) return cuda_ops().rmsnorm_forward(stream, args);
  if (!args.y.present() && args.dropped.y.present()) {  // made where the copy is going to stand
    RmsNormForward both = args;
    both.y = args.dropped.y;
    both.dropped = {};
    rmsnorm_forward(stream, both);
    return dropout(stream, args.dropped.mask, args.dropped.y, args.dropped.y);
  }
  check(args.x, args.weight, args.rstd, args.y);
  const int64_t n = args.x.cols;
  const bool fused = args.residual.present();
  if (fused)
    for (const Tensor& t : {args.residual, args.x_out})
      PESC_CHECK(t.dtype == DType::kF32 && t.rows == args.x.rows && t.cols == n, "residual ", t.rows, "x",
                 t.cols, " for ", args.x.rows, "x", n);
  parallel_for(stream, args.x.rows, row_grain(n), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* x = args.x.f32() + t * args.x.ld;
      if (fused) {
        float* x_out = args.x_out.f32() + t * args.x_out.ld;
        add_row(x, args.residual.f32() + t * args.residual.ld, n, x_out);
        x = x_out;
      }
      const double mean = sum_of_squares(x, n) / static_cast<double>(n);
      const float r = static_cast<float>(1.0 / std::sqrt(mean + static_cast<double>(args.eps)));
      args.rstd.f32()[t] = r;
      apply_row(x, args.weight.f32(), r, n, args.y.f32() + t * args.y.ld);
    }
  });
  if (args.codes.present()) fp8_quantize_rows(stream, args.y, args.codes);
  if (args.dropped.y.present()) dropout(stream, args.dropped.mask, args.y, args.dropped.y);
}

void rmsnorm_apply(Stream& stream, const Tensor& x, const Tensor& weight, const Tensor& rstd, const Tensor& y,
                   const DroppedCopy& dropped) {
  if (stream.on_cuda()) return cuda_ops().rmsnorm_apply(stream, x, weight, rstd, y, dropped);
  if (y.cols == 0) {  // the copy alone: made where it stands
    rmsnorm_apply(stream, x, weight, rstd, dropped.y);
    return dropout(stream, dropped.mask, dropped.y, dropped.y);
  }
  check(x, weight, rstd, y);
  parallel_for(stream, x.rows, row_grain(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      apply_row(x.f32() + t * x.ld, weight.f32(), rstd.f32()[t], x.cols, y.f32() + t * y.ld);
  });
  if (dropped.y.present()) dropout(stream, dropped.mask, y, dropped.y);
}

void rmsnorm_backward(Stream& stream, const RmsNormBackward& args) {
  if (stream.on_cuda()) return cuda_ops().rmsnorm_backward(stream, args);
  check(args.x, args.weight, args.rstd, args.dx);
  PESC_CHECK(args.dy.dtype == DType::kF32 && args.dy.rows == args.x.rows && args.dy.cols == args.x.cols,
             "dy ", args.dy.rows, "x", args.dy.cols, " for x ", args.x.rows, "x", args.x.cols);
  const LowRankTerm& low_rank = args.low_rank;
  PESC_CHECK(!args.dweight.present() || (!args.dropped.x.present() && !low_rank.present()),
             "a trainable norm with a dropped or a low-rank term");
  if (args.dropped.x.present()) dropout_add(stream, args.dropped.mask, args.dropped.x, args.dy);
  if (low_rank.present()) add_low_rank_term(stream, low_rank, args.dy.row_range(0, low_rank.left.rows));
  parallel_for(stream, args.x.rows, row_grain(args.x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) backward_row(args, t);
  });
  if (!args.dweight.present()) return;
  PESC_CHECK(args.dweight.dtype == DType::kF32 && args.dweight.rows == 1 && args.dweight.cols == args.x.cols,
             "dweight of ", args.dweight.cols, " for ", args.x.cols, " columns");
  parallel_for(stream, args.x.cols, row_grain(args.x.rows),
               [&](int64_t begin, int64_t end) { weight_gradient(args, begin, end); });
}

}  // namespace pesc
