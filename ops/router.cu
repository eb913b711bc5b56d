// The router on a GPU. The logits are float32 whatever the element type of x. For bf16 x they are a GEMM with
// the parts of the weight (ops/router_scratch.h), and the weight's gradient is one with the parts of dlogits;
// for float32 x a warp computes the logits of kTokens tokens, and the gradient is summed over runs of tokens
// and then over the runs.
// A thread routes one token. Statistics are summed in double, over runs of tokens and then over the runs.
//
// A logit that is not a number ranks below every other, as on the CPU. An expert number out of range (of a
// replayed choice) ends the kernel with an error. T tokens, H hidden, E experts, k choices.
#include "ops/cuda_ops.h"
#include "ops/router.h"
#include "ops/router_kernels.cuh"

namespace pesc::cuda {
namespace {

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
  check(args.x, args.weight, args.probs, args.topk_indices, args.topk_weights);
  PESC_CHECK(args.stats.rows == 2 && args.stats.cols == args.weight.rows, "stats ", args.stats.rows, "x",
             args.stats.cols);
  const int64_t tokens = args.x.rows;
  if (tokens == 0) return;
  Arena::Scope scope(scratch);
  const RouterScratch s(scratch, tokens, args.weight.rows, args.x.cols, args.x.dtype, false);
  const Tensor& logits = s.product;
  if (s.parts > 1) {
    const RowGrid g(args.weight.rows, args.x.cols);
    split_weight<<<g.grid, g.block, 0, stream_of(stream)>>>(view<const float>(args.weight),
                                                            view<bf16>(s.factor));
    PESC_LAUNCHED("router_split_weight");
    cuda::gemm(stream, {.a = args.x, .b = s.factor, .trans_b = Transpose::kYes, .c = logits});
  } else {
    with_pack<float>({args.x, args.weight}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const int64_t warps = (tokens + kTokens - 1) / kTokens;
      const auto blocks = static_cast<unsigned>((warps * kWarp + kThreads - 1) / kThreads);
      logits_kernel<kWidth><<<blocks, kThreads, 0, stream_of(stream)>>>(
          view<const float>(args.x), view<const float>(args.weight), view<float>(logits));
      PESC_LAUNCHED("router_logits");
    });
  }
  route_kernel<<<blocks_for(tokens, 64), 64, 0, stream_of(stream)>>>(
      view<float>(logits), args.routing, view<float>(args.probs), view<int32_t>(args.topk_indices),
      view<float>(args.topk_weights));
  PESC_LAUNCHED("route");
  const int64_t most = CudaStream::kWorkspaceBytes / static_cast<int64_t>(sizeof(double2)) / args.weight.rows;
  const int64_t run = std::max(kStatsRun, (tokens + most - 1) / most);
  const int64_t runs = (tokens + run - 1) / run;
  auto* partial = partials<double2>(stream, runs * args.weight.rows);
  const dim3 grid(static_cast<unsigned>(runs), static_cast<unsigned>(args.weight.rows));
  stats_runs<<<grid, kThreads, 0, stream_of(stream)>>>(view<const float>(args.probs),
                                                       view<const int32_t>(args.topk_indices), run, partial);
  PESC_LAUNCHED("stats_runs");
  add_stats<<<blocks_for(args.weight.rows), kThreads, 0, stream_of(stream)>>>(partial, runs,
                                                                              view<float>(args.stats));
  PESC_LAUNCHED("add_stats");
}

void router_backward(Stream& stream, const RouterBackward& args, Arena& scratch) {
  check(args.x, args.weight, args.probs, args.topk_indices, args.topk_weights);
  const int64_t tokens = args.x.rows;
  const int64_t experts = args.weight.rows;
  PESC_CHECK(args.dtopk_weights.rows == tokens && args.dtopk_weights.cols == args.topk_indices.cols,
             "dweights ", args.dtopk_weights.rows, "x", args.dtopk_weights.cols);
  PESC_CHECK(args.aux_loss_grad.size() == experts && args.aux_loss_grad.contiguous(), "aux loss gradient of ",
             args.aux_loss_grad.size());
  const Tensor& dlogits = args.dlogits;
  PESC_CHECK(args.dweight.rows == experts && args.dweight.cols == args.x.cols && dlogits.rows == tokens &&
                 dlogits.cols == experts,
             "dweight ", args.dweight.rows, "x", args.dweight.cols, ", dlogits ", dlogits.rows, "x",
             dlogits.cols);
  const bool normed = args.rstd.present();
  PESC_CHECK(!normed || (args.rstd.size() == tokens && args.norm.size() == args.x.cols), "rstd of ",
             args.rstd.size(), ", norm of ", args.norm.size());
  if (tokens == 0) return;
  Arena::Scope scope(scratch);
  const RouterScratch s(scratch, tokens, experts, args.x.cols, args.x.dtype, true);
  const float* rstd = normed ? args.rstd.f32() : nullptr;
  logit_gradients<<<blocks_for(tokens, 64), 64, 0, stream_of(stream)>>>(
      view<const float>(args.probs), view<const int32_t>(args.topk_indices),
      view<const float>(args.topk_weights), view<const float>(args.dtopk_weights), args.aux_loss_grad.f32(),
      view<float>(dlogits), rstd, view_or_none<bf16>(s.factor));
  PESC_LAUNCHED("logit_gradients");

  const float* partial = nullptr;
  int64_t runs = s.parts;
  if (s.parts > 1) {
    cuda::gemm(stream, {.a = s.factor, .trans_a = Transpose::kYes, .b = args.x, .c = s.product});
    partial = s.product.f32();
  } else {
    const int64_t most = std::min<int64_t>(
        128, CudaStream::kWorkspaceBytes / int64_t{sizeof(float)} / (experts * args.x.cols));
    PESC_CHECK(most >= 1, "a router of ", experts, "x", args.x.cols);
    const int64_t run = std::max<int64_t>(32, (tokens + most - 1) / most);
    runs = (tokens + run - 1) / run;
    auto* sums = partials<float>(stream, runs * experts * args.x.cols);
    with_pack<float>({args.x}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const dim3 grid(static_cast<unsigned>((args.x.cols / kWidth + kWeightThreads - 1) / kWeightThreads),
                      static_cast<unsigned>(runs),
                      static_cast<unsigned>((experts + kExperts - 1) / kExperts));
      weight_runs<kWidth><<<grid, kWeightThreads, 0, stream_of(stream)>>>(
          view<const float>(dlogits), view<const float>(args.x), rstd, run, sums);
      PESC_LAUNCHED("router_weight_runs");
    });
    partial = sums;
  }
  with_element(normed ? args.norm.dtype : DType::kF32, [&](auto element) {
    using W = decltype(element);
    const RowGrid weights(experts, args.x.cols);
    add_weight_runs<W><<<weights.grid, weights.block, 0, stream_of(stream)>>>(
        partial, runs, view_or_none<const W>(normed ? args.norm : Tensor{}), view<float>(args.dweight));
    PESC_LAUNCHED("add_weight_runs");
  });
}

void router_aux_loss(Stream& stream, const Tensor& stats, double tokens, int64_t top_k, double coef,
                     const Tensor& loss, const Tensor& aux_loss_grad) {
  PESC_CHECK(stats.rows == 2 && aux_loss_grad.size() == stats.cols && aux_loss_grad.contiguous() &&
                 loss.size() == 1 && top_k >= 1,
             "stats ", stats.rows, "x", stats.cols, ", gradient of ", aux_loss_grad.size());
  aux_loss_kernel<<<1, 1, 0, stream_of(stream)>>>(
      view<const float>(stats), tokens, static_cast<double>(top_k), coef, loss.f32(), aux_loss_grad.f32());
  PESC_LAUNCHED("router_aux_loss");
}

}  // namespace pesc::cuda
