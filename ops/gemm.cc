// General products on the CPU: OpenBLAS sgemm, which runs single-threaded; the larger of m and n is cut into
// one piece per thread of the stream, at multiples of kCut so that its register tiles stay whole.
#include "ops/gemm.h"

#include <cblas.h>

#include <algorithm>

#include "ops/core/threads.h"
#include "ops/cuda_ops.h"
#include "ops/reduce.h"

namespace pesc {
namespace {

constexpr int64_t kCut = 32;
// A product of fewer multiplications than this stays on one thread.
constexpr int64_t kThreadWork = int64_t{1} << 18;

void single_threaded_blas() {
  static const bool done = [] {
    openblas_set_num_threads(1);
    return true;
  }();
  (void)done;
}

void check(const Tensor& t, const char* name) {
  PESC_CHECK(t.dtype == DType::kF32, "gemm ", name, " is ", dtype_name(t.dtype));
  PESC_CHECK(t.rows >= 0 && t.cols >= 0 && (t.ld >= t.cols || t.rows <= 1), "gemm ", name, " ", t.rows, "x",
             t.cols, " with rows ", t.ld, " apart");
}

CBLAS_TRANSPOSE cblas(Transpose t) {
  return t == Transpose::kYes ? CblasTrans : CblasNoTrans;
}

// Leading dimension as BLAS wants it: a single row may come with any.
blasint leading(const Tensor& t) {
  return static_cast<blasint>(std::max<int64_t>({t.ld, t.cols, 1}));
}

void scale_rows(const Tensor& c, float beta) {
  for (int64_t r = 0; r < c.rows; ++r) {
    float* row = c.f32() + r * c.ld;
    for (int64_t j = 0; j < c.cols; ++j) row[j] = beta == 0.0F ? 0.0F : row[j] * beta;
  }
}

// The whole product on the calling thread.
void gemm_piece(const Gemm& g) {
  const int64_t k = g.trans_a == Transpose::kYes ? g.a.rows : g.a.cols;
  cblas_sgemm(CblasRowMajor, cblas(g.trans_a), cblas(g.trans_b), static_cast<blasint>(g.c.rows),
              static_cast<blasint>(g.c.cols), static_cast<blasint>(k), g.alpha, g.a.f32(), leading(g.a),
              g.b.f32(), leading(g.b), g.beta, g.c.f32(), leading(g.c));
}

Tensor op_rows(const Tensor& t, Transpose trans, int64_t begin, int64_t end) {
  return trans == Transpose::kYes ? t.col_range(begin, end) : t.row_range(begin, end);
}
Tensor op_cols(const Tensor& t, Transpose trans, int64_t begin, int64_t end) {
  return trans == Transpose::kYes ? t.row_range(begin, end) : t.col_range(begin, end);
}

}  // namespace

void gemm(Stream& stream, const Gemm& args) {
  if (stream.on_cuda()) return cuda_ops().gemm(stream, args);
  check(args.a, "a");
  check(args.b, "b");
  check(args.c, "c");
  const bool ta = args.trans_a == Transpose::kYes;
  const bool tb = args.trans_b == Transpose::kYes;
  const int64_t m = args.c.rows;
  const int64_t n = args.c.cols;
  const int64_t k = ta ? args.a.rows : args.a.cols;
  PESC_CHECK((ta ? args.a.cols : args.a.rows) == m && (tb ? args.b.rows : args.b.cols) == n &&
                 (tb ? args.b.cols : args.b.rows) == k,
             "gemm of ", args.a.rows, "x", args.a.cols, ta ? "^T" : "", " and ", args.b.rows, "x",
             args.b.cols, tb ? "^T" : "", " into ", m, "x", n);
  if (m == 0 || n == 0) return;
  if (args.from.present() && args.beta != 0.0F) copy(stream, args.from, args.c);
  if (k == 0) {
    scale_rows(args.c, args.beta);
    return;
  }
  single_threaded_blas();
  const int64_t larger = std::max(m, n);
  const int64_t cuts = (larger + kCut - 1) / kCut;
  // The grain in cuts that makes a piece worth a thread.
  const int64_t grain = std::max<int64_t>(1, kThreadWork / std::max<int64_t>(1, m * n / larger * k * kCut));
  parallel_for(stream, cuts, grain, [&](int64_t first, int64_t last) {
    const int64_t begin = first * kCut;
    const int64_t end = std::min(last * kCut, larger);
    Gemm piece = args;
    if (m >= n) {
      piece.a = op_rows(args.a, args.trans_a, begin, end);
      piece.c = args.c.row_range(begin, end);
    } else {
      piece.b = op_cols(args.b, args.trans_b, begin, end);
      piece.c = args.c.col_range(begin, end);
    }
    gemm_piece(piece);
  });
}

void linear_forward(Stream& stream, const Tensor& x, const Tensor& w, const Tensor& y, float alpha,
                    float beta) {
  gemm(stream, {.a = x, .b = w, .trans_b = Transpose::kYes, .c = y, .alpha = alpha, .beta = beta});
}

void linear_backward_input(Stream& stream, const Tensor& dy, const Tensor& w, const Tensor& dx, float alpha,
                           float beta) {
  gemm(stream, {.a = dy, .b = w, .c = dx, .alpha = alpha, .beta = beta});
}

void linear_backward_weight(Stream& stream, const Tensor& dy, const Tensor& x, const Tensor& dw,
                            float alpha) {
  gemm(stream, {.a = dy, .trans_a = Transpose::kYes, .b = x, .c = dw, .alpha = alpha, .beta = 1.0F});
}

std::string gemm_choices(const Stream& stream) {
  return stream.on_cuda() ? cuda_ops().gemm_choices(stream) : std::string();
}

void set_gemm_choices(Stream& stream, const std::string& text) {
  if (stream.on_cuda()) cuda_ops().set_gemm_choices(stream, text);
}

std::string gemm_library() {
  return openblas_get_config();
}

}  // namespace pesc
