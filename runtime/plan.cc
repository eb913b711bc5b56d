#include "runtime/plan.h"

#include <algorithm>

#include "model/flops.h"
#include "model/frozen_linear.h"
#include "model/parameters.h"
#include "ops/core/check.h"
#include "runtime/expert_exchange.h"
#include "runtime/fitting.h"
#include "runtime/gemm_rate.h"

namespace pesc {
namespace {

// Of a linear that is large beside its scales.
double bytes_of_weight(const ExperimentConfig& c) {
  constexpr int64_t kSide = 4096;
  Arena plan = Arena::planning("weight");
  const Precision precision =
      c.train.frozen_dtype ? Precision(c.train.compute_dtype, *c.train.frozen_dtype) : c.train.compute_dtype;
  const auto bytes = FrozenLinear::allocate(plan, precision.frozen, kSide, kSide, 0).bytes();
  return static_cast<double>(bytes) / static_cast<double>(kSide * kSide);
}

// What the phases have in common: widths of one layer, tokens of one step, bytes of an activation.
struct Terms {
  double h, q, kv, f, v, layers, world, tp;
  double tokens;    // of the step, over all ranks
  double per_rank;  // tokens / world: what a rank handles of work that is cut over tp
  double element;   // bytes
  double weight;    // bytes of a frozen weight of a linear
  double micros;
  // Shares of the layers whose attention and adapters, and whose whole forward, run a second time: all but
  // the last one's, which still stands.
  double attention_recompute, forward_recompute;
  double qk_norms;  // columns of q and k that are normed
  // Of tensor parallelism: set_tensor_parallel.
  bool full = false, embeds_again = false;  // mode FULL; the embedding is looked up again in the backward
  double a_in = 0, a_out = 0;  // columns of A x of the column-parallel linears, and of o and down
  bool concatenated = false;   // LoRA's B stands beside W in one matrix (FrozenLinear)

  Terms(const ExperimentConfig& c, const ModelConfig& m, int ranks)
      : h(static_cast<double>(m.hidden_size)),
        q(static_cast<double>(m.num_attention_heads * m.head_dim)),
        kv(static_cast<double>(m.num_key_value_heads * m.head_dim)),
        f(static_cast<double>(m.intermediate_size)),
        v(static_cast<double>(m.vocab_size)),
        layers(static_cast<double>(m.num_hidden_layers)),
        world(ranks),
        tp(c.parallel.tp),
        tokens(static_cast<double>(c.train.global_batch_size * c.data.max_seq_length)),
        per_rank(tokens / ranks),
        element(static_cast<double>(dtype_bytes(c.train.compute_dtype))),
        weight(bytes_of_weight(c)),
        micros(static_cast<double>(c.train.gradient_accumulation_steps)),
        attention_recompute(c.train.recompute_granularity == Recompute::kNone ? 0 : 1 - 1 / layers),
        forward_recompute(c.train.recompute_granularity == Recompute::kFull ? 1 - 1 / layers : 0),
        qk_norms(m.norms_qk() ? q + kv : 0) {}

  // Of all layers.
  [[nodiscard]] double linear_weights() const { return layers * h * (2 * q + 2 * kv + 3 * f); }
};

// Bytes of what is made from quantised weights and from tokens before the GEMMs read it.
double made_before_gemms(const ExperimentConfig& c, const Terms& t, bool fp8) {
  if (!c.train.frozen_dtype) return 0;
  const double weights = t.linear_weights() / t.tp * t.micros;
  const double forwards = 1 + t.forward_recompute;
  if (!fp8) return (forwards + 1) * weights * (t.weight + t.element);
  // NF4 becomes FP8 first. The backward transposes the codes, which are read and written.
  const bool codes = *c.train.frozen_dtype == FrozenFormat::kFP8;
  const double of_weights = (codes ? 0 : (forwards + 1) * (t.weight + 1)) + 2;
  // Inputs of q,k,v and o, of gate,up and down; the gradients of their outputs. Those of h columns are whole on
  // every tp rank.
  const double of_token =
      forwards * (2 * t.h * t.tp + t.q + t.f) + (2 * t.h * t.tp + t.q + 2 * t.kv + 2 * t.f);
  return weights * of_weights + of_token * (t.element + 1) * t.per_rank * t.layers;
}

PlanPhase gemm_phase(const ExperimentConfig& c, const Terms& t, bool fp8) {
  const double forwards = 1 + t.forward_recompute;
  const double backwards = c.pesc.mode == TrainMode::kFull ? 2 : 1;
  const double pass = 2 * t.linear_weights() * t.per_rank;
  // A GEMM reads the weight as it is multiplied.
  const double read = !c.train.frozen_dtype ? t.weight : fp8 ? 1 : t.element;
  PlanPhase phase;
  phase.name = "GEMM";
  phase.flops = (forwards + backwards) * pass;
  phase.made = made_before_gemms(c, t, fp8);
  phase.bytes = (forwards + backwards) * t.linear_weights() / t.tp * read * t.micros + phase.made;
  if (fp8) phase.fp8_flops = phase.flops;
  return phase;
}

PlanPhase attention_phase(const ExperimentConfig& c, const Terms& t) {
  const double passes = 3.5 + t.attention_recompute;
  return {
      "attention", passes * 4 * t.q / 2 * static_cast<double>(c.data.max_seq_length) * t.per_rank * t.layers,
      t.layers * t.per_rank * t.element * (8 * t.q + 6 * t.kv + t.attention_recompute * (2 * t.q + 2 * t.kv)),
      0, 0};
}

PlanPhase lora_phase(const ExperimentConfig& c, const Terms& t) {
  const double in[kLinears] = {t.h, t.h, t.h, t.q, t.h, t.h, t.f};
  const double out[kLinears] = {t.q, t.kv, t.kv, t.h, t.f, t.f, t.h};
  double width = 0;
  for (const Linear l : c.pesc.lora.target_modules)
    width += in[static_cast<int>(l)] + out[static_cast<int>(l)];
  if (c.pesc.mode == TrainMode::kFull || c.pesc.lora.r == 0) width = 0;
  // Forward: the input read, the output updated; backward: both read again and the input's gradient updated.
  return {"LoRA",
          (6 + 2 * t.forward_recompute) * static_cast<double>(c.pesc.lora.r) * width * t.per_rank * t.layers,
          (4 + t.forward_recompute) * width * t.per_rank * t.layers * t.element, 0, 0};
}

PlanPhase adapter_phase(const ExperimentConfig& c, const Terms& t) {
  if (c.pesc.mode != TrainMode::kPesc) return {"router + adapters", 0, 0, 0, 0};
  const double k = static_cast<double>(c.pesc.moe.num_experts_per_tok);
  const double per_token =
      t.h * (6 * static_cast<double>(c.pesc.moe.num_experts) +
             (6 + 2 * t.attention_recompute) * 2 * k * static_cast<double>(c.pesc.moe.adapter_dim));
  return {"router + adapters", per_token * t.per_rank * t.layers,
          (8 + 3 * k + t.attention_recompute * (4 + k)) * t.h * t.per_rank * t.layers * t.element, 0, 0};
}

PlanPhase elementwise_phase(const Terms& t) {
  // Two norms (written, derived again, backward, residual), SwiGLU the same, the rotation of q and k. Norms of
  // q and k: written, derived again with the rotation, backward; and once more where the attention is.
  const double per_token = 26 * t.h + 11 * t.f + 4 * (t.q + t.kv) + 9 * t.qk_norms +
                           t.forward_recompute * (8 * t.h + 4 * t.f + 2 * (t.q + t.kv)) +
                           t.attention_recompute * 4 * t.qk_norms - t.forward_recompute * 2 * t.qk_norms;
  return {"norms and elementwise", 0, per_token * t.per_rank * t.layers * t.element, 0, 0};
}

PlanPhase head_phase(const ExperimentConfig& c, const Terms& t) {
  const double passes = c.pesc.mode == TrainMode::kFull ? 3 : 2;
  return {"head", 2 * passes * t.h * t.v * t.per_rank, 4 * t.v * t.per_rank * t.element, 0, 0};
}

void set_tensor_parallel(const ExperimentConfig& c, bool concatenated, Terms& t) {
  t.full = c.pesc.mode == TrainMode::kFull;
  t.embeds_again = c.train.recompute_granularity == Recompute::kSelective && c.pesc.mode == TrainMode::kPesc;
  t.concatenated = concatenated;
  for (const Linear l : c.pesc.lora.target_modules) {
    double& columns = l == Linear::kO || l == Linear::kDown ? t.a_out : t.a_in;
    columns += t.full ? 0 : static_cast<double>(c.pesc.lora.r);
  }
}

double tp_bytes(const Terms& t) {
  if (t.tp == 1) return 0;
  // Attention and FFN each gather their input and scatter their output, with A x beside them. The backward does the
  // same with the gradients, but makes that of the A x of o and down from the gathered dy where B stands beside W.
  // Gradients of dense weights need the input once more.
  const double forward = 4 * t.h + t.a_in + t.a_out;
  const double backward = 4 * t.h + t.a_in + (t.concatenated ? 0 : t.a_out) + (t.full ? 2 * t.h : 0);
  // The embedding's sums, again where it is looked up again; the head's input and its gradient; the gradient of an
  // embedding that is trained.
  const double ends = (3 + (t.embeds_again ? 1 : 0) + (t.full ? 1 : 0)) * t.h;
  // The cross entropy sums three float32 numbers of each token over the parts of the vocabulary.
  return (t.tp - 1) * t.per_rank *
         ((t.layers * ((1 + t.forward_recompute) * forward + backward) + ends) * t.element + 2 * 3 * 4);
}

double dispatch_bytes(const ExperimentConfig& c, const Terms& t) {
  const double k = static_cast<double>(c.pesc.moe.num_experts_per_tok);
  // Of the rows; weights and their gradients in float32.
  return t.layers * (t.h * token_exchange_bytes(c, t.attention_recompute) +
                     remote_ranks(c) * (2 + t.attention_recompute) * k * 4);
}

// Of a step. The backward begins with the layers that the forward gathered last.
double gathered_bytes(const ExperimentConfig& c, const Terms& t, bool ahead) {
  const double kept = std::min(t.layers, ahead ? 2.0 : 1.0);
  return t.micros * t.layers * t.h * weight_exchange_bytes(c, 2 - kept / t.layers);
}

// Adds the phase of the exchange that is chosen. Of both says what they send and what of it is not hidden: of tokens in
// chunks all but one; of weights the first layer's, and what takes longer than the step's computation.
void plan_exchange(const ExperimentConfig& c, const Terms& t, const DecoderOptions& options,
                   const MachineRates& rates, Plan& p) {
  p.exchange = expert_exchange(c, p.world);
  const bool weights = p.exchange == ExpertExchange::kWeights;
  PlanPhase phase{weights ? "weight exchange" : "token exchange", 0, 0, 0, 0};
  if (c.pesc.mode == TrainMode::kPesc && p.ep > 1) {
    const bool overlaps = c.parallel.device == DeviceKind::kCuda && c.parallel.overlap_comm == Overlap::kOn;
    const double per_token = dispatch_bytes(c, t);
    const Mesh mesh(p.world, 0, p.tp, p.ep);
    const int chunks = overlaps ? c.parallel.chunks(c.pesc, mesh, options.capacity.max_tokens) : 1;
    p.tokens_exchange.sent = per_token * t.per_rank;
    p.tokens_exchange.seconds = p.tokens_exchange.sent / chunks / rates.link;
    p.weights_exchange.sent = gathered_bytes(c, t, options.capacity.gathers_ahead);
    const double all = p.weights_exchange.sent / rates.link;
    p.weights_exchange.seconds = overlaps ? std::max(all / t.layers, all - p.seconds) : all;
    p.exchanged_per_token = weights ? 0 : per_token;
    const PlannedExchange& chosen = weights ? p.weights_exchange : p.tokens_exchange;
    phase.sent = chosen.sent;
    phase.seconds = chosen.seconds;
  }
  p.seconds += phase.seconds;
  p.phases.insert(p.phases.end() - 1, std::move(phase));  // before the gradients
}

}  // namespace

Plan make_plan(const ExperimentConfig& c, const ModelConfig& model, int world, const MachineRates& rates) {
  const Mesh mesh(world, 0, c.parallel.tp, c.parallel.ep);
  Plan p;
  p.world = world;
  p.dp = mesh.dp();
  p.tp = mesh.tp();
  p.ep = mesh.ep();
  const DecoderOptions options =
      decoder_options(c, mesh, device_of(c, c.parallel.num_threads), training_use(c));
  p.memory = device_memory(model, c.pesc, mesh, options);
  Arena weights = Arena::planning("weights"), compute_weights = Arena::planning("bf16 compute weights"),
        optimizer = Arena::planning("optimizer");
  const ModelParameters parameters(model, c.pesc, mesh, options.precision(),
                                   {weights, compute_weights, &optimizer});
  double reduced = 0;  // bytes that one rank sends for the gradients
  for (const Parameter& q : parameters.all()) {
    const int64_t whole = q.spec.global_rows * q.spec.global_cols;
    (q.trainable ? p.trainable : p.frozen) += q.group == ReplicaGroup::kExpert ? 0 : whole;
    if (!q.trainable) continue;
    const double n = replicas_of(q.group, mesh, model.num_key_value_heads);
    const auto local = static_cast<double>(q.spec.rows * q.spec.cols);
    reduced += 4 * local * 2 * (n - 1) / n;
  }
  p.host_bytes = planned_snapshot_bytes(parameters, mesh, model.num_key_value_heads);
  if (c.pesc.mode == TrainMode::kPesc)  // of all ep ranks
    p.trainable +=
        model.num_hidden_layers * c.pesc.moe.num_experts * 2 * model.hidden_size * c.pesc.moe.adapter_dim;

  Terms t(c, model, world);
  set_tensor_parallel(c, parameters.layers.front().o.base.lora_columns() > 0, t);
  p.tokens = t.tokens;
  p.bytes_per_weight = parameters.frozen_bytes_per_weight();
  const bool fp8 = parameters.frozen_gemm() == FrozenGemm::kFP8;
  PESC_CHECK(!fp8 || rates.fp8_gemm > 0, "FP8 GEMMs on a device that has none");
  if (fp8) p.fp8_flops = parameters.fp8_share() * frozen_linear_flops(model, c.pesc, t.tokens);
  p.flops = training_flops(model, c.pesc,
                           {t.tokens, t.tokens, t.tokens * static_cast<double>(c.data.max_seq_length)});
  p.phases = {gemm_phase(c, t, fp8),
              attention_phase(c, t),
              lora_phase(c, t),
              adapter_phase(c, t),
              elementwise_phase(t),
              head_phase(c, t),
              {"optimizer", 0, 28.0 * static_cast<double>(parameters.trainable_elements()), 0, 0},
              {"tensor-parallel gathers", 0, 0, tp_bytes(t), 0},
              {"gradient reduction", 0, 0, reduced, 0}};
  p.phases.front().fp8_flops *= parameters.fp8_share();
  const bool overlaps = c.parallel.device == DeviceKind::kCuda && c.parallel.overlap_comm == Overlap::kOn;
  for (PlanPhase& phase : p.phases) {
    const double rate = phase.name == "attention" ? rates.attention : rates.gemm;
    const double arithmetic = GemmRates{rate, rates.fp8_gemm}.seconds(phase.flops, phase.fp8_flops);
    const double exposed = overlaps && phase.name == "gradient reduction" ? 1.0 / t.layers : 1;
    phase.seconds =
        phase.made / rates.memory +
        std::max({arithmetic, (phase.bytes - phase.made) / rates.memory, exposed * phase.sent / rates.link});
    p.seconds += phase.seconds;
  }
  plan_exchange(c, t, options, rates, p);
  p.sol_seconds = GemmRates{rates.gemm * world, rates.fp8_gemm * world}.seconds(p.flops, p.fp8_flops);
  p.peak_seconds = GemmRates{rates.peak * world, rates.fp8_peak * world}.seconds(p.flops, p.fp8_flops);
  return p;
}

}  // namespace pesc
