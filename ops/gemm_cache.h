// The cache of ops/gemm.cu: descriptors and kernels, keyed by everything that the choice of a kernel depends
// on.
#pragma once

#include <cublasLt.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <unordered_map>

namespace pesc::cuda {
namespace gemm_cache {

// Owns its descriptors. Errors of their destruction are ignored.
struct Layouts {
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, from = nullptr, c = nullptr;
  Layouts() = default;
  Layouts(const Layouts&) = delete;
  Layouts& operator=(const Layouts&) = delete;
  ~Layouts() {
    for (cublasLtMatrixLayout_t layout : {a, b, from, c})
      if (layout != nullptr) (void)cublasLtMatrixLayoutDestroy(layout);
  }
};

struct Matmul {
  cublasLtMatmulDesc_t desc = nullptr;
  Layouts layouts;
  cublasLtMatmulAlgo_t algo{};
  int choice = 0;  // which of the library's candidates
  bool timed = false;

  Matmul() = default;
  Matmul(const Matmul&) = delete;
  Matmul& operator=(const Matmul&) = delete;
  ~Matmul() {
    if (desc != nullptr) (void)cublasLtMatmulDescDestroy(desc);
  }
};

// Everything that the choice of a kernel depends on.
struct Key {
  int64_t m, n, k, lda, ldb, ldc, ld_from;
  int64_t align_a, align_b, align_c, align_from;  // bytes, at most 256
  int64_t flags;                                  // trans_a, trans_b, dtypes, extent
  bool operator==(const Key&) const = default;
  [[nodiscard]] std::array<int64_t, 12> values() const {
    return {m, n, k, lda, ldb, ldc, ld_from, align_a, align_b, align_c, align_from, flags};
  }
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

}  // namespace gemm_cache

struct GemmCache {
  std::unordered_map<gemm_cache::Key, gemm_cache::Matmul, gemm_cache::KeyHash> matmuls;
  std::unordered_map<gemm_cache::Key, int, gemm_cache::KeyHash> recorded;  // choices of an earlier run
};

}  // namespace pesc::cuda
