// GEMM on the CPU by single-threaded OpenBLAS sgemm. The larger of m and n is split into one piece per thread
// of the stream, at multiples of kCut so that OpenBLAS's register tiles stay whole.
//
// sgemm first packs both matrices, and clears C where beta is 0. Where one matrix is small (tokens times a
// small weight) that is a third of the time. On processors with AVX-512, OpenBLAS (0.3.18 or newer) has
// kernels that do neither, for up to kUnpacked multiplications and a right matrix that is not transposed. So
// a GEMM of many rows with a small right matrix (transposed first where needed) is split into pieces of that
// size, and a GEMM that sums over many tokens into a small C into runs of kSums terms. Splitting rows and
// columns does not change the sum of an element.
#include "ops/gemm.h"

#include <cblas.h>
#include <strings.h>

#include <algorithm>
#include <vector>

#include "ops/core/threads.h"
#include "ops/cuda_ops.h"
#include "ops/reduce.h"

namespace pesc {
namespace {

constexpr int64_t kCut = 32;
// A GEMM of fewer multiplications than this stays on one thread.
constexpr int64_t kThreadWork = int64_t{1} << 18;

constexpr int64_t kUnpacked = 1000000;  // the limit of OpenBLAS's sgemm_small_kernel_permit
constexpr int64_t kUnpackedCols = 128;  // columns of a piece; measured: more or fewer are slower
constexpr int64_t kUnpackedB = 100000;  // elements of the small matrix; larger ones are as fast when packed
constexpr int64_t kUnpackedRows = 64;   // fewer do not pay for transposing the small matrix
constexpr int64_t kNarrow = 64;         // columns up to which these kernels are faster with a beta too
constexpr int64_t kNarrowSums = 4096;   // elements of C = A^T B up to which its sums are cut
constexpr int64_t kSums = 240;          // terms of a run: kUnpacked / kNarrowSums, a multiple of eight

bool has_unpacked_kernels() {
  static const bool has = [] {
    const char* const core = openblas_get_corename();
    const auto is = [core](const char* name) { return strcasecmp(core, name) == 0; };
    return is("SkylakeX") || is("Cooperlake") || is("SapphireRapids");
  }();
  return has;
}

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

// The leading dimension for BLAS: a single row may have any stride, which BLAS would refuse.
blasint leading(const Tensor& t) {
  return static_cast<blasint>(std::max<int64_t>({t.ld, t.cols, 1}));
}

void scale_rows(const Tensor& c, float beta) {
  for (int64_t r = 0; r < c.rows; ++r) {
    float* row = c.f32() + r * c.ld;
    for (int64_t j = 0; j < c.cols; ++j) row[j] = beta == 0.0F ? 0.0F : row[j] * beta;
  }
}

void sgemm(const Gemm& g) {
  const int64_t k = g.trans_a == Transpose::kYes ? g.a.rows : g.a.cols;
  cblas_sgemm(CblasRowMajor, cblas(g.trans_a), cblas(g.trans_b), static_cast<blasint>(g.c.rows),
              static_cast<blasint>(g.c.cols), static_cast<blasint>(k), g.alpha, g.a.f32(), leading(g.a),
              g.b.f32(), leading(g.b), g.beta, g.c.f32(), leading(g.c));
}

// b^T in thread-local memory, valid until this thread's next call.
Tensor transposed(const Tensor& b) {
  thread_local std::vector<float> memory;
  memory.resize(static_cast<size_t>(kUnpackedB));
  const Tensor out{memory.data(), DType::kF32, b.cols, b.rows, b.rows};
  cblas_somatcopy(CblasRowMajor, CblasTrans, static_cast<blasint>(b.rows), static_cast<blasint>(b.cols), 1.0F,
                  b.f32(), leading(b), out.f32(), leading(out));
  return out;
}

// How a GEMM is split into pieces that OpenBLAS does not pack.
enum class Unpacked { kNo, kRows, kSums };

Unpacked unpacked(const Gemm& g, int64_t k) {
  if (!has_unpacked_kernels()) return Unpacked::kNo;
  if (g.trans_a == Transpose::kYes) {
    const bool sums = g.trans_b == Transpose::kNo && g.c.size() <= kNarrowSums && k > kSums;
    return sums ? Unpacked::kSums : Unpacked::kNo;
  }
  const bool rows =
      g.c.rows >= kUnpackedRows && g.c.cols * k <= kUnpackedB && (g.beta == 0.0F || g.c.cols <= kNarrow);
  return rows ? Unpacked::kRows : Unpacked::kNo;
}

// c = a b (+ c); neither matrix is transposed.
void sgemm_in_rows(const Gemm& g) {
  const int64_t cols = std::min(g.c.cols, kUnpackedCols);
  int64_t rows = kUnpacked / (cols * g.b.rows);
  if (rows > 16) rows -= rows % 8;
  for (int64_t r = 0; r < g.c.rows; r += rows) {
    const int64_t r_end = std::min(r + rows, g.c.rows);
    for (int64_t c = 0; c < g.c.cols; c += cols) {
      const int64_t c_end = std::min(c + cols, g.c.cols);
      Gemm piece = g;
      piece.a = g.a.row_range(r, r_end);
      piece.b = g.b.col_range(c, c_end);
      piece.c = g.c.row_range(r, r_end).col_range(c, c_end);
      sgemm(piece);
    }
  }
}

// c = a^T b (+ c).
void sgemm_in_sums(const Gemm& g) {
  Gemm piece = g;
  for (int64_t at = 0; at < g.a.rows; at += kSums, piece.beta = 1.0F) {
    const int64_t end = std::min(at + kSums, g.a.rows);
    piece.a = g.a.row_range(at, end);
    piece.b = g.b.row_range(at, end);
    sgemm(piece);
  }
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
  // The least number of cuts per thread.
  const int64_t grain = std::max<int64_t>(1, kThreadWork / std::max<int64_t>(1, m * n / larger * k * kCut));
  const Unpacked way = unpacked(args, k);
  Gemm whole = args;
  if (way == Unpacked::kRows && tb) {
    whole.b = transposed(args.b);
    whole.trans_b = Transpose::kNo;
  }
  parallel_for(stream, cuts, grain, [&](int64_t first, int64_t last) {
    const int64_t begin = first * kCut;
    const int64_t end = std::min(last * kCut, larger);
    Gemm piece = whole;
    if (m >= n) {
      piece.a = op_rows(whole.a, whole.trans_a, begin, end);
      piece.c = whole.c.row_range(begin, end);
    } else {
      piece.b = op_cols(whole.b, whole.trans_b, begin, end);
      piece.c = whole.c.col_range(begin, end);
    }
    switch (way) {
      case Unpacked::kNo:
        return sgemm(piece);
      case Unpacked::kRows:
        return sgemm_in_rows(piece);
      case Unpacked::kSums:
        return sgemm_in_sums(piece);
    }
  });
}

void set_gemm_trials(Stream& stream, Arena* scratch) {
  if (stream.on_cuda()) cuda_ops().set_gemm_trials(stream, scratch);
}

int64_t gemm_trial_bytes(const Device& device, int64_t rows, int64_t ld, DType type) {
  if (device.kind != DeviceKind::kCuda || device.kernel_choice != KernelChoice::kAutotuned) return 0;
  Arena arena = Arena::planning("gemm trials");
  (void)arena.allocate(rows, ld, type);
  return arena.peak();
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
