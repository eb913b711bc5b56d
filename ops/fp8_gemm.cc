#include "ops/fp8_gemm.h"

#include "ops/core/check.h"
#include "ops/core/e4m3.h"
#include "ops/core/threads.h"
#include "ops/cuda_ops.h"

namespace pesc {

void fp8_gemm(Stream& stream, const Fp8Gemm& args, Arena& scratch) {
  const auto& [a, a_scales, b, b_scales, c, beta, accumulation] = args;
  PESC_CHECK(a.cols == b.cols && c.rows == a.rows && c.cols == b.rows, "FP8 GEMM of ", a.rows, "x", a.cols,
             " and ", b.rows, "x", b.cols, "^T into ", c.rows, "x", c.cols);
  PESC_CHECK(a_scales.rows == a.rows && a_scales.cols == 1 && a_scales.contiguous(), a_scales.rows, "x",
             a_scales.cols, " scales of ", a.rows, " rows");
  PESC_CHECK(b_scales.cols == 0 || (b_scales.rows == b.rows && b_scales.cols == 1 && b_scales.contiguous()),
             b_scales.rows, "x", b_scales.cols, " scales of ", b.rows, " rows");
  if (stream.on_cuda()) return cuda_ops().fp8_gemm(stream, args, scratch);
  const uint8_t* codes_a = a.e4m3();
  const uint8_t* codes_b = b.e4m3();
  const float* scale_a = a_scales.f32();
  const float* scale_b = b_scales.cols > 0 ? b_scales.f32() : nullptr;
  float* out = c.f32();
  const float factor = beta;
  const Tensor &ta = a, &tb = b, &tc = c;
  parallel_for(stream, c.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < tc.cols; ++j) {
        double sum = 0;
        for (int64_t l = 0; l < ta.cols; ++l)
          sum += static_cast<double>(e4m3_to_f32(codes_a[i * ta.ld + l])) *
                 static_cast<double>(e4m3_to_f32(codes_b[j * tb.ld + l]));
        sum *= static_cast<double>(scale_a[i]) * (scale_b != nullptr ? static_cast<double>(scale_b[j]) : 1.0);
        float& to = out[i * tc.ld + j];
        if (factor != 0.0F) sum += static_cast<double>(factor) * static_cast<double>(to);
        to = static_cast<float>(sum);
      }
    }
  });
}

int64_t fp8_gemm_scratch_bytes(const Device& device, int64_t n) {
  if (device.kind != DeviceKind::kCuda) return 0;
  Arena arena = Arena::planning("scales");
  (void)arena.allocate(n, 1);
  return arena.peak();
}

}  // namespace pesc
