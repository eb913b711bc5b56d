// Times of the GPU operations on the shapes of the Llama-2 7B model with 8 x 2048 tokens, in bf16: one line
// per operation with milliseconds and the rate of the bytes that it must move (each tensor once), or of the
// GEMMs that it must make. Takes some ten seconds and 5 GiB of GPU memory.
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "ops/adamw.h"
#include "ops/adapter.h"
#include "ops/adapter_scratch.h"
#include "ops/cross_entropy.h"
#include "ops/embedding.h"
#include "ops/head_norm.h"
#include "ops/lora.h"
#include "ops/low_rank.h"
#include "ops/reduce.h"
#include "ops/rmsnorm.h"
#include "ops/rope.h"
#include "ops/router.h"
#include "ops/swiglu.h"
#include "tests/bench/gpu_bench.h"

namespace pesc {
namespace {

void norms(Bench& b) {
  const Arena::Scope scope(b.memory);
  const Tensor x = b.random(kTokens, kHidden), y = b.random(kTokens, kHidden),
               delta = b.random(kTokens, kHidden);
  const Tensor w = b.random(1, kHidden), rstd = b.zero(1, kTokens, DType::kF32);
  const Tensor dw = b.zero(1, kHidden, DType::kF32);
  const auto forward = [&] { rmsnorm_forward(b.s, {x, delta, x, w, 1e-5F, y, rstd}); };
  const auto backward = [&](const Tensor& dweight) {
    rmsnorm_backward(b.s, {y, x, w, rstd, delta, dweight, {}, {}});
  };
  b.time("rmsnorm + residual", Rate::kBytes, bytes_of({x, x, y, delta}), forward);
  b.time("rmsnorm_apply", Rate::kBytes, bytes_of({x, y}), [&] { rmsnorm_apply(b.s, x, w, rstd, y); });
  b.time("rmsnorm_backward", Rate::kBytes, bytes_of({x, y, delta, delta}), [&] { backward({}); });
  b.time("rmsnorm_backward, weight too", Rate::kBytes, bytes_of({x, y, delta, delta}), [&] { backward(dw); });
  const Dropout mask = mask_of(b);
  const Tensor dropped = b.random(kTokens, kHidden);
  const Tensor dlogits = b.random(kTokens, kExperts, DType::kF32),
               router = b.random(kExperts, kHidden, DType::kF32);
  b.time("rmsnorm + dropped copy", Rate::kBytes, bytes_of({x, y, dropped}), [&] {
    rmsnorm_forward(b.s, {x, {}, {}, w, 1e-5F, y, rstd, {mask, dropped}});
  });
  b.time("rmsnorm_apply, dropped copy", Rate::kBytes, bytes_of({x, dropped}), [&] {
    rmsnorm_apply(b.s, x, w, rstd, {}, {mask, dropped});
  });
  b.time("rmsnorm_backward, LoRA", Rate::kBytes, bytes_of({x, y, dropped, delta, delta}), [&] {
    rmsnorm_backward(b.s, {y, x, w, rstd, delta, {}, {mask, dropped}, {}});
  });
  b.time("rmsnorm_backward, LoRA, router", Rate::kBytes, bytes_of({x, y, dropped, delta, delta}), [&] {
    rmsnorm_backward(b.s, {y, x, w, rstd, delta, {}, {mask, dropped}, {dlogits, router}});
  });
}

void elementwise(Bench& b) {
  const Arena::Scope scope(b.memory);
  const Dropout mask = mask_of(b);
  {
    const Arena::Scope inner(b.memory);
    const Tensor gate_up = b.random(kTokens, 2 * kFfn), h = b.random(kTokens, kFfn),
                 d = b.random(kTokens, 2 * kFfn);
    b.time("swiglu_forward", Rate::kBytes, bytes_of({gate_up, h}), [&] { swiglu_forward(b.s, gate_up, h); });
    b.time("swiglu_backward", Rate::kBytes, bytes_of({gate_up, h, d}), [&] {
      swiglu_backward(b.s, {h, gate_up, d}, b.memory);
    });
    const Tensor dropped = d.reshaped(2 * kTokens, kFfn).row_range(0, kTokens);
    b.time("swiglu_forward, dropped copy", Rate::kBytes, bytes_of({gate_up, h, h}), [&] {
      swiglu_forward(b.s, gate_up, h, {mask, dropped});
    });
    const Tensor dout = b.random(kTokens, kRank), a = b.random(kRank, kFfn, DType::kBF16, 0.1F);
    const Tensor da = b.zero(kRank, kFfn, DType::kF32);
    b.time("swiglu_backward, LoRA", Rate::kBytes, bytes_of({gate_up, h, d}), [&] {
      swiglu_backward(b.s, {h, gate_up, d, {dout, a, 0.25F, mask, da}}, b.memory);
    });
    b.time("dropout, ffn", Rate::kBytes, bytes_of({h, h}), [&] { dropout(b.s, mask, h, dropped); });
  }
  const Tensor x = b.random(kTokens, kHidden), y = b.random(kTokens, kHidden);
  b.time("dropout", Rate::kBytes, bytes_of({x, y}), [&] { dropout(b.s, mask, x, y); });
  b.time("dropout_add", Rate::kBytes, bytes_of({x, y, y}), [&] { dropout_add(b.s, mask, x, y); });
  b.time("add", Rate::kBytes, bytes_of({x, y, y}), [&] { add(b.s, x, y); });
  b.time("copy", Rate::kBytes, bytes_of({x, y}), [&] { copy(b.s, x, y); });
  const Tensor cos = b.zero(2048, kHeadDim / 2, DType::kF32), sin = b.zero(2048, kHeadDim / 2, DType::kF32);
  b.time("rope, q", Rate::kBytes, bytes_of({x, x}),
         [&] { rope(b.s, x, mask.positions, cos, sin, RopeDirection::kForward); });
  const Tensor weight = b.random(1, kHeadDim, DType::kF32), dweight = b.zero(1, kHeadDim, DType::kF32);
  const Tensor rstd = b.zero(kTokens, kHidden / kHeadDim, DType::kF32);
  b.time("head_norm, q", Rate::kBytes, bytes_of({x, y}), [&] {
    head_norm_forward(b.s, {x, weight, 1e-6F, y, rstd});
  });
  b.time("head_norm_backward, q", Rate::kBytes, bytes_of({x, y, y}), [&] {
    head_norm_backward(b.s, {y, x, weight, rstd, y, {}});
  });
  b.time("head_norm_backward, q, weight too", Rate::kBytes, bytes_of({x, y, y}), [&] {
    head_norm_backward(b.s, {y, x, weight, rstd, y, dweight});
  });
}

void rows_and_sums(Bench& b) {
  const Arena::Scope scope(b.memory);
  const Tensor x = b.random(kTokens, kHidden), y = b.random(kTokens, kHidden),
               table = b.random(kVocab, kHidden);
  std::mt19937 random(1);
  std::vector<int32_t> index(kTokens), ids(kTokens);
  for (size_t i = 0; i < index.size(); ++i) {
    index[i] = static_cast<int32_t>(random() % kTokens);
    ids[i] = static_cast<int32_t>(random() % kVocab);
  }
  const Tensor rows = b.array(index, DType::kI32), tokens = b.array(ids, DType::kI32);
  b.time("gather_rows", Rate::kBytes, bytes_of({x, y}), [&] { gather_rows(b.s, x, rows, y); });
  b.time("scatter_add_rows", Rate::kBytes, bytes_of({x, y, y}), [&] { scatter_add_rows(b.s, x, rows, y); });
  b.time("embedding_forward", Rate::kBytes, bytes_of({y, y}),
         [&] { embedding_forward(b.s, tokens, table, 0, y); });

  constexpr int64_t kTrained = int64_t{160} << 20;
  const Tensor p = b.random(1, kTrained, DType::kF32), g = b.random(1, kTrained, DType::kF32);
  const Tensor m = b.zero(1, kTrained, DType::kF32), v = b.zero(1, kTrained, DType::kF32);
  const Tensor total = b.zero(1, 1, DType::kF64);
  const AdamW whole{.param = p, .grad = g, .exp_avg = m, .exp_avg_sq = v, .lr = 1e-4};
  b.time("adamw, 160 Mi", Rate::kBytes, bytes_of({p, p, g, m, m, v, v}), [&] { adamw(b.s, {&whole, 1}); });
  // As LoRA has them: 512 parameters of 4096 x 64.
  std::vector<AdamW> small;
  constexpr int64_t kSmall = int64_t{4096} * 64;
  for (int64_t i = 0; i < 512; ++i) {
    AdamW part = whole;
    for (Tensor* t : {&part.param, &part.grad, &part.exp_avg, &part.exp_avg_sq})
      *t = t->col_range(i * kSmall, (i + 1) * kSmall);
    small.push_back(part);
  }
  b.time("adamw, 512 x 256 Ki", Rate::kBytes, 512 * kSmall * 28, [&] { adamw(b.s, small); });
  b.time("sum_squares, 160 Mi", Rate::kBytes, bytes_of({g}), [&] { sum_squares(b.s, g, total); });
}

void head(Bench& b) {
  const Arena::Scope scope(b.memory);
  for (const DType t : {DType::kF32, DType::kBF16}) {
    const Arena::Scope inner(b.memory);
    const Tensor logits = b.random(kHeadChunk, kVocab, t);
    const Tensor targets = b.zero(1, kHeadChunk, DType::kI32), max = b.zero(1, kHeadChunk, DType::kF32);
    const Tensor sums = b.zero(2, kHeadChunk, DType::kF32), loss = b.zero(1, kHeadChunk, DType::kF32);
    const std::string type = dtype_name(t);
    b.time("cross_entropy max, sums " + type, Rate::kBytes, bytes_of({logits, logits}), [&] {
      cross_entropy_max(b.s, logits, max);
      cross_entropy_sums(b.s, logits, targets, 0, max, sums);
    });
    b.time("cross_entropy_grad " + type, Rate::kBytes, bytes_of({logits, logits}), [&] {
      cross_entropy_grad(b.s, {logits, targets, 0, max, sums, 0.0F, loss});
    });
  }
}

void lora(Bench& b) {
  const Arena::Scope scope(b.memory);
  const Dropout mask = mask_of(b);
  for (const auto& [name, columns, rank] :
       {std::tuple{"qkv", kHidden, 3 * kRank}, std::tuple{"down", kFfn, kRank}}) {
    const Arena::Scope inner(b.memory);
    const Tensor x = b.random(kTokens, columns), a = b.random(rank, columns), out = b.random(kTokens, rank);
    const Tensor dx = b.random(kTokens, columns), da = b.zero(rank, columns, DType::kF32);
    const double flops = 2.0 * kTokens * static_cast<double>(columns * rank);
    b.time(str_cat("lora_down_forward ", name), Rate::kFlops, flops, [&] {
      lora_down_forward(b.s, {x, a, 0.25F, out});
    });
    b.time(str_cat("lora_down_backward ", name), Rate::kFlops, 2 * flops, [&] {
      lora_down_backward(b.s, {out, a, 0.0F, mask, da}, x, dx, b.memory);
    });
  }
}

void router(Bench& b) {
  const Arena::Scope scope(b.memory);
  const Tensor x = b.random(kTokens, kHidden), w = b.random(kExperts, kHidden, DType::kF32, 0.02F);
  const Tensor probs = b.zero(kTokens, kExperts, DType::kF32), experts = b.zero(kTokens, kTopK, DType::kI32);
  const Tensor weights = b.zero(kTokens, kTopK, DType::kF32),
               dweights = b.random(kTokens, kTopK, DType::kF32);
  const Tensor stats = b.zero(2, kExperts, DType::kF32), aux = b.zero(1, kExperts, DType::kF32);
  const Tensor dw = b.zero(kExperts, kHidden, DType::kF32), dx = b.random(kTokens, kHidden);
  b.time("router_forward", Rate::kBytes, bytes_of({x}), [&] {
    router_forward(b.s, {x, w, probs, experts, weights, stats}, b.memory);
  });
  const Tensor dlogits = b.zero(kTokens, kExperts, DType::kF32);
  b.time("router_backward", Rate::kBytes, bytes_of({x}), [&] {
    router_backward(b.s, {x, w, probs, experts, weights, dweights, aux, dw, dlogits}, b.memory);
  });
  b.time("add_low_rank_term", Rate::kBytes, bytes_of({dx, dx}), [&] {
    add_low_rank_term(b.s, {dlogits, w}, dx);
  });
}

void adapter(Bench& b, int64_t dim) {
  const Arena::Scope scope(b.memory);
  std::mt19937 random(2);
  std::vector<std::vector<int32_t>> choices(kExperts);
  for (int64_t t = 0; t < kTokens; ++t) {
    const auto first = static_cast<int64_t>(random() % kExperts);
    const auto second = (first + 1 + static_cast<int64_t>(random() % (kExperts - 1))) % kExperts;
    choices[static_cast<size_t>(first)].push_back(static_cast<int32_t>(t * kTopK));
    choices[static_cast<size_t>(second)].push_back(static_cast<int32_t>(t * kTopK + 1));
  }
  std::vector<int64_t> offsets = {0};
  std::vector<int32_t> row, choice;
  for (const auto& of_expert : choices) {
    for (const int32_t at : of_expert) {
      row.push_back(at / static_cast<int32_t>(kTopK));
      choice.push_back(at);
    }
    offsets.push_back(static_cast<int64_t>(row.size()));
  }
  const AdapterGroups groups{offsets, row, choice};
  const auto count = static_cast<int64_t>(row.size());
  const Tensor f = b.random(kTokens, kHidden), out = b.random(kTokens, kHidden),
               df = b.random(kTokens, kHidden);
  const Tensor weights = b.random(kTokens, kTopK, DType::kF32),
               dweights = b.random(kTokens, kTopK, DType::kF32);
  const Tensor down = b.random(kExperts * dim, kHidden, DType::kBF16, 0.01F);
  const Tensor up = b.random(kExperts * kHidden, dim, DType::kBF16, 0.01F), pre_act = b.random(count, dim);
  const Tensor ddown = b.zero(kExperts * dim, kHidden, DType::kF32),
               dup = b.zero(kExperts * kHidden, dim, DType::kF32);
  const bool dense = adapter_form(DType::kBF16, kTokens, count, kExperts, dim) == AdapterForm::kDense;
  const std::string name = str_cat(" d = ", dim, dense ? ", dense" : ", grouped");
  const double flops = 4.0 * static_cast<double>(count * kHidden * dim);
  b.time("adapter_forward" + name, Rate::kFlops, flops, [&] {
    adapter_forward(b.s, {groups, f, weights, down, up, 1.0F, pre_act, out}, b.memory);
  });
  b.time("adapter_backward" + name, Rate::kFlops, 2 * flops, [&] {
    adapter_backward(b.s, {groups, f, weights, down, up, 1.0F, pre_act, out, df, dweights, ddown, dup},
                     b.memory);
  });
}

int run() {
  if (!cuda::built() || cuda::device_count() == 0) {
    std::printf("ops_gpu_bench: there is no GPU here; nothing to time\n");
    return 0;
  }
  const cuda::DeviceInfo info = cuda::device_info(0);
  std::printf("%s; %s\n", info.name.c_str(), info.versions.c_str());
  Stream stream(Device{.kind = DeviceKind::kCuda});
  Bench b(stream);
  norms(b);
  elementwise(b);
  rows_and_sums(b);
  head(b);
  lora(b);
  router(b);
  adapter(b, 64);
  adapter(b, 512);
  return 0;
}

}  // namespace
}  // namespace pesc

int main() {
  return pesc::run();
}
