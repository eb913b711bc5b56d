// The router on a GPU. A warp makes the logits of kTokens tokens in float32, whatever the element type of x;
// a thread then routes one token. Statistics are summed in double, over runs of tokens and then over the
// runs; so is the router's gradient, in float32.
//
// A logit that is not a number ranks below every other, as on the CPU. An expert number out of range (of a
// replayed choice) ends the kernel with an error. T tokens, H hidden, E experts, k choices.
#include "ops/core/vectors.cuh"
#include "ops/cuda_ops.h"
#include "ops/router.h"

namespace pesc::cuda {
namespace {

constexpr int kTokens = 4;   // of a warp
constexpr int kExperts = 8;  // at one time

// logits[t, e] = sum_h x[t, h] weight[e, h]; one warp for kTokens tokens.
template <int N, class T>
__global__ void logits_kernel(View<const T> x, View<const float> weight, View<float> logits) {
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

// A number to rank by.
__device__ __forceinline__ float rank_of(float logit) {
  return isnan(logit) ? -INFINITY : logit;
}

// Writes the k largest of `logits` in falling order; of equal ones the lower expert first.
__device__ void top_k(const float* logits, int64_t experts, int32_t* chosen, int64_t k) {
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

__global__ void route_kernel(View<const float> logits, Routing routing, View<float> probs,
                             View<int32_t> experts, View<float> weights) {
  for (int64_t t = first_index(); t < logits.rows; t += index_step()) {
    const float* row = logits.row(t);
    int32_t* chosen = experts.row(t);
    if (routing == Routing::kTopK) {
      top_k(row, logits.cols, chosen, experts.cols);
    } else {
      for (int64_t j = 0; j < experts.cols; ++j) check_index("a replayed expert", chosen[j], logits.cols);
    }
    softmax(row, experts.cols, Chosen{chosen}, weights.row(t));
    softmax(row, logits.cols, Every{}, probs.row(t));
  }
}

// partial[run, expert] = {assignments, sum of probs} over the run's tokens
__global__ void stats_runs(View<const float> probs, View<const int32_t> experts, int64_t run,
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

__global__ void add_stats(const double2* partial, int64_t runs, View<float> stats) {
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

__global__ void logit_gradients(View<const float> probs, View<const int32_t> experts,
                                View<const float> weights, View<const float> dweights,
                                const float* balance_grad, View<float> dlogits) {
  for (int64_t t = first_index(); t < dlogits.rows; t += index_step()) {
    const float* p = probs.row(t);
    float* d = dlogits.row(t);
    float mean = 0;
    for (int64_t e = 0; e < dlogits.cols; ++e) mean += p[e] * balance_grad[e];
    for (int64_t e = 0; e < dlogits.cols; ++e) d[e] = p[e] * (balance_grad[e] - mean);
    const float* w = weights.row(t);
    const float* dw = dweights.row(t);
    float dot = 0;
    for (int64_t j = 0; j < experts.cols; ++j) dot += w[j] * dw[j];
    for (int64_t j = 0; j < experts.cols; ++j) {
      const int64_t e = experts.row(t)[j];
      check_index("a chosen expert", e, dlogits.cols);
      d[e] += w[j] * (dw[j] - dot);
    }
  }
}

// partial[run, e, h] = sum over the run's tokens of dlogits[t, e] x[t, h], for kExperts experts of block z.
template <int N, class T>
__global__ void weight_runs(View<const float> dlogits, View<const T> x, int64_t run, float* partial) {
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
#pragma unroll
    for (int e = 0; e < kExperts; ++e) {
      const float d = dlogits.row(t)[e0 + e < experts ? e0 + e : experts - 1];
#pragma unroll
      for (int j = 0; j < N; ++j) sums[e][j] += d * in[j];
    }
  }
#pragma unroll
  for (int e = 0; e < kExperts; ++e)
    if (e0 + e < experts)
      store_floats<N>(partial + (static_cast<int64_t>(blockIdx.y) * experts + e0 + e) * x.cols + c, sums[e]);
}

__global__ void add_weight_runs(const float* partial, int64_t runs, View<float> dweight) {
  PESC_FOR_ROWS(e, dweight.rows) {
    PESC_FOR_COLUMNS(c, dweight.cols) {
      float total = 0;
      for (int64_t run = 0; run < runs; ++run) total += partial[(run * dweight.rows + e) * dweight.cols + c];
      dweight.row(e)[c] += total;
    }
  }
}

// dx[t, h] += sum_e dlogits[t, e] weight[e, h]; a thread takes kTokens tokens of N columns.
template <int N, class T>
__global__ void input_gradient(View<const float> dlogits, View<const float> weight, View<T> dx) {
  const int64_t groups = (dx.rows + kTokens - 1) / kTokens;
  PESC_FOR_ROWS(group, groups) {
    const int64_t first = group * kTokens;
    PESC_FOR_COLUMNS(i, dx.cols / N) {
      float sums[kTokens][N] = {};
      for (int64_t e = 0; e < weight.rows; ++e) {
        float w[N];
        load_floats<N>(weight.row(e) + i * N, w);
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
          const float d = dlogits.row(first + t < dx.rows ? first + t : dx.rows - 1)[e];
#pragma unroll
          for (int j = 0; j < N; ++j) sums[t][j] += d * w[j];
        }
      }
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        if (first + t >= dx.rows) break;
        float out[N];
        load_floats<N>(dx.row(first + t) + i * N, out);
#pragma unroll
        for (int j = 0; j < N; ++j) out[j] += sums[t][j];
        store_floats<N>(dx.row(first + t) + i * N, out);
      }
    }
  }
}

__global__ void balance_kernel(View<const float> stats, double tokens, double top_k, double coef, float* loss,
                               float* balance_grad) {
  const auto experts = static_cast<double>(stats.cols);
  double total = 0;
  for (int64_t e = 0; e < stats.cols; ++e) {
    const double share = tokens > 0 ? stats.row(0)[e] / (tokens * top_k) : 0;
    const double mean_prob = tokens > 0 ? stats.row(1)[e] / tokens : 0;
    total += share * mean_prob;
    balance_grad[e] = tokens > 0 ? static_cast<float>(coef * experts * share / tokens) : 0.0F;
  }
  loss[0] = static_cast<float>(experts * total);
}

void check(const Tensor& x, const Tensor& weight, const Tensor& probs, const Tensor& experts,
           const Tensor& weights) {
  PESC_CHECK(x.cols == weight.cols, "x has ", x.cols, " columns, the router ", weight.cols);
  PESC_CHECK(probs.rows == x.rows && probs.cols == weight.rows, "probs ", probs.rows, "x", probs.cols);
  PESC_CHECK(experts.rows == x.rows && weights.rows == x.rows && weights.cols == experts.cols, "experts ",
             experts.rows, "x", experts.cols, ", weights ", weights.rows, "x", weights.cols);
  PESC_CHECK(1 <= experts.cols && experts.cols <= weight.rows && weight.rows <= 65535, "top-", experts.cols,
             " of ", weight.rows);
}

constexpr int64_t kStatsRun = 1024;
constexpr int kWeightThreads = 128;

}  // namespace

void router_forward(Stream& stream, const RouterForward& args, Arena& scratch) {
  check(args.x, args.weight, args.probs, args.experts, args.weights);
  PESC_CHECK(args.stats.rows == 2 && args.stats.cols == args.weight.rows, "stats ", args.stats.rows, "x",
             args.stats.cols);
  const int64_t tokens = args.x.rows;
  if (tokens == 0) return;
  Arena::Scope scope(scratch);
  const Tensor logits = scratch.allocate(tokens, args.weight.rows);
  with_element(args.x.dtype, [&](auto element) {
    using T = decltype(element);
    with_pack<T>({args.x, args.weight}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const int64_t warps = (tokens + kTokens - 1) / kTokens;
      const auto blocks = static_cast<unsigned>((warps * kWarp + kThreads - 1) / kThreads);
      logits_kernel<kWidth, T><<<blocks, kThreads, 0, stream_of(stream)>>>(
          view<const T>(args.x), view<const float>(args.weight), view<float>(logits));
      PESC_LAUNCHED("router_logits");
    });
  });
  route_kernel<<<blocks_for(tokens, 64), 64, 0, stream_of(stream)>>>(
      view<const float>(logits), args.routing, view<float>(args.probs), view<int32_t>(args.experts),
      view<float>(args.weights));
  PESC_LAUNCHED("route");
  const int64_t most = Queue::kWorkspaceBytes / static_cast<int64_t>(sizeof(double2)) / args.weight.rows;
  const int64_t run = std::max(kStatsRun, (tokens + most - 1) / most);
  const int64_t runs = (tokens + run - 1) / run;
  auto* partial = partials<double2>(stream, runs * args.weight.rows);
  const dim3 grid(static_cast<unsigned>(runs), static_cast<unsigned>(args.weight.rows));
  stats_runs<<<grid, kThreads, 0, stream_of(stream)>>>(view<const float>(args.probs),
                                                       view<const int32_t>(args.experts), run, partial);
  PESC_LAUNCHED("stats_runs");
  add_stats<<<blocks_for(args.weight.rows), kThreads, 0, stream_of(stream)>>>(partial, runs,
                                                                              view<float>(args.stats));
  PESC_LAUNCHED("add_stats");
}

void router_backward(Stream& stream, const RouterBackward& args) {
  check(args.x, args.weight, args.probs, args.experts, args.weights);
  const int64_t tokens = args.x.rows;
  const int64_t experts = args.weight.rows;
  PESC_CHECK(args.dweights.rows == tokens && args.dweights.cols == args.experts.cols, "dweights ",
             args.dweights.rows, "x", args.dweights.cols);
  PESC_CHECK(args.balance_grad.size() == experts && args.balance_grad.contiguous(), "balance gradient of ",
             args.balance_grad.size());
  const Tensor& dlogits = args.dlogits;
  PESC_CHECK(args.dweight.rows == experts && args.dweight.cols == args.x.cols && dlogits.rows == tokens &&
                 dlogits.cols == experts,
             "dweight ", args.dweight.rows, "x", args.dweight.cols, ", dlogits ", dlogits.rows, "x",
             dlogits.cols);
  if (tokens == 0) return;
  logit_gradients<<<blocks_for(tokens, 64), 64, 0, stream_of(stream)>>>(
      view<const float>(args.probs), view<const int32_t>(args.experts), view<const float>(args.weights),
      view<const float>(args.dweights), args.balance_grad.f32(), view<float>(dlogits));
  PESC_LAUNCHED("logit_gradients");

  const int64_t most =
      std::min<int64_t>(128, Queue::kWorkspaceBytes / int64_t{sizeof(float)} / (experts * args.x.cols));
  PESC_CHECK(most >= 1, "a router of ", experts, "x", args.x.cols);
  const int64_t run = std::max<int64_t>(32, (tokens + most - 1) / most);
  const int64_t runs = (tokens + run - 1) / run;
  auto* partial = partials<float>(stream, runs * experts * args.x.cols);
  with_element(args.x.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int kHalf = 4;  // columns of a thread, whatever T: kExperts sums of each stay in registers
    const auto launch = [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const dim3 grid(static_cast<unsigned>((args.x.cols / kWidth + kWeightThreads - 1) / kWeightThreads),
                      static_cast<unsigned>(runs),
                      static_cast<unsigned>((experts + kExperts - 1) / kExperts));
      weight_runs<kWidth, T><<<grid, kWeightThreads, 0, stream_of(stream)>>>(
          view<const float>(dlogits), view<const T>(args.x), run, partial);
      PESC_LAUNCHED("router_weight_runs");
    };
    if (packs(args.x, kHalf)) {
      launch(std::integral_constant<int, kHalf>{});
    } else {
      launch(std::integral_constant<int, 1>{});
    }
    const RowGrid weights(experts, args.x.cols);
    add_weight_runs<<<weights.grid, weights.block, 0, stream_of(stream)>>>(partial, runs,
                                                                           view<float>(args.dweight));
    PESC_LAUNCHED("add_weight_runs");
  });
}

void add_router_term(Stream& stream, const RouterTerm& term, const Tensor& dx) {
  const int64_t tokens = term.dlogits.rows;
  PESC_CHECK(dx.rows == tokens && dx.cols == term.weight.cols && term.dlogits.cols == term.weight.rows,
             "dlogits ", tokens, "x", term.dlogits.cols, ", router ", term.weight.rows, "x", term.weight.cols,
             " for dx ", dx.rows, "x", dx.cols);
  if (dx.size() == 0) return;
  with_element(dx.dtype, [&](auto element) {
    using T = decltype(element);
    with_pack<T>({dx, term.weight}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const RowGrid g((tokens + kTokens - 1) / kTokens, dx.cols / kWidth);
      input_gradient<kWidth, T><<<g.grid, g.block, 0, stream_of(stream)>>>(
          view<const float>(term.dlogits), view<const float>(term.weight), view<T>(dx));
      PESC_LAUNCHED("router_input_gradient");
    });
  });
}

void balance_loss(Stream& stream, const Tensor& stats, double tokens, int64_t top_k, double coef,
                  const Tensor& loss, const Tensor& balance_grad) {
  PESC_CHECK(stats.rows == 2 && balance_grad.size() == stats.cols && balance_grad.contiguous() &&
                 loss.size() == 1 && top_k >= 1,
             "stats ", stats.rows, "x", stats.cols, ", gradient of ", balance_grad.size());
  balance_kernel<<<1, 1, 0, stream_of(stream)>>>(view<const float>(stats), tokens, static_cast<double>(top_k),
                                                 coef, loss.f32(), balance_grad.f32());
  PESC_LAUNCHED("balance_loss");
}

}  // namespace pesc::cuda
