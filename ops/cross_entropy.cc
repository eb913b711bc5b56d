// Cross entropy over a slice of the vocabulary on the CPU. Rows are cut over threads. The sum of a row's
// exponentials is taken in float32 over kBlock columns and in double over blocks. N rows, V local columns.
#include "ops/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/core/threads.h"
#include "ops/core/vector_math.h"
#include "ops/cuda_ops.h"

namespace pesc {
namespace {

constexpr int64_t kBlock = 1024;

float row_max(const float* x, int64_t n) {
  float top = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : top)
  for (int64_t i = 0; i < n; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

double sum_of_exp(const float* x, int64_t n, float top) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, n);
    float part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = begin; i < end; ++i) part += fast_exp(x[i] - top);
    total += part;
  }
  return total;
}

// x = exp(x - top) * factor
void scaled_exp(float* x, int64_t n, float top, float factor) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] = fast_exp(x[i] - top) * factor;
}

void check_rows(const Tensor& logits, const Tensor& t, int64_t rows, DType dtype) {
  PESC_CHECK(logits.dtype == DType::kF32 && t.dtype == dtype && t.rows == rows && t.cols == logits.rows,
             t.rows, "x", t.cols, " ", dtype_name(t.dtype), " for ", logits.rows, "x", logits.cols, " ",
             dtype_name(logits.dtype));
}

// The target's column here, or -1.
int64_t local_target(const Tensor& logits, const Tensor& targets, int64_t vocab_begin, int64_t row) {
  const int64_t column = targets.i32()[row] - vocab_begin;
  return 0 <= column && column < logits.cols ? column : -1;
}

}  // namespace

void cross_entropy_max(Stream& stream, const Tensor& logits, const Tensor& max) {
  if (stream.on_cuda()) return cuda_ops().cross_entropy_max(stream, logits, max);
  check_rows(logits, max, 1, DType::kF32);
  parallel_for(stream, logits.rows, row_grain(logits.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) max.f32()[r] = row_max(logits.f32() + r * logits.ld, logits.cols);
  });
}

void cross_entropy_sums(Stream& stream, const Tensor& logits, const Tensor& targets, int64_t vocab_begin,
                        const Tensor& max, const Tensor& sums) {
  if (stream.on_cuda()) return cuda_ops().cross_entropy_sums(stream, logits, targets, vocab_begin, max, sums);
  check_rows(logits, max, 1, DType::kF32);
  check_rows(logits, targets, 1, DType::kI32);
  check_rows(logits, sums, 2, DType::kF32);
  parallel_for(stream, logits.rows, row_grain(logits.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* row = logits.f32() + r * logits.ld;
      const float top = max.f32()[r];
      const int64_t target = local_target(logits, targets, vocab_begin, r);
      sums.f32()[r] = static_cast<float>(sum_of_exp(row, logits.cols, top));
      sums.f32()[sums.ld + r] = target < 0 ? 0.0F : row[target] - top;
    }
  });
}

void cross_entropy_grad(Stream& stream, const CrossEntropyGrad& args) {
  if (stream.on_cuda()) return cuda_ops().cross_entropy_grad(stream, args);
  const auto& [logits, targets, vocab_begin, max, sums, scale, loss] = args;
  check_rows(logits, max, 1, DType::kF32);
  check_rows(logits, targets, 1, DType::kI32);
  check_rows(logits, sums, 2, DType::kF32);
  cross_entropy_loss(stream, sums, loss);
  parallel_for(stream, logits.rows, row_grain(logits.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* row = logits.f32() + r * logits.ld;
      scaled_exp(row, logits.cols, max.f32()[r], scale / sums.f32()[r]);
      const int64_t target = local_target(logits, targets, vocab_begin, r);
      if (target >= 0) row[target] -= scale;
    }
  });
}

void cross_entropy_loss(Stream& stream, const Tensor& sums, const Tensor& loss) {
  if (stream.on_cuda()) return cuda_ops().cross_entropy_loss(stream, sums, loss);
  PESC_CHECK(sums.dtype == DType::kF32 && sums.rows == 2 && loss.dtype == DType::kF32 && loss.rows == 1 &&
                 loss.cols == sums.cols,
             "sums ", sums.rows, "x", sums.cols, ", loss ", loss.rows, "x", loss.cols);
  for (int64_t r = 0; r < loss.cols; ++r) loss.f32()[r] = std::log(sums.f32()[r]) - sums.f32()[sums.ld + r];
}

}  // namespace pesc
