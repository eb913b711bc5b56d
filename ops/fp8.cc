#include "ops/fp8.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "ops/core/check.h"
#include "ops/core/e4m3.h"
#include "ops/core/threads.h"
#include "ops/cuda_ops.h"

namespace pesc {
namespace {

// The largest magnitude of a row as bits, whose order is that of the values; any NaN is above infinity.
uint32_t largest_bits(const float* x, const float* factors, int64_t n) {
  uint32_t largest = 0;
  if (factors == nullptr) {
    for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::bit_cast<uint32_t>(x[i]) & 0x7FFFFFFFU);
  } else {
    for (int64_t i = 0; i < n; ++i)
      largest = std::max(largest, std::bit_cast<uint32_t>(x[i] * factors[i]) & 0x7FFFFFFFU);
  }
  return largest;
}

void quantize_row(const float* x, const float* factors, int64_t n, uint8_t* codes, float& scale) {
  scale = e4m3_scale(std::bit_cast<float>(largest_bits(x, factors, n)));
  if (std::isnan(scale)) {
    std::memset(codes, 0, static_cast<size_t>(n));
    return;
  }
  const float inverse = inverse_power_of_two(scale);
  if (factors == nullptr) {
    for (int64_t i = 0; i < n; ++i) codes[i] = f32_to_e4m3(x[i] * inverse);
  } else {
    for (int64_t i = 0; i < n; ++i) codes[i] = f32_to_e4m3(x[i] * factors[i] * inverse);
  }
}

// float32 values of the codes.
const float* e4m3_values() {
  struct Table {
    float values[256];
    Table() {
      for (unsigned i = 0; i < 256; ++i) values[i] = e4m3_to_f32(static_cast<uint8_t>(i));
    }
  };
  static const Table table;
  return table.values;
}

void check_scales(const Tensor& scales, int64_t rows) {
  PESC_CHECK(scales.dtype == DType::kF32 && scales.rows == rows && scales.cols == 1 && scales.contiguous(),
             "scales ", dtype_name(scales.dtype), " ", scales.rows, "x", scales.cols, " of ", rows, " rows");
}

}  // namespace

void fp8_quantize(Stream& stream, const Fp8Quantize& args) {
  if (stream.on_cuda()) return cuda_ops().fp8_quantize(stream, args);
  const auto& [x, factors, codes, scales] = args;
  PESC_CHECK(codes.rows == x.rows && codes.cols >= x.cols, "codes ", codes.rows, "x", codes.cols, " of x ",
             x.rows, "x", x.cols);
  PESC_CHECK(factors.cols == 0 || (factors.cols == x.cols && factors.rows == 1), factors.rows, "x",
             factors.cols, " column scales of ", x.cols);
  check_scales(scales, x.rows);
  const float* from = x.f32();
  const float* factor = factors.cols > 0 ? factors.f32() : nullptr;
  uint8_t* to = codes.e4m3();
  float* scale = scales.f32();
  parallel_for(stream, x.rows, row_grain(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      uint8_t* row = to + r * codes.ld;
      quantize_row(from + r * x.ld, factor, x.cols, row, scale[r]);
      std::fill(row + x.cols, row + codes.cols, uint8_t{0});
    }
  });
}

void fp8_dequantize(Stream& stream, const Tensor& codes, const Tensor& scales, const Tensor& to) {
  if (stream.on_cuda()) return cuda_ops().fp8_dequantize(stream, codes, scales, to);
  PESC_CHECK(codes.rows == to.rows && codes.cols == to.cols, "codes ", codes.rows, "x", codes.cols, " to ",
             to.rows, "x", to.cols);
  check_scales(scales, codes.rows);
  const uint8_t* from = codes.e4m3();
  const float* scale = scales.f32();
  const float* values = e4m3_values();
  float* out = to.f32();
  parallel_for(stream, to.rows, row_grain(to.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const uint8_t* row = from + r * codes.ld;
      for (int64_t i = 0; i < to.cols; ++i) out[r * to.ld + i] = values[row[i]] * scale[r];
    }
  });
}

void fp8_dequantize_blocks(Stream& stream, const Fp8Blocks& blocks, const Tensor& to) {
  const auto& [codes, scales, first] = blocks;
  PESC_CHECK(codes.rows == to.rows && codes.cols == to.cols && scales.rows == to.rows && first >= 0 &&
                 first + to.cols <= scales.cols * kFp8Block,
             "codes ", codes.rows, "x", codes.cols, " from column ", first, " of ", scales.rows, "x",
             scales.cols, " scales to ", to.rows, "x", to.cols);
  if (stream.on_cuda()) return cuda_ops().fp8_dequantize_blocks(stream, blocks, to);
  const float* values = e4m3_values();
  parallel_for(stream, to.rows, row_grain(to.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const uint8_t* row = blocks.codes.e4m3() + r * blocks.codes.ld;
      const float* scale = blocks.scales.f32() + r * blocks.scales.ld;
      float* out = to.f32() + r * to.ld;
      for (int64_t i = 0; i < to.cols; ++i) out[i] = values[row[i]] * scale[(blocks.first + i) / kFp8Block];
    }
  });
}

void fp8_transpose(Stream& stream, const Tensor& from, const Tensor& to) {
  if (stream.on_cuda()) return cuda_ops().fp8_transpose(stream, from, to);
  PESC_CHECK(to.rows == from.cols && to.cols >= from.rows, "transpose of ", from.rows, "x", from.cols, " to ",
             to.rows, "x", to.cols);
  const uint8_t* in = from.e4m3();
  uint8_t* out = to.e4m3();
  parallel_for(stream, to.rows, row_grain(to.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t i = 0; i < from.rows; ++i) out[r * to.ld + i] = in[i * from.ld + r];
      std::fill(out + r * to.ld + from.rows, out + r * to.ld + to.cols, uint8_t{0});
    }
  });
}

}  // namespace pesc
