// FP8 and NF4 on the GPU: the same bytes and the same values as on the CPU, bit for bit.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "ops/fp8.h"
#include "ops/nf4_quantizer.h"
#include "tests/ops/fp8_reference.h"
#include "tests/ops/gpu_twin.h"

namespace pesc {
namespace {

// Bytes in GPU memory, as many columns as the view.
class BytesOnGpu {
 public:
  BytesOnGpu(Stream& gpu, const Tensor& like, const void* values)
      : stream_(gpu), memory_("bytes", gpu.device(), std::max<int64_t>(1, like.bytes())) {
    view = memory_.allocate(like.rows, like.cols, like.dtype);
    if (values != nullptr) copy_from_host(gpu, values, view);
  }
  [[nodiscard]] std::vector<uint8_t> host() const {
    std::vector<uint8_t> out(static_cast<size_t>(view.bytes()));
    copy_to_host(stream_, view, out.data());
    return out;
  }
  Tensor view;

 private:
  Stream& stream_;
  Arena memory_;
};

class QuantizersGpu : public GpuTwin {
 protected:
  static std::vector<uint8_t> bytes_of(const HostMatrix& m) {
    std::vector<uint8_t> out(m.data.size() * sizeof(float));
    std::memcpy(out.data(), m.data.data(), out.size());
    return out;
  }
};

TEST_F(QuantizersGpu, Fp8RowsAreBitForBit) {
  struct Shape {
    int64_t rows, cols, gap, more;
  };
  for (const Shape& s :
       {Shape{3, 17, 2, 15}, {65, 304, 0, 0}, {1, 8, 0, 8}, {9, 5000, 8, 8}, {0, 16, 0, 0}}) {
    for (const DType type : {DType::kF32, DType::kBF16}) {
      for (const bool factors : {false, true}) {
        SCOPED_TRACE(shape_name(type, s.rows, s.cols, s.gap) + (factors ? " with column scales" : ""));
        HostMatrix x = rounded(uneven_rows(s.rows, s.cols, 3, s.gap), type);
        if (s.rows > 5) {
          for (int64_t i = 0; i < s.cols; ++i) x(3, i) = 0;
          x(4, 7) = std::numeric_limits<float>::infinity();
          x(5, 2) = std::numeric_limits<float>::quiet_NaN();
        }
        HostMatrix scale(1, s.cols);
        for (int64_t i = 0; i < s.cols; ++i) scale(0, i) = std::ldexp(1.0F, static_cast<int>(i % 9) - 4);
        Codes codes(s.rows, s.cols + s.more, 0x55), turned(s.cols + s.more, s.rows + s.more, 0x55);
        HostMatrix scales(s.rows, 1), back(s.rows, s.cols + s.more);
        fp8_quantize(cpu, {.x = x.view,
                           .column_scales = factors ? scale.view : Tensor{},
                           .codes = codes.view,
                           .scales = scales.view});
        fp8_dequantize(cpu, codes.view, scales.view, back.view);
        fp8_transpose(cpu, codes.view, turned.view);
        const OnGpu gx(gpu(), x, type), gscale(gpu(), scale), gscales(gpu(), HostMatrix(s.rows, 1));
        const OnGpu gback(gpu(), HostMatrix(s.rows, s.cols + s.more));
        const BytesOnGpu gcodes(gpu(), codes.view, nullptr), gturned(gpu(), turned.view, nullptr);
        fp8_quantize(gpu(), {.x = gx.view,
                             .column_scales = factors ? gscale.view : Tensor{},
                             .codes = gcodes.view,
                             .scales = gscales.view});
        fp8_dequantize(gpu(), gcodes.view, gscales.view, gback.view);
        fp8_transpose(gpu(), gcodes.view, gturned.view);
        EXPECT_EQ(gcodes.host(), codes.bytes());
        EXPECT_EQ(gturned.host(), turned.bytes());
        const HostMatrix got = gscales.host(), values = gback.host();
        for (int64_t r = 0; r < s.rows; ++r) {
          const bool finite = !std::isnan(scales(r, 0));
          EXPECT_EQ(!std::isnan(got(r, 0)), finite);
          if (!finite) continue;
          EXPECT_EQ(got(r, 0), scales(r, 0));
          for (int64_t i = 0; i < s.cols + s.more; ++i) ASSERT_EQ(values(r, i), back(r, i));
        }
      }
    }
  }
}

TEST_F(QuantizersGpu, Nf4IsBitForBit) {
  struct Shape {
    int64_t rows, cols, col, width;
  };
  for (const Shape& s : {Shape{96, 256, 0, 256}, {33, 65, 0, 65}, {70, 333, 50, 201}, {40, 1024, 512, 512}}) {
    SCOPED_TRACE(str_cat(s.rows, "x", s.cols, ", columns from ", s.col));
    HostMatrix w = HostMatrix::normal(s.rows, s.cols, 1, 0, 0.02F);
    for (int64_t i = 0; i < s.cols; ++i) w(2, i) = 0;
    Nf4Quantizer q(s.rows, s.cols);
    ASSERT_EQ(q.scan(cpu, s.rows, w.data.data()), -1);
    q.quantize_absmax();
    Arena memory("host", Device{}, 1 << 20), device = scratch(1 << 20);
    const Nf4Matrix here = Nf4Matrix::allocate(memory, s.rows, s.width);
    const Nf4Matrix there = Nf4Matrix::allocate(device, s.rows, s.width);
    q.quantize(cpu, 0, s.col, w.data.data(), here);
    for (const auto& [from, to] : {std::pair(here.codes, there.codes),
                                   {here.absmax, there.absmax},
                                   {here.nested, there.nested},
                                   {here.first, there.first}})
      copy_from_host(gpu(), from.data, to);
    for (const int64_t col : {int64_t{0}, int64_t{5}}) {
      for (const DType type : {DType::kF32, DType::kBF16}) {
        HostMatrix want(s.rows, s.width - col);
        nf4_dequantize(cpu, here, col, want.view);
        const OnGpu got(gpu(), HostMatrix(s.rows, s.width - col), type);
        nf4_dequantize(gpu(), there, col, got.view);
        EXPECT_TRUE(same_bits(got.host(), rounded(want, type))) << dtype_name(type) << " from " << col;
      }
    }
    HostMatrix scales(s.rows, 1);
    for (int64_t r = 0; r < s.rows; ++r) scales(r, 0) = std::ldexp(1.0F, static_cast<int>(r % 5) - 14);
    Codes want(s.rows, fp8_padded(s.width), 0x55);
    nf4_to_fp8(cpu, here, scales.view, want.view);
    const OnGpu gscales(gpu(), scales);
    const BytesOnGpu got(gpu(), want.view, nullptr);
    nf4_to_fp8(gpu(), there, gscales.view, got.view);
    EXPECT_EQ(got.host(), want.bytes());
  }
}

// The formats of folders alone: FP8 with a scale for each block, and NF4 whose absmaxes are float32 values.
TEST_F(QuantizersGpu, FormatsOfFoldersAreBitForBit) {
  struct Shape {
    int64_t rows, cols, first;
  };
  for (const Shape& s : {Shape{5, 256, 0}, {33, 300, 0}, {9, 520, 100}, {7, 37, 127}, {3, 64, 4}}) {
    SCOPED_TRACE(str_cat(s.rows, "x", s.cols, ", columns from ", s.first));
    Codes codes(s.rows, s.cols, 0);
    HostMatrix ones(s.rows, 1), scales(s.rows, fp8_blocks(s.cols));
    fp8_quantize(cpu, {.x = uneven_rows(s.rows, s.cols, 3).view, .codes = codes.view, .scales = ones.view});
    for (size_t i = 0; i < scales.data.size(); ++i) scales.data[i] = 0.01F * static_cast<float>(1 + i % 13);
    const BytesOnGpu gcodes(gpu(), codes.view, codes.bytes().data());
    const OnGpu gscales(gpu(), scales);

    Arena memory("host", Device{}, 1 << 20), device = scratch(1 << 20);
    const Nf4Matrix here = Nf4Matrix::allocate(memory, s.rows, s.cols, Nf4Absmax::kF32);
    const Nf4Matrix there = Nf4Matrix::allocate(device, s.rows, s.cols, Nf4Absmax::kF32);
    for (int64_t r = 0; r < s.rows; ++r) {
      here.first.i32()[r] = static_cast<int32_t>((r * s.cols + s.first) % kNf4Group);
      for (int64_t i = 0; i < here.codes.cols; ++i)
        here.codes.u8()[r * here.codes.ld + i] = static_cast<uint8_t>(r * 31 + i * 7);
      for (int64_t i = 0; i < here.absmax.cols; ++i)
        here.absmax.f32()[r * here.absmax.ld + i] = 0.01F * static_cast<float>(1 + (r + i) % 17);
    }
    for (const auto& [from, to] :
         {std::pair(here.codes, there.codes), {here.absmax, there.absmax}, {here.first, there.first}})
      copy_from_host(gpu(), from.data, to);
    for (const DType type : {DType::kF32, DType::kBF16}) {
      HostMatrix want(s.rows, s.cols);
      fp8_dequantize_blocks(cpu, {codes.view, scales.view, s.first}, want.view);
      const OnGpu blocks(gpu(), HostMatrix(s.rows, s.cols), type);
      fp8_dequantize_blocks(gpu(), {gcodes.view, gscales.view, s.first}, blocks.view);
      EXPECT_TRUE(same_bits(blocks.host(), rounded(want, type))) << dtype_name(type);
      nf4_dequantize(cpu, here, 0, want.view);
      const OnGpu single(gpu(), HostMatrix(s.rows, s.cols), type);
      nf4_dequantize(gpu(), there, 0, single.view);
      EXPECT_TRUE(same_bits(single.host(), rounded(want, type))) << dtype_name(type);
    }
  }
}

}  // namespace
}  // namespace pesc
