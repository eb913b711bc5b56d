// The tensors that the forward keeps for the backward, and the workspace of both: structs whose sizes are
// known before the first step. The backward always recomputes norm outputs, with norms of q and k also their
// rotation, SwiGLU outputs, gathered inputs and dropout masks; `Recompute` chooses what else.
//
// Activations and their gradients have the compute type (F32 or BF16), except those marked F32.
//
// S tokens of this rank's slice, P = S * tp gathered tokens (both with padding), C received rows per exchange
// round, chunk after chunk.
#pragma once

#include <array>
#include <vector>

#include "model/config.h"
#include "model/parameters.h"
#include "ops/core/arena.h"
#include "parallel/token_dispatcher.h"
#include "parallel/weight_gatherer.h"

namespace pesc {

// The purpose of a decoder. For inference all layers share one set of buffers, and there are no gradients or
// moments.
enum class Purpose { kTraining, kInference };

// What training keeps of each layer. A tensor that is not kept has one buffer for all layers, which the
// backward of a layer recomputes: by the same operations in the same order, so bit for bit as in the forward.
//   kNone       keeps all of LayerSaved
//   kSelective  recomputes what needs no GEMM of a dense weight: the attention's output and lse, from qkv;
//               with experts also the layer's input, from x2 and f of the layer below (of the first layer:
//               from the tokens), and on the way what the adapters read and keep
//   kFull       keeps the layer's input and the routing, and runs the layer's forward again with the same
//               choice of experts
enum class Recompute { kNone, kSelective, kFull };
[[nodiscard]] const char* recompute_name(Recompute recompute);  // "NONE", "SELECTIVE", "FULL"

// The largest share of a micro-batch, and the largest exchange, of a run. All sizes below follow from it.
struct Capacity {
  int64_t max_tokens = 0;    // T of one rank
  int64_t max_sequence = 0;  // tokens of the longest sequence
  double buffer_factor = 2;
  int64_t head_chunk = 2048;  // supervised rows whose logits exist at one time
  int dispatch_chunks = 1;    // runs of the slice's tokens that are exchanged one by one: 1 or 2
  ExpertExchange expert_exchange = ExpertExchange::kTokens;
  bool gathers_ahead = false;  // kWeights: a layer's weights are gathered while the one before it computes
};

inline constexpr int kMaxChunks = 2;
// The default for a training run: 2 on GPUs with ep > 1, so that one chunk's exchange overlaps with the
// other's FFN, if half of the slice's tokens still fill the chip; else 1.
[[nodiscard]] int usual_dispatch_chunks(DeviceKind device, const PescConfig& pesc, const Mesh& mesh,
                                        int64_t max_tokens);

// Buffers by phase: what each buffer holds where it is used for more than one thing, or shares memory with
// another.
//
// The phases of a layer: Fa attention block, Ff norm, FFN and adapters; Bf and Ba the same backward, Bf
// first. R is the recompute. With kFull it is Fa and Ff again, right before Bf. With kSelective it runs
// between Bf and Ba: this layer's attention, and the adapters and the output of the layer below, which is
// this layer's input (of the first layer: the embedding). The last layer recomputes no attention, and with
// kFull nothing. h1 and h2 are the outputs of the layer's two norms, act is SwiGLU's, att the attention's, dy
// the gradient of the layer's output; x|y: y is concatenated to x; "of all": gathered over tp.
//
//   workspace      Fa                  Ff                   Bf                       Ba
//   h              h1|a_qkv            h2|a_gate_up         h2 (1)                   h1 (1)
//   dropout_out    dropout(h1)         dropout(h2)          dropout(h2)              dropout(h1)
//   gathered (2)   h1|a_qkv of all,    h2|a of all, then    df of all, h2 of all     dx2 of all, h1 of all
//                  then sums of o      sums of f            (3), sums of dh2|da      (3), sums of dh1|da
//   ffn_grad       dropout(att)        dropout(act)         dact|da_down             dqkv
//   ffn_act        -                   act|a_down           act (3)                  datt|da_o
//   qk (5)         q, k rotated        -                    -                        q, k rotated
//   dslice         -                   -                    df, then dh2|da          dh1|da
//   adapter_dinput -                   R: the output, not   gradient of dropout(f),  gradient of dropout(h1)
//                                      read                 then of dropout(h2)
//   dx             -                   -                    dy, then dx2             dx2, then dx: dy below
//   lora_slice (4) a_qkv               a_gate_up            da_down, then da         da_o, then da_qkv
//   lora_full (4)  sums of a_o         sums of a_down       da_down of all, then da  da_o of all, then da_qkv
//
// (1) where dropout_out does not hold it. (2) tp > 1; with tp = 1 nothing is gathered, gathered is h and
// gathered_grad is dslice. (3) with trainable dense weights. (4) except what is concatenated to another
// matrix, or with tp = 1 is in its own place. On a CPU the FFN uses the first rows of ffn_grad and ffn_act
// block by block (shared_ffn.h). (5) with norms of q and k, and rstd_qk beside it: made from qkv, which then
// stays as the GEMM wrote it, in Fa, in R of the attention, and again in Ba.
//
//   workspace      elsewhere
//   gathered (2)   the embedding's sums, the last norm's output of all, dx of all for the embedding
//   h              the last norm's output
//   gathered_grad  the gradient of the last norm's output of all (with tp = 1 in dslice, where it stays)
//   dslice         the gradient of the last norm's output
//   dx             the gradient of x_final
//   logits         logits, then their gradient; in generation the pieces of all tp ranks
//   max            the largest logit of a row; in generation first the numbers of the rows, I32
//
// The adapters. Where tokens travel (ep > 1, ExpertExchange::kTokens) each chunk has its part of the received rows, of
// one round at a time. Elsewhere the adapters read moe.dropout_out and moe.topk_weights and write y and
// adapter_dinput, in place; with kWeights and ep > 1 by the weights in `adapters` (parallel/weight_gatherer.h).
//
//   workspace                              Ff, R                        Bf
//   recv_tokens, recv_topk_weights,        rows of dropout(f), weights, adapters before GELU: of plans with
//   adapter_pre_act                        several rounds; those of one round are in moe.recv_*,
//                                          moe.adapter_pre_act
//   adapter_out                            adapters' output             gradient of dropout(f)
//   recv_grad, recv_dtopk_weights          -                            rows of dy, gradient of the weights
//   dtopk_weights                          -                            gradient of the weights, at home
//   dlogits                                -                            gradient of the logits, which the
//                                                                       norm's backward reads last
//
//   saved                                  kNone   kSelective           kFull        inference
//   x                                      own     shared (6)           own          shared
//   x_final                                own     is x (6)             own          own
//   rstd1, rstd2, qkv, x2, gate_up, a_*    own     own                  shared       shared
//   attention, lse                         own     shared               shared       shared
//   moe.f                                  own     own                  shared       shared
//   moe.dropout_out                        is f    shared, or is f (7)  is f         is f
//   moe.adapter_pre_act, moe.recv_*        own     shared               shared       shared
//   the routing: all else of moe           own     own                  own          shared
//
// own: each layer has one. shared: one for all layers, which in the forward holds the values of the layer
// that ran last; R fills it before it is read. (6) in PESC: y is written over x, which Fa has read; otherwise
// own. (7) shared with a dropout of the adapters: f is kept as well as its masked copy, and R computes x and
// dropout_out from f.
//
//   gate_up        Ff: gate and up; from Bf on their gradient
//   moe.f          where moe.dropout_out is f: the FFN's output, then dropout(f), masked in place by the
//                  operation that writes y = x2 + f
//   attention      att|a_o with tp = 1; with kSelective a_o is also kept in a_o, from which R restores it

struct MoeSaved {
  Tensor f;             // [S, H] FFN output
  Tensor dropout_out;   // [S, H] dropout(f): in kSelective one for all layers, else in f's place
  Tensor probs;         // [S, E] F32
  Tensor topk_indices;  // [S, k] I32
  Tensor topk_weights;  // [S, k] F32
  std::vector<int32_t> topk_indices_host;      // [slice_real, k] `topk_indices` on the host
  Tensor adapter_pre_act;                      // [M, d] adapters before GELU (the only round's)
  Tensor recv_tokens, recv_topk_weights;       // [C, H], [C, k] F32; where tokens travel
  Tensor indices;                              // [chunks, N] I32 of the plans; where tokens travel
  std::array<DispatchPlan, kMaxChunks> plans;  // of the chunks
};

struct LayerSaved {
  Tensor x;                 // [S, H] layer input
  Tensor rstd1, rstd2;      // [1, S] F32
  Tensor qkv;               // [P, (HQ + 2 HK) D]; q and k rotated, or with norms of q and k before the norms
  Tensor attention;         // [P, HQ D]; with tp = 1, a_o is concatenated to it where B is to W of o
  Tensor lse;               // [HQ, P] F32
  Tensor x2;                // [S, H] after attention
  Tensor gate_up;           // [P, 2F]
  Tensor a_qkv, a_gate_up;  // [P, R] LoRA activations of the column-parallel linears
  Tensor a_o, a_down;       // [S, r] of the row-parallel ones; a_o unless it is kept in `attention`
  MoeSaved moe;
};

struct Saved {
  std::vector<LayerSaved> layers;
  Tensor x_final;        // [S, H] input of the final norm
  Tensor rstd_final;     // [1, S] F32
  Tensor stats;          // [2 * layers, E] F32: per layer assignments and sums of probabilities
  Tensor aux_loss_grad;  // [layers, E] F32 gradient with respect to each token's probabilities
  Tensor aux_loss;       // [1, layers] F32
};

struct Workspace {
  Tensor h, dslice;                            // [S, H + concat_columns()] (lora_linear.h)
  Tensor adapter_dinput, dx;                   // [S, H]; `adapter_dinput` in a forward: see Recompute
  Tensor dropout_out;                          // [S, H] dropout of a norm's output, with LoRA's dropout
  Tensor gathered, gathered_grad;              // [P, H], the first like h
  Tensor ffn_grad;                             // [P, max(F + r, (HQ + 2 HK) D)]
  Tensor ffn_act;                              // [P, max(F + r, HQ D + r)]
  Tensor qk, rstd_qk;                          // [P, (HQ + 2 HK) D], [P, HQ + HK] F32: with norms of q and k
  Tensor lora_slice, lora_full;                // [S, R], [P, R]
  Tensor dtopk_weights, dlogits;               // [S, k], [S, E] F32
  Tensor recv_tokens, recv_grad, adapter_out;  // [C, H]; where tokens travel
  Tensor recv_topk_weights, recv_dtopk_weights;  // [C, k] F32
  Tensor adapter_pre_act;                        // [C k, d] adapters of further rounds
  WeightGatherer::Buffers adapters;              // of all experts: with ExpertExchange::kWeights and ep > 1
  Tensor head_rows, head_drows, logits;          // [chunk, H], [chunk, H], [chunk, V]
  Tensor max, sums, loss;                        // [1, chunk], [2, chunk], [1, chunk] F32
};

// The sizes from which both the plan and the run allocate.
struct Sizes {
  int64_t slice = 0, padded = 0;
  int chunks = 1;
  int token_ranks = 1;      // between which tokens travel: ep, or 1 where the adapters' weights do
  int weight_buffers = 0;   // of gathered adapters' weights: 0 where none travel
  int64_t chunk_slice = 0;  // tokens of a chunk
  int64_t capacity = 0, assignments = 0;  // of a chunk's round
  int64_t indices = 0;                    // of a chunk's plan: TokenDispatcher::index_count
  DType compute = DType::kF32;
  Sizes(const Capacity& capacity, const PescConfig& pesc, const Mesh& mesh, DType compute);
};

// One rank's part of a model, from which the shapes of its tensors follow.
struct ModelPart {
  const ModelConfig& model;
  const PescConfig& pesc;
  const Mesh& mesh;
  const ModelParameters& parameters;
  const Sizes& sizes;
};

[[nodiscard]] Saved allocate_saved(const ModelPart& part, Purpose purpose, Recompute recompute, Arena& arena);
[[nodiscard]] Workspace allocate_workspace(const ModelPart& part, const Capacity& capacity, Arena& arena);
// The peak bytes of the exchange's own scratch arena.
[[nodiscard]] int64_t dispatch_scratch_bytes(const ModelConfig& model, const PescConfig& pesc,
                                             const Sizes& sizes);
// The peak bytes of the ops' scratch arena.
[[nodiscard]] int64_t scratch_bytes(const ModelPart& part, const Capacity& capacity, const Device& device);

}  // namespace pesc
