#include "runtime/plan.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "model/flops.h"
#include "ops/core/check.h"
#include "parallel/gpu_world.h"

namespace pesc {
namespace {

constexpr double kGiB = 1024.0 * 1024 * 1024;

// What the phases have in common: widths of one layer, tokens of one step, bytes of an activation.
struct Terms {
  double h, q, kv, f, v, layers, world, tp;
  double tokens;    // of the step, over all ranks
  double per_rank;  // tokens / world: what a rank handles of work that is cut over tp
  double element;   // bytes
  double micros;
  // Shares of the layers whose attention and adapters, and whose whole forward, run a second time: all but
  // the last one's, which still stands.
  double attention_again, forward_again;

  Terms(const ExperimentConfig& c, const ModelConfig& m, int ranks)
      : h(static_cast<double>(m.hidden)),
        q(static_cast<double>(m.heads * m.head_dim)),
        kv(static_cast<double>(m.kv_heads * m.head_dim)),
        f(static_cast<double>(m.ffn)),
        v(static_cast<double>(m.vocab)),
        layers(static_cast<double>(m.layers)),
        world(ranks),
        tp(c.parallel.tp),
        tokens(static_cast<double>(c.train.global_batch * c.train.seq_len)),
        per_rank(tokens / ranks),
        element(static_cast<double>(dtype_bytes(c.train.compute))),
        micros(static_cast<double>(c.train.micro_batches())),
        attention_again(c.train.recompute == Recompute::kNone ? 0 : 1 - 1 / layers),
        forward_again(c.train.recompute == Recompute::kBlock ? 1 - 1 / layers : 0) {}
};

DecoderOptions decoder_options(const ExperimentConfig& c, const Mesh& mesh) {
  DecoderOptions o;
  o.device.kind = c.parallel.device;
  o.device.threads = std::max(c.parallel.threads, 1);
  o.capacity.max_tokens = split_range(c.train.micro_batch, mesh.dp(), 0).size() * c.train.seq_len;
  o.capacity.max_sequence = c.train.seq_len;
  o.capacity.exchange_headroom = c.parallel.exchange_headroom;
  o.capacity.exchange_chunks = c.parallel.chunks(c.pesc, mesh, o.capacity.max_tokens);
  o.max_positions = c.train.seq_len;
  o.compute = c.train.compute;
  if (c.parallel.share_gpu) o.gpu_use = GpuUse::kShared;
  o.recompute = c.train.recompute;
  return o;
}

PlanPhase gemm_phase(const ExperimentConfig& c, const Terms& t) {
  const double weights = t.layers * t.h * (2 * t.q + 2 * t.kv + 3 * t.f);
  const double passes = (c.pesc.mode == TrainMode::kFull ? 3 : 2) + t.forward_again;
  return {"GEMM", 2 * passes * weights * t.per_rank, passes * weights / t.tp * t.element * t.micros, 0, 0};
}

PlanPhase attention_phase(const ExperimentConfig& c, const Terms& t) {
  const double passes = 3.5 + t.attention_again;
  return {"attention", passes * 4 * t.q / 2 * static_cast<double>(c.train.seq_len) * t.per_rank * t.layers,
          t.layers * t.per_rank * t.element * (8 * t.q + 6 * t.kv + t.attention_again * (2 * t.q + 2 * t.kv)),
          0, 0};
}

PlanPhase lora_phase(const ExperimentConfig& c, const Terms& t) {
  const double in[kLinears] = {t.h, t.h, t.h, t.q, t.h, t.h, t.f};
  const double out[kLinears] = {t.q, t.kv, t.kv, t.h, t.f, t.f, t.h};
  double width = 0;
  for (const Linear l : c.pesc.lora.targets) width += in[static_cast<int>(l)] + out[static_cast<int>(l)];
  if (c.pesc.mode == TrainMode::kFull || c.pesc.lora.rank == 0) width = 0;
  // Forward: the input read, the output updated; backward: both read again and the input's gradient updated.
  return {"LoRA",
          (6 + 2 * t.forward_again) * static_cast<double>(c.pesc.lora.rank) * width * t.per_rank * t.layers,
          (4 + t.forward_again) * width * t.per_rank * t.layers * t.element, 0, 0};
}

// A token's choices fall on so many other ranks of its ep group, balanced experts taken.
double remote_ranks(const ExperimentConfig& c) {
  const double experts = static_cast<double>(c.pesc.moe.experts);
  const double ep = c.parallel.ep;
  const double here = experts / ep;
  double none = 1;  // that none of the k choices is on a given rank
  for (double j = 0; j < static_cast<double>(c.pesc.moe.top_k); ++j)
    none *= std::max(0.0, experts - here - j) / (experts - j);
  return (ep - 1) * (1 - none);
}

PlanPhase adapter_phase(const ExperimentConfig& c, const Terms& t) {
  if (c.pesc.mode != TrainMode::kPesc) return {"router + adapters", 0, 0, 0, 0};
  const double k = static_cast<double>(c.pesc.moe.top_k);
  const double per_token =
      t.h * (6 * static_cast<double>(c.pesc.moe.experts) +
             (6 + 2 * t.attention_again) * 2 * k * static_cast<double>(c.pesc.moe.adapter_dim));
  return {"router + adapters", per_token * t.per_rank * t.layers,
          (8 + 3 * k + t.attention_again * (4 + k)) * t.h * t.per_rank * t.layers * t.element, 0, 0};
}

PlanPhase elementwise_phase(const Terms& t) {
  // Two norms (written, derived again, backward, residual), SwiGLU the same, the rotation of q and k.
  const double per_token =
      26 * t.h + 11 * t.f + 4 * (t.q + t.kv) + t.forward_again * (8 * t.h + 4 * t.f + 2 * (t.q + t.kv));
  return {"norms and elementwise", 0, per_token * t.per_rank * t.layers * t.element, 0, 0};
}

PlanPhase head_phase(const ExperimentConfig& c, const Terms& t) {
  const double passes = c.pesc.mode == TrainMode::kFull ? 3 : 2;
  return {"head", 2 * passes * t.h * t.v * t.per_rank, 4 * t.v * t.per_rank * t.element, 0, 0};
}

double tp_bytes(const Terms& t) {
  // Attention and FFN each gather their input and scatter their output, forward and backward, and gather the
  // input once more for what is derived again.
  return t.tp > 1 ? (10 + 4 * t.forward_again) * t.layers * t.per_rank * (t.tp - 1) * t.h * t.element : 0;
}

double exchange_bytes(const ExperimentConfig& c, const Terms& t) {
  if (c.pesc.mode != TrainMode::kPesc || c.parallel.ep == 1) return 0;
  const double k = static_cast<double>(c.pesc.moe.top_k);
  // Rows there and back, forward and backward; weights and their gradients in float32.
  return remote_ranks(c) * t.layers *
         ((4 + 2 * t.attention_again) * t.h * t.element + (2 + t.attention_again) * k * 4);
}

int replicas(ReplicaGroup group, const Mesh& mesh, int64_t kv_heads) {
  const int kv = static_cast<int>(std::max<int64_t>(1, mesh.tp() / std::max<int64_t>(kv_heads, 1)));
  switch (group) {
    case ReplicaGroup::kWorld:
      return mesh.world();
    case ReplicaGroup::kDp:
      return mesh.dp();
    case ReplicaGroup::kDpKv:
      return mesh.dp() * kv;
    case ReplicaGroup::kExpert:
      return mesh.world() / mesh.ep();
  }
  return 1;
}

}  // namespace

MachineRates usual_rates(DeviceKind device, DType compute, int threads) {
  if (device == DeviceKind::kCuda) {
    const bool narrow = compute == DType::kBF16;  // float32 without TF32 is a fifteenth
    return {narrow ? 660e12 : 45e12, narrow ? 400e12 : 10e12, 3.8e12, 300e9, 139.0 * kGiB, 0.8 * kGiB};
  }
  const double n = std::max(threads, 1);
  return {80e9 * n, 30e9 * n, 8e9 * n, 3e9, 0, 0.15 * kGiB};
}

int64_t Plan::device_bytes() const {
  int64_t bytes = 0;
  for (const ArenaSize& a : arenas) bytes += a.bytes;
  return bytes;
}

double Plan::all_bytes(const MachineRates& rates) const {
  return static_cast<double>(device_bytes() + connection_bytes) + rates.overhead;
}

Plan make_plan(const ExperimentConfig& c, const ModelConfig& model, int world, const MachineRates& rates) {
  const Mesh mesh(world, 0, c.parallel.tp, c.parallel.ep);
  Plan p;
  p.world = world;
  p.dp = mesh.dp();
  p.tp = mesh.tp();
  p.ep = mesh.ep();
  if (c.parallel.device == DeviceKind::kCuda)
    p.connection_bytes = nccl_bytes(mesh, model.kv_heads, decoder_options(c, mesh).gpu_use);
  p.arenas = Decoder::plan(model, c.pesc, mesh, decoder_options(c, mesh));
  Arena weights = Arena::planning("weights"), copies = Arena::planning("bf16 copies"),
        optimizer = Arena::planning("optimizer");
  const ModelParameters parameters(model, c.pesc, mesh, c.train.compute, {weights, copies, &optimizer});
  double reduced = 0;  // bytes that one rank sends for the gradients
  for (const Parameter& q : parameters.all()) {
    const int64_t whole = q.spec.global_rows * q.spec.global_cols;
    (q.trained ? p.trained : p.frozen) += q.group == ReplicaGroup::kExpert ? 0 : whole;
    if (!q.trained) continue;
    const double n = replicas(q.group, mesh, model.kv_heads);
    const auto local = static_cast<double>(q.spec.rows * q.spec.cols);
    p.host_bytes += static_cast<int64_t>(std::ceil(12 * local / n));
    reduced += 4 * local * 2 * (n - 1) / n;
  }
  if (c.pesc.mode == TrainMode::kPesc)  // of all ep ranks
    p.trained += model.layers * c.pesc.moe.experts * 2 * model.hidden * c.pesc.moe.adapter_dim;

  const Terms t(c, model, world);
  p.tokens = t.tokens;
  p.flops =
      training_flops(model, c.pesc, {t.tokens, t.tokens, t.tokens * static_cast<double>(c.train.seq_len)});
  p.exchanged_per_token = exchange_bytes(c, t);
  p.phases = {gemm_phase(c, t),
              attention_phase(c, t),
              lora_phase(c, t),
              adapter_phase(c, t),
              elementwise_phase(t),
              head_phase(c, t),
              {"optimizer", 0, 28.0 * static_cast<double>(parameters.trained_elements()), 0, 0},
              {"tensor-parallel gathers", 0, 0, tp_bytes(t), 0},
              {"token exchange", 0, 0, p.exchanged_per_token * t.per_rank, 0},
              {"gradient reduction", 0, 0, reduced, 0}};
  const bool overlaps = c.parallel.device == DeviceKind::kCuda && c.parallel.overlap == Overlap::kOn;
  const int chunks = c.parallel.chunks(c.pesc, mesh, decoder_options(c, mesh).capacity.max_tokens);
  for (PlanPhase& phase : p.phases) {
    const double rate = phase.name == "attention" ? rates.attention : rates.gemm;
    double exposed = 1;
    if (overlaps && phase.name == "token exchange") exposed = 1.0 / chunks;
    if (overlaps && phase.name == "gradient reduction") exposed = 1.0 / t.layers;
    phase.seconds =
        std::max({phase.flops / rate, phase.bytes / rates.memory, exposed * phase.sent / rates.link});
    p.seconds += phase.seconds;
  }
  p.light_seconds = p.flops / (rates.gemm * world);
  return p;
}

std::vector<std::string> what_would_fit(const ExperimentConfig& config, const ModelConfig& model, int world,
                                        const MachineRates& rates) {
  std::vector<std::string> found;
  const auto bytes_of = [&](const ExperimentConfig& c, int ranks) {
    return make_plan(c, model, ranks, rates).all_bytes(rates);
  };
  const auto consider = [&](const ExperimentConfig& c, int ranks, const std::string& change) {
    try {
      validate_layout(model, c.pesc, ranks, c.parallel.tp, c.parallel.ep);
    } catch (const Error&) {
      return false;
    }
    const double bytes = bytes_of(c, ranks);
    if (bytes > rates.device_memory) return false;
    char size[32];
    std::snprintf(size, sizeof(size), " needs %.1f GiB", bytes / kGiB);
    found.push_back(change + size);
    return true;
  };
  for (const Recompute recompute : {Recompute::kCheap, Recompute::kBlock}) {
    if (recompute <= config.train.recompute) continue;
    ExperimentConfig c = config;
    c.train.recompute = recompute;
    if (consider(c, world, str_cat("train.recompute: ", recompute_name(recompute)))) break;
  }
  for (int64_t micro = config.train.micro_batch - 1; micro >= 1; --micro) {
    if (config.train.global_batch % micro != 0) continue;
    ExperimentConfig c = config;
    c.train.micro_batch = micro;
    if (consider(c, world, str_cat("train.micro_batch: ", micro))) break;
  }
  for (int64_t length = config.train.seq_len / 2; length >= 128; length /= 2) {
    ExperimentConfig c = config;
    c.train.seq_len = length;
    if (consider(c, world, str_cat("train.seq_len: ", length))) break;
  }
  for (int tp = config.parallel.tp * 2; tp <= world; tp *= 2) {
    ExperimentConfig c = config;
    c.parallel.tp = tp;
    if (consider(c, world, str_cat("parallel.tp: ", tp))) break;
  }
  for (int ep = config.parallel.ep * 2; ep <= world && config.pesc.mode == TrainMode::kPesc; ep *= 2) {
    ExperimentConfig c = config;
    c.parallel.ep = ep;
    if (consider(c, world, str_cat("parallel.ep: ", ep))) break;
  }
  for (int ranks = world * 2; ranks <= world * 64; ranks *= 2) {
    if (consider(config, ranks, str_cat("--ranks ", ranks))) break;
  }
  return found;
}

}  // namespace pesc
