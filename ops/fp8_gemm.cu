// FP8 GEMM on a GPU by cuBLASLt: see ops/fp8_gemm.h. cuBLASLt is column-major; this file asks for
// C^T = B A^T, with our B as its transposed A: the one form that Hopper's FP8 kernels have (TN).
//
// With a scale for each row of both operands (OUTER_VEC_32F) the library offers one kernel for a shape, so
// nothing is timed or recorded.
#include <array>
#include <map>
#include <memory>

#include "ops/core/e4m3.cuh"
#include "ops/cuda_ops.h"
#include "ops/fp8_gemm.h"
#include "ops/gemm_cache.h"

namespace pesc::cuda {

struct Fp8GemmCache {
  using Key = std::array<int64_t, 9>;  // m, n, k, strides, type, beta, accumulation
  std::map<Key, gemm_cache::Matmul> matmuls;
};

namespace {

constexpr size_t kMostShapes = 4096;  // uneven batches bring new numbers of tokens without end

void check_operand(const Tensor& t, const char* name) {
  PESC_CHECK(t.dtype == DType::kE4M3 && t.cols % kFp8Multiple == 0 &&
                 (t.rows <= 1 || t.ld % kFp8Multiple == 0) && reinterpret_cast<uintptr_t>(t.data) % 16 == 0,
             "FP8 GEMM ", name, " is ", dtype_name(t.dtype), " ", t.rows, "x", t.cols, " with rows ", t.ld,
             " apart");
}

__global__ void ones_kernel(float* to, int64_t n) {
  for (int64_t i = first_index(); i < n; i += index_step()) to[i] = 1.0F;
}

template <class T>
void set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, T value) {
  PESC_CUDA(cublasLtMatmulDescSetAttribute(desc, attribute, &value, sizeof(value)));
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

int64_t stride(const Tensor& t) {
  return t.rows > 1 ? t.ld : t.cols;
}

// The names of layouts are ours: `a` describes the tokens, `b` the weight.
void choose(CudaStream& cuda_stream, const Fp8Gemm& g, gemm_cache::Matmul& matmul) {
  PESC_CUDA(cublasLtMatmulDescCreate(&matmul.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  set(matmul.desc, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  set(matmul.desc, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
  set(matmul.desc, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
  set(matmul.desc, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
  set(matmul.desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, static_cast<const void*>(g.b_scales.data));
  set(matmul.desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, static_cast<const void*>(g.a_scales.data));
  set(matmul.desc, CUBLASLT_MATMUL_DESC_FAST_ACCUM,
      static_cast<int8_t>(g.accumulation == Fp8Accumulation::kFast ? 1 : 0));
  const auto layout = [](cublasLtMatrixLayout_t& to, cudaDataType_t type, const Tensor& t) {
    PESC_CUDA(cublasLtMatrixLayoutCreate(&to, type, static_cast<uint64_t>(t.cols),
                                         static_cast<uint64_t>(t.rows), stride(t)));
  };
  const cudaDataType_t out = g.c.dtype == DType::kBF16 ? CUDA_R_16BF : CUDA_R_32F;
  layout(matmul.layouts.a, CUDA_R_8F_E4M3, g.a);
  layout(matmul.layouts.b, CUDA_R_8F_E4M3, g.b);
  layout(matmul.layouts.from, out, g.c);
  layout(matmul.layouts.c, out, g.c);
  Preference preference;
  preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                 static_cast<uint64_t>(CudaStream::kWorkspaceBytes));
  preference.set(
      CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  for (const auto attribute :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
    preference.set(attribute, uint32_t{16});
  cublasLtMatmulHeuristicResult_t result{};
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      cuda_stream.blas, matmul.desc, matmul.layouts.b, matmul.layouts.a, matmul.layouts.from,
      matmul.layouts.c, preference.it, 1, &result, &found);
  PESC_CHECK(status == CUBLAS_STATUS_SUCCESS && found > 0 && result.state == CUBLAS_STATUS_SUCCESS,
             "cuBLASLt (status ", static_cast<int>(status), ") has no FP8 kernel for ", g.c.rows, "x",
             g.c.cols, "x", g.a.cols, " into ", dtype_name(g.c.dtype), ", strides ", g.a.ld, " ", g.b.ld, " ",
             g.c.ld);
  matmul.algo = result.algo;
}

}  // namespace

void fp8_gemm(Stream& stream, const Fp8Gemm& args, Arena& scratch) {
  check_operand(args.a, "a");
  check_operand(args.b, "b");
  const Tensor& c = args.c;
  PESC_CHECK((c.dtype == DType::kBF16 || c.dtype == DType::kF32) && c.cols % kFp8Multiple == 0 &&
                 (c.rows <= 1 || c.ld % 8 == 0) && reinterpret_cast<uintptr_t>(c.data) % 16 == 0,
             "FP8 GEMM into ", dtype_name(c.dtype), " ", c.rows, "x", c.cols, " with rows ", c.ld, " apart");
  PESC_CHECK(args.a.cols > 0, "FP8 GEMM of no columns");
  if (c.size() == 0) return;
  Arena::Scope scope(scratch);
  Fp8Gemm g = args;
  CudaStream& cuda_stream = stream.cuda_stream();
  if (g.b_scales.cols == 0) {
    g.b_scales = scratch.allocate(g.b.rows, 1);
    ones_kernel<<<blocks_for(g.b.rows), kThreads, 0, cuda_stream.stream>>>(pointer<float>(g.b_scales),
                                                                           g.b.rows);
    PESC_LAUNCHED("fp8_gemm_ones");
  }
  if (cuda_stream.fp8_gemms == nullptr) cuda_stream.fp8_gemms = std::make_shared<Fp8GemmCache>();
  auto& matmuls = cuda_stream.fp8_gemms->matmuls;
  if (matmuls.size() >= kMostShapes) matmuls.clear();
  const Fp8GemmCache::Key key = {c.rows,
                                 c.cols,
                                 g.a.cols,
                                 stride(g.a),
                                 stride(g.b),
                                 stride(c),
                                 static_cast<int64_t>(c.dtype),
                                 g.beta != 0.0F ? 1 : 0,
                                 static_cast<int64_t>(g.accumulation)};
  auto found = matmuls.find(key);
  if (found == matmuls.end()) {
    found = matmuls.try_emplace(key).first;
    try {
      choose(cuda_stream, g, found->second);
    } catch (...) {
      matmuls.erase(found);
      throw;
    }
  }
  gemm_cache::Matmul& matmul = found->second;
  set(matmul.desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, static_cast<const void*>(g.b_scales.data));
  set(matmul.desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, static_cast<const void*>(g.a_scales.data));
  const float one = 1.0F;
  PESC_CUDA(cublasLtMatmul(cuda_stream.blas, matmul.desc, &one, g.b.data, matmul.layouts.b, g.a.data,
                           matmul.layouts.a, &g.beta, c.data, matmul.layouts.from, c.data, matmul.layouts.c,
                           &matmul.algo, cuda_stream.workspace, CudaStream::kWorkspaceBytes,
                           cuda_stream.stream));
}

}  // namespace pesc::cuda
