// FP8 and NF4 on the GPU: the same bytes and the same values as on the CPU, bit for bit.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "ops/fp8.h"
#include "ops/nf4_quantizer.h"
#include "ops/reduce.h"
#include "ops/rmsnorm.h"
#include "ops/swiglu.h"
#include "tests/ops/fp8_reference.h"
#include "tests/ops/gpu_twin.h"
#include "tests/ops/token_identities.h"

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
       {Shape{3, 17, 2, 15},
        {65, 304, 0, 0},
        {1, 8, 0, 8},
        {9, 5000, 8, 8},
        {0, 16, 0, 0},
        // Rows that stay in registers, one pack a thread and all that fit; longer ones; unaligned ones.
        {1500, 256, 0, 0},
        {301, 4096, 0, 0},
        {7, 11008, 64, 0},
        {6, 24584, 8, 8},
        {6, 30720, 0, 0},
        {6, 41024, 0, 0},
        {6, 4097, 0, 15},
        {6, 4096, 1, 0}}) {
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

// Whole tiles of 128 and parts of them, codes by sixteen and one by one.
TEST_F(QuantizersGpu, Fp8TransposeIsExact) {
  struct Shape {
    int64_t rows, cols, to_cols;
  };
  for (const Shape& s : {Shape{128, 128, 128},
                         {256, 384, 256},
                         {272, 144, 272},
                         {16, 4096, 16},
                         {1008, 48, 1008},
                         {250, 144, 256},
                         {37, 29, 48},
                         {130, 131, 130},
                         {1, 1, 1}}) {
    SCOPED_TRACE(str_cat(s.rows, "x", s.cols, " to ", s.to_cols, " columns"));
    std::vector<uint8_t> bytes;
    for (int64_t i = 0; i < s.rows * s.cols; ++i)
      bytes.push_back(static_cast<uint8_t>(i * 7919 % 251 + i / 256 % 5));
    const Tensor from{bytes.data(), DType::kE4M3, s.rows, s.cols, s.cols};
    Codes want(s.cols, s.to_cols, 0x55);
    fp8_transpose(cpu, from, want.view);
    const BytesOnGpu there(gpu(), from, bytes.data()), got(gpu(), want.view, nullptr);
    fp8_transpose(gpu(), there.view, got.view);
    EXPECT_EQ(got.host(), want.bytes());
  }
}

// An operation that writes codes with its rows writes what fp8_quantize makes of these.
TEST_F(QuantizersGpu, SwigluWritesTheCodesOfItsRows) {
  struct Shape {
    int64_t rows, cols, more;
  };
  for (const Shape& s : {Shape{700, 264, 8}, {9, 11008, 0}, {5, 13824, 0}, {3, 37, 11}, {3, 28672, 0}}) {
    for (const DType type : {DType::kBF16, DType::kF32}) {
      SCOPED_TRACE(shape_name(type, s.rows, s.cols, s.more));
      HostMatrix gate_up = rounded(uneven_rows(s.rows, 2 * s.cols, 5), type);
      gate_up(1, 3) = std::numeric_limits<float>::infinity();
      for (int64_t i = 0; i < 2 * s.cols; ++i) gate_up(2, i) = 0;
      const HostMatrix dh = rounded(HostMatrix::normal(s.rows, s.cols, 6), type);
      HostMatrix powers(1, 2 * s.cols);
      for (int64_t i = 0; i < 2 * s.cols; ++i) powers(0, i) = std::ldexp(1.0F, static_cast<int>(i % 9) - 4);
      const OnGpu in(gpu(), gate_up, type), grad(gpu(), dh, type), factors(gpu(), powers);
      const OnGpu h(gpu(), dh, type), plain(gpu(), dh, type);
      const OnGpu din(gpu(), gate_up, type), dplain(gpu(), gate_up, type);
      const int64_t wide = 2 * s.cols + s.more;
      const Codes none(s.rows, s.cols + s.more, 0), none2(s.rows, wide, 0);
      const BytesOnGpu codes(gpu(), none.view, nullptr), want(gpu(), none.view, nullptr);
      const BytesOnGpu alone(gpu(), none.view, nullptr);
      const BytesOnGpu dcodes(gpu(), none2.view, nullptr), dwant(gpu(), none2.view, nullptr);
      const OnGpu scales(gpu(), HostMatrix(s.rows, 1)), want_scales(gpu(), HostMatrix(s.rows, 1));
      const OnGpu dscales(gpu(), HostMatrix(s.rows, 1)), dwant_scales(gpu(), HostMatrix(s.rows, 1));
      Arena nothing = scratch(1);

      swiglu_forward(gpu(), in.view, plain.view);
      fp8_quantize(gpu(), {.x = plain.view, .codes = want.view, .scales = want_scales.view});
      swiglu_forward(gpu(), in.view, h.view, {}, {codes.view, scales.view});
      EXPECT_TRUE(same_bits(h.host(), plain.host()));
      EXPECT_EQ(codes.host(), want.host());
      swiglu_forward(gpu(), in.view, {}, {}, {alone.view, scales.view});
      EXPECT_EQ(alone.host(), want.host());

      for (const bool scaled : {false, true}) {
        const Tensor by = scaled ? factors.view : Tensor{};
        swiglu_backward(gpu(), {grad.view, in.view, dplain.view}, nothing);
        fp8_quantize(
            gpu(), {.x = dplain.view, .column_scales = by, .codes = dwant.view, .scales = dwant_scales.view});
        swiglu_backward(gpu(), {grad.view, in.view, din.view, {}, {dcodes.view, dscales.view, by}}, nothing);
        EXPECT_TRUE(same_bits(din.host(), dplain.host()));
        EXPECT_EQ(dcodes.host(), dwant.host());
        const HostMatrix got = dscales.host(), expected = dwant_scales.host();
        for (int64_t r = 0; r < s.rows; ++r) {
          EXPECT_EQ(std::isnan(got(r, 0)), std::isnan(expected(r, 0)));
          if (std::isnan(expected(r, 0))) continue;
          EXPECT_EQ(got(r, 0), expected(r, 0));
        }
      }
      const HostMatrix got = scales.host(), expected = want_scales.host();
      for (int64_t r = 0; r < s.rows; ++r)
        EXPECT_TRUE(r == 1 ? std::isnan(got(r, 0)) : got(r, 0) == expected(r, 0)) << r;
    }
  }
}

TEST_F(QuantizersGpu, SwigluBackwardWithLoraWritesTheCodesOfItsRows) {
  constexpr int64_t kRank = 16;
  struct Shape {
    int64_t rows, cols, more;
  };
  for (const auto& [rows, cols, more] : {Shape{70, 264, 8}, {9, 11008, 0}, {3, 37, 11}}) {
    for (const DType type : {DType::kBF16, DType::kF32}) {
      SCOPED_TRACE(shape_name(type, rows, cols, more));
      Identities id(gpu(), rows);
      const HostMatrix gate_up = rounded(uneven_rows(rows, 2 * cols, 5), type);
      const HostMatrix dh = rounded(HostMatrix::normal(rows, cols, 6), type);
      const OnGpu in(gpu(), gate_up, type), dout(gpu(), HostMatrix::normal(rows, kRank, 7), type);
      const OnGpu a(gpu(), HostMatrix::normal(kRank, cols, 8), type);
      Arena memory = scratch(swiglu_scratch_bytes(gpu().device(), rows, cols, type));
      const Codes none(rows, 2 * cols + more, 0x55);
      const BytesOnGpu codes(gpu(), none.view, none.bytes().data()),
          want(gpu(), none.view, none.bytes().data());
      const OnGpu scales(gpu(), HostMatrix(rows, 1)), want_scales(gpu(), HostMatrix(rows, 1));
      const auto run = [&](const Fp8Rows& rows_of_codes) -> Outputs {
        const OnGpu grad(gpu(), dh, type), din(gpu(), gate_up, type), da(gpu(), HostMatrix(kRank, cols));
        swiglu_backward(gpu(),
                        {grad.view,
                         in.view,
                         din.view,
                         {dout.view, a.view, 0.5F, id.on_gpu(0.1F), da.view},
                         rows_of_codes},
                        memory);
        if (!rows_of_codes.present()) fp8_quantize_rows(gpu(), din.view, {want.view, want_scales.view});
        return {grad.host(), din.host(), da.host()};
      };
      const Outputs plain = run({}), with_codes = run({codes.view, scales.view});
      for (size_t i = 0; i < plain.size(); ++i) EXPECT_TRUE(same_bits(with_codes[i], plain[i])) << i;
      EXPECT_EQ(codes.host(), want.host());
      EXPECT_EQ(scales.host().values(), want_scales.host().values());
    }
  }
}

TEST_F(QuantizersGpu, RmsNormWritesTheCodesOfItsRows) {
  struct Shape {
    int64_t rows, cols, more;
  };
  for (const Shape& s : {Shape{70, 256, 0}, {9, 4096, 0}, {9, 5120, 16}, {5, 10240, 0}, {5, 37, 11}}) {
    for (const DType type : {DType::kBF16, DType::kF32}) {
      SCOPED_TRACE(shape_name(type, s.rows, s.cols, s.more));
      HostMatrix x = rounded(uneven_rows(s.rows, s.cols, 5), type);
      for (int64_t i = 0; i < s.cols; ++i) x(2, i) = 0;
      x(1, 3) = std::numeric_limits<float>::quiet_NaN();
      const HostMatrix w = rounded(HostMatrix::normal(1, s.cols, 6), type);
      const OnGpu gx(gpu(), x, type), gw(gpu(), w, type), y(gpu(), x, type), plain(gpu(), x, type);
      const OnGpu dropped(gpu(), x, type), rstd(gpu(), HostMatrix(1, s.rows));
      const OnGpu scales(gpu(), HostMatrix(s.rows, 1)), want_scales(gpu(), HostMatrix(s.rows, 1));
      const Codes none(s.rows, s.cols + s.more, 0x55);
      const BytesOnGpu codes(gpu(), none.view, none.bytes().data());
      const BytesOnGpu alone(gpu(), none.view, none.bytes().data());
      const BytesOnGpu want(gpu(), none.view, none.bytes().data());
      rmsnorm_forward(gpu(), {gx.view, {}, {}, gw.view, 1e-5F, plain.view, rstd.view});
      fp8_quantize_rows(gpu(), plain.view, {want.view, want_scales.view});
      rmsnorm_forward(gpu(),
                      {gx.view, {}, {}, gw.view, 1e-5F, y.view, rstd.view, {}, {codes.view, scales.view}});
      EXPECT_TRUE(same_bits(y.host(), plain.host()));
      EXPECT_EQ(codes.host(), want.host());
      rmsnorm_forward(
          gpu(),
          {gx.view, {}, {}, gw.view, 1e-5F, {}, rstd.view, {{}, dropped.view}, {alone.view, scales.view}});
      EXPECT_EQ(alone.host(), want.host());
      EXPECT_TRUE(same_bits(dropped.host(), plain.host()));
      const HostMatrix got = scales.host(), expected = want_scales.host();
      for (int64_t r = 0; r < s.rows; ++r)
        EXPECT_TRUE(r == 1 ? std::isnan(got(r, 0)) : got(r, 0) == expected(r, 0)) << r;
    }
  }
}

TEST_F(QuantizersGpu, Nf4IsBitForBit) {
  struct Shape {
    int64_t rows, cols, col, width;
  };
  for (const Shape& s : {Shape{96, 256, 0, 256},
                         {33, 65, 0, 65},
                         {70, 333, 50, 201},
                         {40, 1024, 512, 512},
                         {40, 8192, 0, 8192},
                         {2500, 72, 0, 72},
                         {40, 152, 16, 88}}) {
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
    // Quantised there, in two slices.
    const OnGpu values(gpu(), w), absmax(gpu(), HostMatrix(1, nf4_tensor_blocks(s.rows, s.cols)));
    fill_zero(gpu(), absmax.view);
    const auto slice = [&](int64_t begin, int64_t end) {
      return Nf4Rows{values.view.row_range(begin, end), begin};
    };
    nf4_absmax(gpu(), slice(0, 19), absmax.view);
    nf4_absmax(gpu(), slice(19, s.rows), absmax.view);
    Nf4Quantizer from_gpu(s.rows, s.cols);
    ASSERT_EQ(from_gpu.set_absmax(absmax.host().data), -1);
    from_gpu.quantize_absmax(cpu);
    EXPECT_EQ(from_gpu.absmax_codes(), q.absmax_codes());
    EXPECT_EQ(from_gpu.nested_absmax(), q.nested_absmax());
    nf4_quantize(gpu(), slice(0, 19), s.col, absmax.view, there.row_range(0, 19));
    nf4_quantize(gpu(), slice(19, s.rows), s.col, absmax.view, there.row_range(19, s.rows));
    std::vector<uint8_t> codes(static_cast<size_t>(there.codes.bytes()));
    copy_to_host(gpu(), there.codes, codes.data());
    const uint8_t* want_codes = here.codes.u8();
    EXPECT_EQ(codes, std::vector<uint8_t>(want_codes, want_codes + codes.size()));
    for (const auto& [from, to] :
         {std::pair(here.absmax, there.absmax), {here.nested, there.nested}, {here.first, there.first}})
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
