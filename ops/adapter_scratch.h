// The layout of the adapter experts on a GPU and the scratch that it takes, as functions of sizes only, so
// that `pesc plan` needs no GPU. Letters as in ops/adapter.h.
//
// Two forms compute the same result. Grouped: rows are gathered by expert, and each expert has its own GEMM
// of its rows; 2 M H d multiplications per projection, and every row is copied several times. Dense: one GEMM
// over all rows and all experts, with zeros where a row did not choose an expert; 2 R H E d multiplications,
// no copies. The dense form is faster for few and small experts.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/core/arena.h"

namespace pesc {

enum class AdapterForm { kGrouped, kDense };

// Compares the cost of the extra multiplications of the dense form with that of the copies of the grouped
// one. In the time in which an assignment's rows are copied, a GEMM does about 400 more columns per row in
// bf16 (at 600 TFLOP/s and 4 TB/s) and about 27 in float32. A grouped GEMM runs at 3/4 of the rate of a dense
// one.
[[nodiscard]] inline AdapterForm adapter_form(DType dtype, int64_t rows, int64_t assignments, int64_t experts,
                                              int64_t dim) {
  const int64_t moving = dtype == DType::kBF16 ? 1200 : 80;
  const bool dense = experts > 1 && dim * (3 * experts * rows - 4 * assignments) < moving * assignments;
  return dense ? AdapterForm::kDense : AdapterForm::kGrouped;
}

// The lists of assignments in device memory, in one allocation, for up to k assignments per row.
struct AdapterLists {
  Tensor all;              // [1, 2 R k] I32
  Tensor inverse, choice;  // [1, R k]: 1 + the assignment of a choice, or 0; the choice of an assignment

  AdapterLists(Arena& scratch, int64_t rows, int64_t top_k)
      : all(scratch.allocate(1, 2 * rows * top_k, DType::kI32)),
        inverse(all.col_range(0, rows * top_k)),
        choice(all.col_range(rows * top_k, all.cols)) {}
};

// Scratch of the grouped form for a run of up to `run` assignments, of one or several experts.
struct AdapterGroupedScratch {
  static constexpr int64_t kRunRows = 32768;
  static constexpr int64_t kRunBytes = int64_t{256} << 20;  // of rows0
  int64_t run;
  Tensor rows0, rows1;  // [run, H]
  Tensor p, scaled;     // [run, d]

  AdapterGroupedScratch(Arena& scratch, int64_t assignments, int64_t hidden, int64_t dim, DType dtype)
      : run(std::min(assignments,
                     std::clamp<int64_t>(kRunBytes / (hidden * dtype_bytes(dtype)), 1, kRunRows))),
        rows0(scratch.allocate(run, hidden, dtype)),
        rows1(scratch.allocate(run, hidden, dtype)),
        p(scratch.allocate(run, dim, dtype)),
        scaled(scratch.allocate(run, dim, dtype)) {}
};

// Scratch of the dense form. REQUIRES: columns >= E d.
struct AdapterDenseScratch {
  Tensor offsets;        // [1, E + 1] I32
  Tensor p, dh, scaled;  // [R, E d]
  Tensor up_all;         // [H, E d]: the experts' Up matrices, concatenated by columns
  Tensor dup_all;        // [H, E d] F32

  AdapterDenseScratch(Arena& scratch, int64_t rows, int64_t hidden, int64_t experts, int64_t columns,
                      DType dtype)
      : offsets(scratch.allocate(1, experts + 1, DType::kI32)),
        p(scratch.allocate(rows, columns, dtype)),
        dh(scratch.allocate(rows, columns, dtype)),
        scaled(scratch.allocate(rows, columns, dtype)),
        up_all(scratch.allocate(hidden, columns, dtype)),
        dup_all(scratch.allocate(hidden, columns)) {}

  // The largest E d for which adapter_form can return kDense: with M <= R k, E d < k (400 + 4 d / 3).
  [[nodiscard]] static int64_t most_columns(int64_t top_k, int64_t dim) {
    return top_k * (400 + (4 * dim + 2) / 3);
  }
};

// The larger of the two forms' scratch.
[[nodiscard]] inline int64_t adapter_gpu_scratch_bytes(int64_t rows, int64_t top_k, int64_t hidden,
                                                       int64_t dim, DType dtype) {
  if (rows == 0) return 0;
  Arena arena = Arena::planning("adapter scratch");
  (void)AdapterLists(arena, rows, top_k);
  {
    const Arena::Scope scope(arena);
    (void)AdapterGroupedScratch(arena, rows * top_k, hidden, dim, dtype);
  }
  const int64_t columns = AdapterDenseScratch::most_columns(top_k, dim);
  (void)AdapterDenseScratch(arena, rows, hidden, columns / std::max<int64_t>(dim, 1), columns, dtype);
  return arena.peak();
}

}  // namespace pesc
