// GEMM on the GPU by cuBLASLt. cuBLASLt is column-major, where a row-major matrix is its transpose, so this
// file asks for C^T = op(B)^T op(A)^T. float32 GEMMs are IEEE float32 (no TF32); bf16 GEMMs accumulate in
// float32 and round once, to float32 or bf16.
//
// The kernel of a shape is chosen once: cuBLASLt's first, or, for large bf16 GEMMs of a stream with
// KernelChoice::kAutotuned, the fastest of its first eight. Split-K is allowed only through the workspace
// (with a separate reduction), so that the order of every sum is a function of the shape and the kernel.
// gemm_choices() writes the choices down; a later run that is given them takes the same kernels.
#include <array>
#include <bit>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <sstream>

#include "ops/core/arena.h"
#include "ops/core/launch.cuh"
#include "ops/cuda_ops.h"
#include "ops/gemm.h"
#include "ops/gemm_cache.h"

namespace pesc::cuda {
namespace {

using gemm_cache::Key;
using gemm_cache::Layouts;
using gemm_cache::Matmul;

void check_operand(const Tensor& t, const char* name) {
  PESC_CHECK(t.dtype == DType::kF32 || t.dtype == DType::kBF16, "gemm ", name, " is ", dtype_name(t.dtype));
  PESC_CHECK(t.rows >= 0 && t.cols >= 0 && (t.ld >= t.cols || t.rows <= 1), "gemm ", name, " ", t.rows, "x",
             t.cols, " with rows ", t.ld, " apart");
}

cudaDataType_t data_type(DType t) {
  return t == DType::kBF16 ? CUDA_R_16BF : CUDA_R_32F;
}

// A single row may come with any stride.
int64_t leading(const Tensor& t) {
  return std::max<int64_t>({t.rows > 1 ? t.ld : t.cols, t.cols, 1});
}

int64_t alignment(const Tensor& t) {
  const auto address = reinterpret_cast<uintptr_t>(t.data);
  int64_t bytes = 256;
  while (address % static_cast<uintptr_t>(bytes) != 0) bytes /= 2;
  return bytes;
}

// D: what beta multiplies.
const Tensor& before(const Gemm& g) {
  return g.from.present() && g.beta != 0.0F ? g.from : g.c;
}

// The key of a GEMM. A varying extent counts as the end of its bucket (1, 2, 4, ..., 1024, 2048, 3072, ...),
// and pointers that move with it count with the least alignment that they share.
constexpr int64_t kRange = 1024;
constexpr int64_t kLeastAlignment = 16;
int64_t range_end(int64_t n) {
  return n < kRange ? static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(n)))
                    : (n + kRange - 1) / kRange * kRange;
}

// Whether g's number of rows lies inside a bucket and may count as its end, which needs no longer row stride.
bool in_range(const Gemm& g, int64_t k) {
  if (g.trans_a == Transpose::kYes && g.trans_b == Transpose::kYes) return false;
  const int64_t rows = g.trans_a == Transpose::kYes ? k : g.c.rows;
  return g.extent == Extent::kVaries || rows != range_end(rows);
}

Key key_of(const Gemm& g, int64_t k, bool varies) {
  const auto align = [varies](const Tensor& t) {
    return varies ? std::min(alignment(t), kLeastAlignment) : alignment(t);
  };
  const auto extent = [varies](int64_t n) { return varies ? range_end(n) : n; };
  const bool ta = g.trans_a == Transpose::kYes;
  return {ta ? g.c.rows : extent(g.c.rows),
          g.c.cols,
          ta ? extent(k) : k,
          leading(g.a),
          leading(g.b),
          leading(g.c),
          leading(before(g)),
          align(g.a),
          align(g.b),
          align(g.c),
          align(before(g)),
          (ta ? 1 : 0) | (g.trans_b == Transpose::kYes ? 2 : 0) | (g.a.dtype == DType::kBF16 ? 4 : 0) |
              (g.c.dtype == DType::kBF16 ? 8 : 0) | (varies ? 16 : 0)};
}

void set_layout(cublasLtMatrixLayout_t& layout, DType dtype, int64_t rows, int64_t cols, int64_t ld) {
  PESC_CUDA(cublasLtMatrixLayoutCreate(&layout, data_type(dtype), static_cast<uint64_t>(cols),
                                       static_cast<uint64_t>(rows), ld));
}

// The matrix layouts for a given size: the GEMM's own, or that of its key.
void set_layouts(Layouts& layouts, const Gemm& g, const Key& key, int64_t m, int64_t k) {
  const bool ta = g.trans_a == Transpose::kYes;
  set_layout(layouts.a, g.a.dtype, ta ? k : m, ta ? m : k, key.lda);
  const bool tb = g.trans_b == Transpose::kYes;
  set_layout(layouts.b, g.b.dtype, tb ? key.n : k, tb ? k : key.n, key.ldb);
  set_layout(layouts.from, g.c.dtype, m, key.n, key.ld_from);
  set_layout(layouts.c, g.c.dtype, m, key.n, key.ldc);
}

int64_t depth(const Gemm& g) {
  return g.trans_a == Transpose::kYes ? g.a.rows : g.a.cols;
}

cublasStatus_t multiply(CudaStream& cuda_stream, const Gemm& g, const Matmul& matmul, const Layouts& layouts,
                        const cublasLtMatmulAlgo_t& algo, void* into) {
  return cublasLtMatmul(cuda_stream.blas, matmul.desc, &g.alpha, g.b.data, layouts.b, g.a.data, layouts.a,
                        &g.beta, before(g).data, layouts.from, into, layouts.c, &algo, cuda_stream.workspace,
                        CudaStream::kWorkspaceBytes, cuda_stream.stream);
}

struct Preference {
  cublasLtMatmulPreference_t it = nullptr;
  Preference() { PESC_CUDA(cublasLtMatmulPreferenceCreate(&it)); }
  ~Preference() { (void)cublasLtMatmulPreferenceDestroy(it); }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;
  template <class T>
  void set(cublasLtMatmulPreferenceAttributes_t attribute, T value) {
    PESC_CUDA(cublasLtMatmulPreferenceSetAttribute(it, attribute, &value, sizeof(value)));
  }
};

constexpr int kCandidates = 8;
constexpr int64_t kTimedWork = int64_t{1} << 30;  // multiplications; smaller GEMMs are bound by their launch
constexpr int kRounds = 2;                        // timed rounds, after one that loads the kernels

struct Events {
  cudaEvent_t begin = nullptr, end = nullptr;
  Events() {
    PESC_CUDA(cudaEventCreate(&begin));
    PESC_CUDA(cudaEventCreate(&end));
  }
  ~Events() {
    (void)cudaEventDestroy(begin);
    (void)cudaEventDestroy(end);
  }
  Events(const Events&) = delete;
  Events& operator=(const Events&) = delete;
};

// Returns the index of the fastest candidate; of candidates within 1 % the first in cuBLASLt's order. With
// beta != 0 the trials write to the stream's trial arena; without room there it returns 0.
int fastest(CudaStream& cuda_stream, const Gemm& g, const Key& key, const Matmul& matmul,
            std::span<const cublasLtMatmulHeuristicResult_t> candidates) {
  std::optional<Arena::Scope> scope;
  void* into = g.c.data;
  if (g.beta != 0.0F && before(g).data == g.c.data) {
    const int64_t bytes = g.c.rows * leading(g.c) * dtype_bytes(g.c.dtype);
    if (cuda_stream.trials == nullptr || cuda_stream.trials->capacity() - cuda_stream.trials->used() < bytes)
      return 0;
    scope.emplace(*cuda_stream.trials);
    into = cuda_stream.trials->allocate(1, bytes, DType::kU8).data;
  }
  Layouts layouts;
  set_layouts(layouts, g, key, g.c.rows, depth(g));
  // This wait has the watcher's time limit; the waits below, for these GEMMs alone, have none.
  synchronize(cuda_stream);
  const Events events;
  std::array<float, kCandidates> best;
  best.fill(INFINITY);
  for (int round = -1; round < kRounds; ++round) {
    for (size_t i = 0; i < candidates.size(); ++i) {
      if (candidates[i].state != CUBLAS_STATUS_SUCCESS) continue;
      PESC_CUDA(cudaEventRecord(events.begin, cuda_stream.stream));
      const cublasStatus_t status = multiply(cuda_stream, g, matmul, layouts, candidates[i].algo, into);
      if (status != CUBLAS_STATUS_SUCCESS) continue;
      PESC_CUDA(cudaEventRecord(events.end, cuda_stream.stream));
      PESC_CUDA(cudaEventSynchronize(events.end));
      float milliseconds = 0;
      PESC_CUDA(cudaEventElapsedTime(&milliseconds, events.begin, events.end));
      if (round >= 0) best[i] = std::min(best[i], milliseconds);
    }
  }
  size_t choice = 0;
  for (size_t i = 1; i < candidates.size(); ++i)
    if (best[i] < 0.99F * best[choice]) choice = i;
  return static_cast<int>(choice);
}

// cuBLASLt's A is our b and its B our a; the names here are ours.
void choose(CudaStream& cuda_stream, const Gemm& g, const Key& key, Matmul& matmul) {
  const bool timed = cuda_stream.kernel_choice == KernelChoice::kAutotuned && g.a.dtype == DType::kBF16 &&
                     key.m * key.n >= kTimedWork / key.k;
  PESC_CUDA(cublasLtMatmulDescCreate(&matmul.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const cublasOperation_t op_a = g.trans_a == Transpose::kYes ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t op_b = g.trans_b == Transpose::kYes ? CUBLAS_OP_T : CUBLAS_OP_N;
  PESC_CUDA(cublasLtMatmulDescSetAttribute(matmul.desc, CUBLASLT_MATMUL_DESC_TRANSA, &op_b, sizeof(op_b)));
  PESC_CUDA(cublasLtMatmulDescSetAttribute(matmul.desc, CUBLASLT_MATMUL_DESC_TRANSB, &op_a, sizeof(op_a)));
  const Layouts& layouts = matmul.layouts;
  set_layouts(matmul.layouts, g, key, key.m, key.k);  // so that the candidates depend on the key only

  Preference preference;
  preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                 static_cast<uint64_t>(CudaStream::kWorkspaceBytes));
  preference.set(
      CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(key.align_b));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(key.align_a));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(key.align_from));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(key.align_c));

  std::array<cublasLtMatmulHeuristicResult_t, kCandidates> results{};
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      cuda_stream.blas, matmul.desc, layouts.b, layouts.a, layouts.from, layouts.c, preference.it,
      timed ? kCandidates : 1, results.data(), &found);
  PESC_CHECK(status == CUBLAS_STATUS_SUCCESS && found > 0 && results[0].state == CUBLAS_STATUS_SUCCESS,
             "cuBLASLt (status ", static_cast<int>(status), ") has no kernel for ", key.m, "x", key.n, "x",
             key.k, " ", dtype_name(g.a.dtype), " into ", dtype_name(g.c.dtype), ", strides ", key.lda, " ",
             key.ldb, " ", key.ldc, ", alignments ", key.align_a, " ", key.align_b, " ", key.align_c,
             ", transposes ", key.flags & 3);
  const auto recorded = cuda_stream.gemms->recorded.find(key);
  if (timed && recorded != cuda_stream.gemms->recorded.end() && recorded->second < found &&
      results[static_cast<size_t>(recorded->second)].state == CUBLAS_STATUS_SUCCESS) {
    matmul.choice = recorded->second;
  } else if (timed && found > 1) {
    matmul.choice = fastest(cuda_stream, g, key, matmul, {results.data(), static_cast<size_t>(found)});
  }
  matmul.timed = timed;
  matmul.algo = results[static_cast<size_t>(matmul.choice)].algo;
}

template <class T>
__global__ void scale_elements(View<T> c, float beta) {
  for (int64_t i = first_index(); i < c.rows * c.cols; i += index_step()) {
    T& at = c.row(i / c.cols)[i % c.cols];
    at = from_float<T>(beta == 0.0F ? 0.0F : as_float(at) * beta);
  }
}

void multiply_by_choice(CudaStream& cuda_stream, const Gemm& g, int64_t k, bool varies) {
  const Key key = key_of(g, k, varies);
  auto& matmuls = cuda_stream.gemms->matmuls;
  auto found = matmuls.find(key);
  if (found == matmuls.end()) {
    found = matmuls.try_emplace(key).first;
    try {
      choose(cuda_stream, g, key, found->second);
    } catch (...) {
      matmuls.erase(found);
      throw;
    }
  }
  const Matmul& matmul = found->second;
  if (!varies) {
    PESC_CUDA(multiply(cuda_stream, g, matmul, matmul.layouts, matmul.algo, g.c.data));
    return;
  }
  Layouts layouts;
  set_layouts(layouts, g, key, g.c.rows, k);
  if (multiply(cuda_stream, g, matmul, layouts, matmul.algo, g.c.data) == CUBLAS_STATUS_SUCCESS) return;
  multiply_by_choice(cuda_stream, g, k, false);  // the bucket's kernel does not support this size
}

}  // namespace

void gemm(Stream& stream, const Gemm& g) {
  check_operand(g.a, "a");
  check_operand(g.b, "b");
  check_operand(g.c, "c");
  const bool ta = g.trans_a == Transpose::kYes;
  const bool tb = g.trans_b == Transpose::kYes;
  const int64_t m = g.c.rows;
  const int64_t n = g.c.cols;
  const int64_t k = depth(g);
  PESC_CHECK(
      (ta ? g.a.cols : g.a.rows) == m && (tb ? g.b.rows : g.b.cols) == n && (tb ? g.b.cols : g.b.rows) == k,
      "gemm of ", g.a.rows, "x", g.a.cols, ta ? "^T" : "", " and ", g.b.rows, "x", g.b.cols, tb ? "^T" : "",
      " into ", m, "x", n);
  PESC_CHECK(!g.from.present() || (g.from.rows == m && g.from.cols == n && g.from.dtype == g.c.dtype),
             "gemm from ", g.from.rows, "x", g.from.cols, " into ", m, "x", n);
  PESC_CHECK(g.a.dtype == g.b.dtype && (g.a.dtype == DType::kBF16 || g.c.dtype == DType::kF32), "gemm of ",
             dtype_name(g.a.dtype), " and ", dtype_name(g.b.dtype), " into ", dtype_name(g.c.dtype));
  if (m == 0 || n == 0) return;
  CudaStream& cuda_stream = stream.cuda_stream();
  if (k == 0) {
    cuda::copy(stream, before(g), g.c);
    with_element(g.c.dtype, [&](auto t) {
      using T = decltype(t);
      scale_elements<T><<<blocks_for(m * n), kThreads, 0, cuda_stream.stream>>>(view<T>(g.c), g.beta);
      PESC_LAUNCHED("scale_elements");
    });
    return;
  }
  if (cuda_stream.gemms == nullptr) cuda_stream.gemms = std::make_shared<GemmCache>();
  multiply_by_choice(cuda_stream, g, k, in_range(g, k));
}

// The first line is the library's version; then one line per timed GEMM, of this or the earlier run: its key
// and its candidate.
std::string gemm_choices(const Stream& stream) {
  const auto& cache = stream.cuda_stream().gemms;
  std::map<std::array<int64_t, 12>, int> sorted;
  if (cache == nullptr) return {};
  for (const auto& [k, choice] : cache->recorded) sorted[k.values()] = choice;
  for (const auto& [k, matmul] : cache->matmuls)
    if (matmul.timed) sorted[k.values()] = matmul.choice;
  if (sorted.empty()) return {};
  std::ostringstream out;
  out << cublasLtGetVersion() << '\n';
  for (const auto& [values, choice] : sorted) {
    for (const int64_t v : values) out << v << ' ';
    out << choice << '\n';
  }
  return out.str();
}

void set_gemm_trials(Stream& stream, Arena* scratch) {
  stream.cuda_stream().trials = scratch;
}

void set_gemm_choices(Stream& stream, const std::string& text) {
  CudaStream& cuda_stream = stream.cuda_stream();
  std::istringstream in(text);
  size_t version = 0;
  if (!(in >> version) || version != cublasLtGetVersion()) return;
  if (cuda_stream.gemms == nullptr) cuda_stream.gemms = std::make_shared<GemmCache>();
  Key k{};
  int choice = 0;
  while (in >> k.m >> k.n >> k.k >> k.lda >> k.ldb >> k.ldc >> k.ld_from >> k.align_a >> k.align_b >>
         k.align_c >> k.align_from >> k.flags >> choice) {
    if (choice >= 0) cuda_stream.gemms->recorded[k] = choice;
  }
}

}  // namespace pesc::cuda
