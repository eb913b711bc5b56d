// General products on the GPU: cuBLASLt, which is column-major; a row-major matrix is its own transpose
// there, so C^T = op(B)^T op(A)^T is asked for. float32 products are IEEE float32 (no TF32); bf16 ones add up
// in float32 and round once, into float32 or bf16.
//
// The library's first choice for a shape is kept. Split sums are allowed only through the workspace (added up
// in a step of their own), so that the order of every sum is a function of the shape.
#include <cstring>
#include <unordered_map>

#include "ops/core/launch.cuh"
#include "ops/cuda_ops.h"
#include "ops/gemm.h"

namespace pesc::cuda {
namespace {

// Descriptors are destroyed with their owner; failures of that are of no use to anybody.
struct Matmul {
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulAlgo_t algo{};

  Matmul() = default;
  Matmul(const Matmul&) = delete;
  Matmul& operator=(const Matmul&) = delete;
  ~Matmul() {
    for (cublasLtMatrixLayout_t layout : {a, b, c})
      if (layout != nullptr) (void)cublasLtMatrixLayoutDestroy(layout);
    if (desc != nullptr) (void)cublasLtMatmulDescDestroy(desc);
  }
};

// All that the choice of a kernel depends on.
struct Key {
  int64_t m, n, k, lda, ldb, ldc;
  int64_t align_a, align_b, align_c;  // bytes, at most 256
  int64_t flags;                      // trans_a, trans_b, dtypes
  bool operator==(const Key&) const = default;
};

struct KeyHash {
  size_t operator()(const Key& key) const {
    uint64_t words[sizeof(Key) / sizeof(uint64_t)];
    static_assert(sizeof(words) == sizeof(Key));
    std::memcpy(words, &key, sizeof(Key));
    uint64_t hash = 0xCBF29CE484222325;
    for (const uint64_t word : words) {
      hash = (hash ^ word) * 0x100000001B3;
      hash ^= hash >> 29;
    }
    return hash;
  }
};

}  // namespace

struct GemmCache {
  std::unordered_map<Key, Matmul, KeyHash> matmuls;
};

namespace {

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

Key key_of(const Gemm& g, int64_t k) {
  return {g.c.rows,
          g.c.cols,
          k,
          leading(g.a),
          leading(g.b),
          leading(g.c),
          alignment(g.a),
          alignment(g.b),
          alignment(g.c),
          (g.trans_a == Transpose::kYes ? 1 : 0) | (g.trans_b == Transpose::kYes ? 2 : 0) |
              (g.a.dtype == DType::kBF16 ? 4 : 0) | (g.c.dtype == DType::kBF16 ? 8 : 0)};
}

void set_layout(cublasLtMatrixLayout_t& layout, const Tensor& t, int64_t ld) {
  PESC_CUDA(cublasLtMatrixLayoutCreate(&layout, data_type(t.dtype), static_cast<uint64_t>(t.cols),
                                       static_cast<uint64_t>(t.rows), ld));
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

// In the library's terms A is our b and B our a; their names here are ours.
void choose(Queue& queue, const Gemm& g, const Key& key, Matmul& matmul) {
  PESC_CUDA(cublasLtMatmulDescCreate(&matmul.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const cublasOperation_t op_a = g.trans_a == Transpose::kYes ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t op_b = g.trans_b == Transpose::kYes ? CUBLAS_OP_T : CUBLAS_OP_N;
  PESC_CUDA(cublasLtMatmulDescSetAttribute(matmul.desc, CUBLASLT_MATMUL_DESC_TRANSA, &op_b, sizeof(op_b)));
  PESC_CUDA(cublasLtMatmulDescSetAttribute(matmul.desc, CUBLASLT_MATMUL_DESC_TRANSB, &op_a, sizeof(op_a)));
  set_layout(matmul.a, g.a, key.lda);
  set_layout(matmul.b, g.b, key.ldb);
  set_layout(matmul.c, g.c, key.ldc);

  Preference preference;
  preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(Queue::kWorkspaceBytes));
  preference.set(
      CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(key.align_b));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(key.align_a));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(key.align_c));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(key.align_c));

  cublasLtMatmulHeuristicResult_t result{};
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      queue.blas, matmul.desc, matmul.b, matmul.a, matmul.c, matmul.c, preference.it, 1, &result, &found);
  PESC_CHECK(status == CUBLAS_STATUS_SUCCESS && found > 0 && result.state == CUBLAS_STATUS_SUCCESS,
             "cuBLASLt (status ", static_cast<int>(status), ") has no kernel for ", key.m, "x", key.n, "x",
             key.k, " ", dtype_name(g.a.dtype), " into ", dtype_name(g.c.dtype), ", strides ", key.lda, " ",
             key.ldb, " ", key.ldc, ", alignments ", key.align_a, " ", key.align_b, " ", key.align_c,
             ", transposes ", key.flags & 3);
  matmul.algo = result.algo;
}

template <class T>
__global__ void scale_elements(View<T> c, float beta) {
  for (int64_t i = first_index(); i < c.rows * c.cols; i += index_step()) {
    T& at = c.row(i / c.cols)[i % c.cols];
    at = from_float<T>(beta == 0.0F ? 0.0F : as_float(at) * beta);
  }
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
  const int64_t k = ta ? g.a.rows : g.a.cols;
  PESC_CHECK(
      (ta ? g.a.cols : g.a.rows) == m && (tb ? g.b.rows : g.b.cols) == n && (tb ? g.b.cols : g.b.rows) == k,
      "gemm of ", g.a.rows, "x", g.a.cols, ta ? "^T" : "", " and ", g.b.rows, "x", g.b.cols, tb ? "^T" : "",
      " into ", m, "x", n);
  PESC_CHECK(g.a.dtype == g.b.dtype && (g.a.dtype == DType::kBF16 || g.c.dtype == DType::kF32), "gemm of ",
             dtype_name(g.a.dtype), " and ", dtype_name(g.b.dtype), " into ", dtype_name(g.c.dtype));
  if (m == 0 || n == 0) return;
  Queue& queue = stream.queue();
  if (k == 0) {
    with_element(g.c.dtype, [&](auto t) {
      using T = decltype(t);
      scale_elements<T><<<blocks_for(m * n), kThreads, 0, queue.stream>>>(view<T>(g.c), g.beta);
      PESC_LAUNCHED("scale_elements");
    });
    return;
  }
  if (queue.gemms == nullptr) queue.gemms = std::make_shared<GemmCache>();
  const Key key = key_of(g, k);
  auto& matmuls = queue.gemms->matmuls;
  auto found = matmuls.find(key);
  if (found == matmuls.end()) {
    found = matmuls.try_emplace(key).first;
    try {
      choose(queue, g, key, found->second);
    } catch (...) {
      matmuls.erase(found);
      throw;
    }
  }
  const Matmul& matmul = found->second;
  PESC_CUDA(cublasLtMatmul(queue.blas, matmul.desc, &g.alpha, g.b.data, matmul.b, g.a.data, matmul.a, &g.beta,
                           g.c.data, matmul.c, g.c.data, matmul.c, &matmul.algo, queue.workspace,
                           Queue::kWorkspaceBytes, queue.stream));
}

}  // namespace pesc::cuda
