// As ops_gpu_bench, of the operations of quantised frozen weights: quantisers of activations, operations that write
// codes with their rows, NF4, and FP8 GEMMs. A line has milliseconds and the rate of the bytes that the operation must
// move (LoRA's GEMMs are in the time of swiglu_backward, not in its bytes), or of the GEMM. Takes some six seconds.
#include <random>

#include "ops/fp8.h"
#include "ops/fp8_gemm.h"
#include "ops/nf4.h"
#include "ops/rmsnorm.h"
#include "ops/swiglu.h"
#include "tests/bench/gpu_bench.h"

namespace pesc {
namespace {

Fp8Rows codes_of(Bench& b, int64_t rows, int64_t cols) {
  return {b.memory.allocate(rows, cols, DType::kE4M3), b.memory.allocate(rows, 1)};
}

void quantizers(Bench& b) {
  for (const int64_t cols : {kHidden, kFfn, 3 * kHidden, 2 * kFfn}) {
    const Arena::Scope scope(b.memory);
    const Tensor x = b.random(kTokens, cols);
    Fp8Rows rows = codes_of(b, kTokens, cols);
    const double bytes = bytes_of({x, rows.codes});
    b.time(str_cat("fp8_quantize ", cols), Rate::kBytes, bytes, [&] { fp8_quantize_rows(b.s, x, rows); });
    rows.column_scales =
        b.array(std::vector<float>(static_cast<size_t>(cols), 0.5F), DType::kF32).reshaped(1, cols);
    b.time(str_cat("fp8_quantize ", cols, ", column scales"), Rate::kBytes, bytes,
           [&] { fp8_quantize_rows(b.s, x, rows); });
  }
  const Dropout mask = mask_of(b);
  {
    const Arena::Scope scope(b.memory);
    const Tensor gate_up = b.random(kTokens, 2 * kFfn), h = b.random(kTokens, kFfn),
                 dropped = b.random(kTokens, kFfn);
    Fp8Rows rows = codes_of(b, kTokens, 2 * kFfn);
    Fp8Rows of_h = rows;
    of_h.codes = rows.codes.leading(kTokens, kFfn);
    b.time("swiglu_forward, dropped, codes", Rate::kBytes, bytes_of({gate_up, dropped, of_h.codes}), [&] {
      swiglu_forward(b.s, gate_up, {}, {mask, dropped}, of_h);
    });
    rows.column_scales = b.array(std::vector<float>(2 * kFfn, 0.5F), DType::kF32).reshaped(1, 2 * kFfn);
    const Tensor dout = b.random(kTokens, kRank), a = b.random(kRank, kFfn, DType::kBF16, 0.1F);
    const Tensor da = b.zero(kRank, kFfn, DType::kF32);
    const LoraBranch branch{dout, a, 0.25F, mask, da};
    b.time("swiglu_backward, LoRA", Rate::kBytes, bytes_of({gate_up, gate_up, h, h, h}), [&] {
      swiglu_backward(b.s, {h, gate_up, gate_up, branch}, b.memory);
    });
    b.time("swiglu_backward, LoRA, codes", Rate::kBytes, bytes_of({gate_up, gate_up, h, h, h, rows.codes}),
           [&] {
             swiglu_backward(b.s, {h, gate_up, gate_up, branch, rows}, b.memory);
           });
  }
  {
    const Arena::Scope scope(b.memory);
    const Tensor x = b.random(kTokens, kHidden), y = b.random(kTokens, kHidden),
                 dropped = b.random(kTokens, kHidden);
    const Tensor w = b.random(1, kHidden), rstd = b.zero(1, kTokens, DType::kF32);
    const Fp8Rows rows = codes_of(b, kTokens, kHidden);
    b.time("rmsnorm, y, dropped", Rate::kBytes, bytes_of({x, y, dropped}), [&] {
      rmsnorm_forward(b.s, {x, {}, {}, w, 1e-5F, y, rstd, {mask, dropped}});
    });
    b.time("rmsnorm, y, dropped, codes", Rate::kBytes, bytes_of({x, y, dropped, rows.codes}), [&] {
      rmsnorm_forward(b.s, {x, {}, {}, w, 1e-5F, y, rstd, {mask, dropped}, rows});
    });
    b.time("rmsnorm, dropped, codes", Rate::kBytes, bytes_of({x, dropped, rows.codes}), [&] {
      rmsnorm_forward(b.s, {x, {}, {}, w, 1e-5F, {}, rstd, {mask, dropped}, rows});
    });
  }
  for (const auto& [out, in] :
       {std::pair{kHidden, kHidden}, std::pair{2 * kFfn, kHidden}, std::pair{kHidden, kFfn}}) {
    const Arena::Scope scope(b.memory);
    const Nf4Matrix w = Nf4Matrix::allocate(b.memory, out, in);
    std::mt19937 random(3);
    std::vector<uint8_t> bytes(static_cast<size_t>(w.codes.bytes()));
    for (uint8_t& v : bytes) v = static_cast<uint8_t>(random());
    copy_from_host(b.s, bytes.data(), w.codes);
    copy_from_host(b.s, bytes.data(), w.absmax);
    copy_from_host(b.s, std::vector<float>(static_cast<size_t>(w.nested.size()), 0.01F).data(), w.nested);
    std::vector<int32_t> first(static_cast<size_t>(out));
    for (size_t r = 0; r < first.size(); ++r)
      first[r] = static_cast<int32_t>(static_cast<int64_t>(r) * in % kNf4Group);
    copy_from_host(b.s, first.data(), w.first);
    const std::string shape = str_cat(" ", out, "x", in);
    const Tensor wide = b.memory.allocate(out, in + kRank, DType::kBF16);
    b.time("nf4_dequantize" + shape, Rate::kBytes, static_cast<double>(w.bytes() + 2 * out * in),
           [&] { nf4_dequantize(b.s, w, 0, wide.col_range(0, in)); });
    const Tensor scales = b.memory.allocate(out, 1);
    copy_from_host(b.s, std::vector<float>(static_cast<size_t>(out), 0.5F).data(), scales);
    const Tensor codes = b.memory.allocate(out, in, DType::kE4M3);
    b.time("nf4_to_fp8" + shape, Rate::kBytes, static_cast<double>(w.bytes() + out * in),
           [&] { nf4_to_fp8(b.s, w, scales, codes); });
    const Tensor turned = b.memory.allocate(in, out, DType::kE4M3);
    b.time("fp8_transpose" + shape, Rate::kBytes, bytes_of({codes, codes}),
           [&] { fp8_transpose(b.s, codes, turned); });
  }
}

void fp8_gemms(Bench& b) {
  if (!multiplies_fp8(cuda::device_info(0))) return;
  const std::vector<int64_t> shapes[] = {
      {3 * kHidden, kHidden}, {kHidden, kHidden}, {2 * kFfn, kHidden}, {kHidden, kFfn}};
  for (const auto& shape : shapes) {
    for (const bool backward : {false, true}) {
      const Arena::Scope scope(b.memory);
      const int64_t n = shape[backward ? 1 : 0], k = shape[backward ? 0 : 1];
      const Fp8Rows x = codes_of(b, kTokens, k), w = codes_of(b, n, k);
      {
        const Arena::Scope inner(b.memory);
        fp8_quantize_rows(b.s, b.random(kTokens, k), x);
        fp8_quantize_rows(b.s, b.random(n, k), w);
      }
      const Tensor y = b.zero(kTokens, n);
      for (const auto accumulation : {Fp8Accumulation::kFull, Fp8Accumulation::kFast}) {
        for (const float beta : {0.0F, 1.0F}) {
          if (backward && beta != 0) continue;
          b.time(
              str_cat("fp8_gemm n ", n, " k ", k, accumulation == Fp8Accumulation::kFull ? " full" : " fast",
                      beta != 0 ? " added" : ""),
              Rate::kFlops, 2.0 * static_cast<double>(kTokens * n * k), [&] {
                fp8_gemm(b.s, {x.codes, x.scales, w.codes, w.scales, y, beta, accumulation}, b.memory);
              });
        }
      }
    }
  }
}

int run() {
  if (!cuda::built() || cuda::device_count() == 0) {
    std::printf("quantized_gpu_bench: there is no GPU here; nothing to time\n");
    return 0;
  }
  Stream stream(Device{.kind = DeviceKind::kCuda});
  Bench b(stream);
  quantizers(b);
  fp8_gemms(b);
  return 0;
}

}  // namespace
}  // namespace pesc

int main() {
  return pesc::run();
}
