// A quantised frozen weight of a test, and float64 products.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "model/frozen_linear.h"
#include "model/quantized_weights.h"
#include "ops/core/e4m3.h"
#include "tests/ops/fp8_reference.h"
#include "tests/ops/reference.h"

namespace pesc {

// Rows of different size, one of them of zeros.
[[nodiscard]] inline HostMatrix uneven_weight(int64_t out, int64_t in, unsigned seed) {
  HostMatrix w = HostMatrix::normal(out, in, seed, 0, 0.02F);
  for (int64_t r = 0; r < out; ++r)
    for (int64_t c = 0; c < in; ++c) w(r, c) *= r % 11 == 3 ? 0.0F : static_cast<float>(1 + r % 7);
  return w;
}

// The whole of a tensor, or columns and rows of it.
struct Cut {
  int64_t row = 0, rows = -1, col = 0, cols = -1;  // -1: to the end
};
[[nodiscard]] inline ShardSpec spec_of(const HostMatrix& w, const Cut& cut = {}) {
  return {"weight",
          w.view.rows,
          w.view.cols,
          cut.row,
          cut.rows < 0 ? w.view.rows - cut.row : cut.rows,
          cut.col,
          cut.cols < 0 ? w.view.cols - cut.col : cut.cols,
          0,
          1};
}
[[nodiscard]] inline ReadRows rows_of(const HostMatrix& w) {
  return [&w](int64_t row, int64_t rows, float* to) {
    std::copy_n(w.data.data() + row * w.view.cols, rows * w.view.cols, to);
  };
}

struct QuantizedLinear {
  Arena memory;
  FrozenLinear linear;

  QuantizedLinear(Stream& stream, const FrozenType& type, const HostMatrix& w, int64_t lora_columns,
                  const Cut& cut = {})
      : memory("weight", stream.device(), bytes(type, spec_of(w, cut), lora_columns)) {
    const ShardSpec spec = spec_of(w, cut);
    linear = FrozenLinear::allocate(memory, type, spec.rows, spec.cols, lora_columns);
    write_quantized(stream, spec, rows_of(w), linear);
  }
  // The weight by the definition of its format. REQUIRES: memory of the CPU.
  [[nodiscard]] Matrix64 dequantized() const {
    Matrix64 out(linear.out, linear.in);
    Stream host((Device()));
    HostMatrix values(linear.out, linear.in);
    if (linear.type.format == FrozenFormat::kNF4) {
      nf4_dequantize(host, linear.nf4, 0, values.view);
      return Matrix64(values);
    }
    for (int64_t r = 0; r < linear.out; ++r)
      for (int64_t c = 0; c < linear.in; ++c)
        out(r, c) = e4m3_value(linear.weight.e4m3()[r * linear.weight.ld + c]) *
                    static_cast<double>(linear.scales.f32()[r]);
    return out;
  }

 private:
  static int64_t bytes(const FrozenType& type, const ShardSpec& spec, int64_t lora_columns) {
    Arena plan = Arena::planning("weight");
    (void)FrozenLinear::allocate(plan, type, spec.rows, spec.cols, lora_columns);
    return plan.used();
  }
};

// a b^T and a b.
[[nodiscard]] inline Matrix64 product_nt(const Matrix64& a, const Matrix64& b) {
  Matrix64 out(a.rows, b.rows);
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t j = 0; j < b.rows; ++j)
      for (int64_t l = 0; l < a.cols; ++l) out(i, j) += a(i, l) * b(j, l);
  return out;
}
[[nodiscard]] inline Matrix64 product_nn(const Matrix64& a, const Matrix64& b) {
  Matrix64 out(a.rows, b.cols);
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t l = 0; l < a.cols; ++l)
      for (int64_t j = 0; j < b.cols; ++j) out(i, j) += a(i, l) * b(l, j);
  return out;
}

}  // namespace pesc
