// RMSNorm of each head on the CPU. T tokens, N heads, D head_dim. With r = rstd, z = x r, for each head
//   forward    y = z w
//   backward   dx = r (g - z mean(g z)),  g = dy w;   dw += sum over tokens and heads of dy z
// A head's sums are taken in double. Tokens are cut over threads; dw by columns, so that each sum runs in the
// order of tokens and heads.
#include "ops/head_norm.h"

#include <cmath>

#include "ops/core/threads.h"
#include "ops/cuda_ops.h"

namespace pesc {
namespace {

void forward_head(const float* x, const float* w, float eps, int64_t n, float* y, float& rstd) {
  double square = 0;
#pragma omp simd reduction(+ : square)
  for (int64_t i = 0; i < n; ++i) square += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  const double mean = square / static_cast<double>(n);
  const float r = static_cast<float>(1.0 / std::sqrt(mean + static_cast<double>(eps)));
  rstd = r;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * r * w[i];
}

void backward_head(const float* dy, const float* x, const float* w, float r, int64_t n, float* dx) {
  double product = 0;
#pragma omp simd reduction(+ : product)
  for (int64_t i = 0; i < n; ++i) product += static_cast<double>(dy[i] * w[i]) * static_cast<double>(x[i]);
  const auto rate = static_cast<double>(r);
  const float c = static_cast<float>(product / static_cast<double>(n) * rate * rate * rate);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dx[i] = r * dy[i] * w[i] - c * x[i];
}

void weight_gradient(const HeadNormBackward& args, int64_t begin, int64_t end) {
  const int64_t dim = args.weight.cols;
  float* dw = args.dweight.f32();
  for (int64_t t = 0; t < args.x.rows; ++t) {
    for (int64_t head = 0; head < args.rstd.cols; ++head) {
      const float* x = args.x.f32() + t * args.x.ld + head * dim;
      const float* dy = args.dy.f32() + t * args.dy.ld + head * dim;
      const float r = args.rstd.f32()[t * args.rstd.ld + head];
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) dw[i] += dy[i] * (x[i] * r);
    }
  }
}

void check(const Tensor& x, const Tensor& weight, const Tensor& rstd, const Tensor& y) {
  PESC_CHECK(weight.rows == 1 && weight.cols > 0 && x.cols == rstd.cols * weight.cols, "x of ", x.cols,
             " columns for ", rstd.cols, " heads of ", weight.cols);
  PESC_CHECK(rstd.rows == x.rows, "rstd of ", rstd.rows, " for ", x.rows, " tokens");
  PESC_CHECK(y.rows == x.rows && y.cols == x.cols, "y ", y.rows, "x", y.cols, " for x ", x.rows, "x", x.cols);
  for (const Tensor& t : {x, weight, rstd, y}) PESC_CHECK(t.dtype == DType::kF32, dtype_name(t.dtype));
}

}  // namespace

void head_norm_forward(Stream& stream, const HeadNormForward& args) {
  if (stream.on_cuda()) return cuda_ops().head_norm_forward(stream, args);
  check(args.x, args.weight, args.rstd, args.y);
  const int64_t dim = args.weight.cols;
  parallel_for(stream, args.x.rows, row_grain(args.x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t head = 0; head < args.rstd.cols; ++head) {
        forward_head(args.x.f32() + t * args.x.ld + head * dim, args.weight.f32(), args.eps, dim,
                     args.y.f32() + t * args.y.ld + head * dim, args.rstd.f32()[t * args.rstd.ld + head]);
      }
    }
  });
}

void head_norm_backward(Stream& stream, const HeadNormBackward& args) {
  if (stream.on_cuda()) return cuda_ops().head_norm_backward(stream, args);
  check(args.x, args.weight, args.rstd, args.dx);
  check(args.x, args.weight, args.rstd, args.dy);
  const int64_t dim = args.weight.cols;
  if (args.dweight.present()) {  // before dx, which may take the place of dy
    PESC_CHECK(args.dweight.dtype == DType::kF32 && args.dweight.rows == 1 && args.dweight.cols == dim,
               "dweight of ", args.dweight.cols, " for heads of ", dim);
    parallel_for(stream, dim, row_grain(args.x.rows * args.rstd.cols),
                 [&](int64_t begin, int64_t end) { weight_gradient(args, begin, end); });
  }
  parallel_for(stream, args.x.rows, row_grain(args.x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t head = 0; head < args.rstd.cols; ++head) {
        backward_head(args.dy.f32() + t * args.dy.ld + head * dim, args.x.f32() + t * args.x.ld + head * dim,
                      args.weight.f32(), args.rstd.f32()[t * args.rstd.ld + head], dim,
                      args.dx.f32() + t * args.dx.ld + head * dim);
      }
    }
  });
}

}  // namespace pesc
