// The kernels of the router: see ops/router.cu.
#pragma once

#include "ops/core/vectors.cuh"
#include "ops/router.h"
#include "ops/router_scratch.h"

namespace pesc::cuda {

inline constexpr int kTokens = 4;   // of a warp
inline constexpr int kExperts = 8;  // at one time

// logits[t, e] = sum_h x[t, h] weight[e, h]; one warp for kTokens tokens.
template <int N>
static __global__ void logits_kernel(View<const float> x, View<const float> weight, View<float> logits) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t first = first_index() / kWarp * kTokens;
  if (first >= x.rows) return;
  for (int64_t e0 = 0; e0 < weight.rows; e0 += kExperts) {
    float sums[kTokens][kExperts] = {};
    for (int64_t i = lane; i < x.cols / N; i += kWarp) {
      float in[kTokens][N];
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const int64_t row = first + t < x.rows ? first + t : x.rows - 1;
        load_floats<N>(x.row(row) + i * N, in[t]);
      }
#pragma unroll
      for (int e = 0; e < kExperts; ++e) {
        const int64_t row = e0 + e < weight.rows ? e0 + e : weight.rows - 1;
        float w[N];
        load_floats<N>(weight.row(row) + i * N, w);
#pragma unroll
        for (int t = 0; t < kTokens; ++t)
#pragma unroll
          for (int j = 0; j < N; ++j) sums[t][e] += in[t][j] * w[j];
      }
    }
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
#pragma unroll
      for (int e = 0; e < kExperts; ++e) {
        const float total = warp_sum(sums[t][e]);
        if (lane == 0 && first + t < x.rows && e0 + e < weight.rows) logits.row(first + t)[e0 + e] = total;
      }
    }
  }
}

// v = p0 + p1 + p2, each what is left rounded to bf16: exactly, but for numbers near the smallest.
__device__ __forceinline__ void parts_of(float v, bf16 (&parts)[kRouterParts]) {
#pragma unroll
  for (int p = 0; p < kRouterParts; ++p) {
    parts[p] = from_float<bf16>(v);
    v -= as_float(parts[p]);
  }
}

// weight [E, H] -> parts [P E, H]
static __global__ void split_weight(View<const float> weight, View<bf16> parts) {
  PESC_FOR_ROWS(e, weight.rows) {
    PESC_FOR_COLUMNS(c, weight.cols) {
      bf16 some[kRouterParts];
      parts_of(weight.row(e)[c], some);
#pragma unroll
      for (int p = 0; p < kRouterParts; ++p) parts.row(p * weight.rows + e)[c] = some[p];
    }
  }
}

// A number to rank by.
__device__ __forceinline__ float rank_of(float logit) {
  return isnan(logit) ? -INFINITY : logit;
}

// Writes the k largest of `logits` in falling order; of equal ones the lower expert first.
__device__ inline void top_k(const float* logits, int64_t experts, int32_t* chosen, int64_t k) {
  int64_t held = 0;
  for (int64_t e = 0; e < experts; ++e) {
    const float rank = rank_of(logits[e]);
    if (held == k) {
      if (!(rank > rank_of(logits[chosen[held - 1]]))) continue;
      --held;  // the last one falls out
    }
    int64_t at = held++;
    for (; at > 0 && rank > rank_of(logits[chosen[at - 1]]); --at) chosen[at] = chosen[at - 1];
    chosen[at] = static_cast<int32_t>(e);
  }
}

// out[i] = softmax over in[index(i)]
template <class Index>
__device__ void softmax(const float* in, int64_t n, Index index, float* out) {
  float top = in[index(0)];
  for (int64_t i = 1; i < n; ++i) top = top < in[index(i)] ? in[index(i)] : top;
  float total = 0;
  for (int64_t i = 0; i < n; ++i) {
    out[i] = expf(in[index(i)] - top);
    total += out[i];
  }
  const float inverse = 1.0F / total;
  for (int64_t i = 0; i < n; ++i) out[i] *= inverse;
}

struct Every {
  __device__ __forceinline__ int64_t operator()(int64_t i) const { return i; }
};
struct Chosen {
  const int32_t* experts;
  __device__ __forceinline__ int64_t operator()(int64_t i) const { return experts[i]; }
};

// logits [T, P E]: the parts are added up in the first E columns.
static __global__ void route_kernel(View<float> logits, Routing routing, View<float> probs,
                                    View<int32_t> experts, View<float> weights) {
  for (int64_t t = first_index(); t < logits.rows; t += index_step()) {
    float* row = logits.row(t);
    for (int64_t e = probs.cols; e < logits.cols; ++e) row[e % probs.cols] += row[e];
    int32_t* chosen = experts.row(t);
    if (routing == Routing::kTopK) {
      top_k(row, probs.cols, chosen, experts.cols);
    } else {
      for (int64_t j = 0; j < experts.cols; ++j) check_index("a replayed expert", chosen[j], probs.cols);
    }
    softmax(row, experts.cols, Chosen{chosen}, weights.row(t));
    softmax(row, probs.cols, Every{}, probs.row(t));
  }
}

// partial[run, expert] = {assignments, sum of probs} over the run's tokens
static __global__ void stats_runs(View<const float> probs, View<const int32_t> experts, int64_t run,
                                  double2* partial) {
  const int64_t e = blockIdx.y;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * run;
  const int64_t end = begin + run < probs.rows ? begin + run : probs.rows;
  double count = 0;
  double prob = 0;
  for (int64_t t = begin + threadIdx.x; t < end; t += blockDim.x) {
    for (int64_t j = 0; j < experts.cols; ++j) count += experts.row(t)[j] == e ? 1 : 0;
    prob += probs.row(t)[e];
  }
  count = block_sum(count);
  prob = block_sum(prob);
  if (threadIdx.x == 0) partial[static_cast<int64_t>(blockIdx.x) * gridDim.y + e] = {count, prob};
}

static __global__ void add_stats(const double2* partial, int64_t runs, View<float> stats) {
  for (int64_t e = first_index(); e < stats.cols; e += index_step()) {
    double count = 0;
    double prob = 0;
    for (int64_t run = 0; run < runs; ++run) {
      count += partial[run * stats.cols + e].x;
      prob += partial[run * stats.cols + e].y;
    }
    stats.row(0)[e] += static_cast<float>(count);
    stats.row(1)[e] += static_cast<float>(prob);
  }
}

// And `parts` [T, P E], where there is one, of rstd dlogits.
static __global__ void logit_gradients(View<const float> probs, View<const int32_t> experts,
                                       View<const float> weights, View<const float> dweights,
                                       const float* aux_loss_grad, View<float> dlogits, const float* rstd,
                                       View<bf16> parts) {
  for (int64_t t = first_index(); t < dlogits.rows; t += index_step()) {
    const float* p = probs.row(t);
    float* d = dlogits.row(t);
    float mean = 0;
    for (int64_t e = 0; e < dlogits.cols; ++e) mean += p[e] * aux_loss_grad[e];
    for (int64_t e = 0; e < dlogits.cols; ++e) d[e] = p[e] * (aux_loss_grad[e] - mean);
    const float* w = weights.row(t);
    const float* dw = dweights.row(t);
    float dot = 0;
    for (int64_t j = 0; j < experts.cols; ++j) dot += w[j] * dw[j];
    for (int64_t j = 0; j < experts.cols; ++j) {
      const int64_t e = experts.row(t)[j];
      check_index("a chosen expert", e, dlogits.cols);
      d[e] += w[j] * (dw[j] - dot);
    }
    if (parts.data == nullptr) continue;
    const float r = rstd != nullptr ? rstd[t] : 1.0F;
    for (int64_t e = 0; e < dlogits.cols; ++e) {
      bf16 some[kRouterParts];
      parts_of(d[e] * r, some);
#pragma unroll
      for (int p = 0; p < kRouterParts; ++p) parts.row(t)[p * dlogits.cols + e] = some[p];
    }
  }
}

// partial[run, e, h] = sum over the run's tokens of rstd[t] dlogits[t, e] x[t, h], for kExperts experts of
// block z.
template <int N>
static __global__ void weight_runs(View<const float> dlogits, View<const float> x, const float* rstd,
                                   int64_t run, float* partial) {
  const int64_t c = first_index() * N;
  if (c >= x.cols) return;
  const int64_t experts = dlogits.cols;
  const int64_t e0 = static_cast<int64_t>(blockIdx.z) * kExperts;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * run;
  const int64_t end = begin + run < x.rows ? begin + run : x.rows;
  float sums[kExperts][N] = {};
#pragma unroll 4
  for (int64_t t = begin; t < end; ++t) {
    float in[N];
    load_floats<N>(x.row(t) + c, in);
    const float r = rstd != nullptr ? rstd[t] : 1.0F;
#pragma unroll
    for (int e = 0; e < kExperts; ++e) {
      const float d = r * dlogits.row(t)[e0 + e < experts ? e0 + e : experts - 1];
#pragma unroll
      for (int j = 0; j < N; ++j) sums[e][j] += d * in[j];
    }
  }
#pragma unroll
  for (int e = 0; e < kExperts; ++e)
    if (e0 + e < experts)
      store_floats<N>(partial + (static_cast<int64_t>(blockIdx.y) * experts + e0 + e) * x.cols + c, sums[e]);
}

// dweight += norm (partial[0] + partial[1] + ...), norm [1, H] or absent.
template <class W>
static __global__ void add_weight_runs(const float* partial, int64_t runs, View<const W> norm,
                                       View<float> dweight) {
  PESC_FOR_ROWS(e, dweight.rows) {
    PESC_FOR_COLUMNS(c, dweight.cols) {
      float total = 0;
      for (int64_t run = 0; run < runs; ++run) total += partial[(run * dweight.rows + e) * dweight.cols + c];
      dweight.row(e)[c] += norm.data != nullptr ? total * as_float(norm.row(0)[c]) : total;
    }
  }
}

static __global__ void aux_loss_kernel(View<const float> stats, double tokens, double top_k, double coef,
                                       float* loss, float* aux_loss_grad) {
  const auto experts = static_cast<double>(stats.cols);
  double total = 0;
  for (int64_t e = 0; e < stats.cols; ++e) {
    const double share = tokens > 0 ? stats.row(0)[e] / (tokens * top_k) : 0;
    const double mean_prob = tokens > 0 ? stats.row(1)[e] / tokens : 0;
    total += share * mean_prob;
    aux_loss_grad[e] = tokens > 0 ? static_cast<float>(coef * experts * share / tokens) : 0.0F;
  }
  loss[0] = static_cast<float>(experts * total);
}

}  // namespace pesc::cuda
