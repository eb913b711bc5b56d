// AdamW on a GPU: one pass over the four buffers and the bf16 compute weight. The scalars of the step are
// computed as on the CPU (ops/adamw.cc).
#include <cmath>

#include "ops/adamw.h"
#include "ops/core/vectors.cuh"
#include "ops/cuda_ops.h"

namespace pesc::cuda {
namespace {

struct Scalars {
  float decay, beta1, rest1, beta2, rest2, rate, inverse_root2, eps, grad_scale;
};

template <int N>
__global__ void update(Scalars s, float* param, const float* grad, float* exp_avg, float* exp_avg_sq,
                       View<bf16> copy, int64_t n) {
  for (int64_t i = first_index(); i < n / N; i += index_step()) {
    auto p = load_pack<N>(param + i * N);
    const auto gradient = load_pack<N>(grad + i * N);
    auto m = load_pack<N>(exp_avg + i * N);
    auto v = load_pack<N>(exp_avg_sq + i * N);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float g = gradient.v[j] * s.grad_scale;
      m.v[j] = s.beta1 * m.v[j] + s.rest1 * g;
      v.v[j] = s.beta2 * v.v[j] + s.rest2 * g * g;
      p.v[j] = s.decay * p.v[j] - s.rate * m.v[j] / (sqrtf(v.v[j]) * s.inverse_root2 + s.eps);
    }
    store_pack<N>(param + i * N, p);
    store_pack<N>(exp_avg + i * N, m);
    store_pack<N>(exp_avg_sq + i * N, v);
    if (copy.data == nullptr) continue;
    const int64_t row = copy.ld == copy.cols ? 0 : i * N / copy.cols;
    store_floats<N>(copy.row(row) + (i * N - row * copy.cols), p.v);
  }
}

}  // namespace

void adamw(Stream& stream, const AdamW& args) {
  const int64_t n = args.param.size();
  for (const Tensor* t : {&args.param, &args.grad, &args.exp_avg, &args.exp_avg_sq})
    PESC_CHECK(t->size() == n && t->contiguous() && t->dtype == DType::kF32,
               "flat F32 buffers of one size; got ", t->size(), " ", dtype_name(t->dtype), " and ", n);
  const bool copied = args.compute_weight.present();
  PESC_CHECK(!copied || (args.compute_weight.size() == n && args.compute_weight.dtype == DType::kBF16),
             "a copy of ", args.compute_weight.size(), " ", dtype_name(args.compute_weight.dtype), " for ",
             n);
  PESC_CHECK(args.step >= 1, "step ", args.step);
  if (n == 0) return;
  const auto step = static_cast<double>(args.step);
  const double correction1 = 1.0 - std::pow(args.beta1, step);
  const double correction2 = 1.0 - std::pow(args.beta2, step);
  const Scalars scalars = {
      .decay = static_cast<float>(1.0 - args.lr * args.weight_decay),
      .beta1 = static_cast<float>(args.beta1),
      .rest1 = static_cast<float>(1.0 - args.beta1),
      .beta2 = static_cast<float>(args.beta2),
      .rest2 = static_cast<float>(1.0 - args.beta2),
      .rate = static_cast<float>(args.lr / correction1),
      .inverse_root2 = static_cast<float>(1.0 / std::sqrt(correction2)),
      .eps = static_cast<float>(args.eps),
      .grad_scale = args.grad_scale,
  };
  const Tensor p = flat(args.param);
  const Tensor g = flat(args.grad);
  const Tensor m = flat(args.exp_avg);
  const Tensor v = flat(args.exp_avg_sq);
  const Tensor c =
      copied && args.compute_weight.contiguous() ? flat(args.compute_weight) : args.compute_weight;
  // A pack of the compute weight has half the bytes, and must lie in one row.
  with_pack<float>({p, g, m, v, c}, [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    update<kWidth><<<blocks_for(n / kWidth), kThreads, 0, stream_of(stream)>>>(
        scalars, p.f32(), g.f32(), m.f32(), v.f32(), view_or_none<bf16>(c), n);
    PESC_LAUNCHED("adamw");
  });
}

}  // namespace pesc::cuda
