// What the forward keeps for the backward, and the transient buffers of both: explicit structs whose size is
// known before the first step. Norm outputs, SwiGLU outputs, gathered inputs and dropout masks are derived
// again always; what else is, `Recompute` says.
//
// Activations and their gradients are of the compute type (F32 or BF16); what is marked F32 always is.
//
// S tokens of this rank's slice, P = S * tp gathered tokens (both with padding), C received rows per exchange
// round, those of the chunks one after the other.
#pragma once

#include <array>
#include <vector>

#include "model/config.h"
#include "model/parameters.h"
#include "ops/core/arena.h"
#include "parallel/expert_exchange.h"

namespace pesc {

// What a decoder is for. Inference keeps nothing for a backward: its layers share one set of buffers, and
// there are no gradients and moments.
enum class Purpose { kTraining, kInference };

// What training keeps of each layer. Tensors that are not kept are one memory for all layers, which the
// backward of a layer finds filled again, bit for bit as the forward left it: by the same operations, in the
// same order.
//   kNone   all of LayerSaved
//   kCheap  not what comes again without a product of a dense weight: the attention's output and lse, from
//           qkv; with experts also the layer's input, from x2 and f of the layer below (of the first layer:
//           from the tokens), and on the way what the adapters read and keep
//   kBlock  the layer's input and the routing; the layer's forward runs again, but for the choice of experts
enum class Recompute { kNone, kCheap, kBlock };
[[nodiscard]] const char* recompute_name(Recompute recompute);  // "NONE", "CHEAP", "BLOCK"

// The largest micro-batch share and exchange that a run will see; every size below follows from it.
struct Capacity {
  int64_t max_tokens = 0;    // T of one rank
  int64_t max_sequence = 0;  // tokens of the longest sequence
  double exchange_headroom = 2;
  int64_t head_chunk = 2048;  // supervised rows whose logits exist at one time
  int exchange_chunks = 1;    // runs of the slice's tokens that are exchanged one by one: 1 or 2
};

inline constexpr int kMaxChunks = 2;
// What suits a training run: two chunks, one exchanging under the other's FFN, on GPUs that exchange, where
// half of the slice's tokens still make products that fill the chip.
[[nodiscard]] int usual_exchange_chunks(DeviceKind device, const PescConfig& pesc, const Mesh& mesh,
                                        int64_t max_tokens);

struct MoeSaved {
  Tensor f;                           // [S, H] FFN output
  Tensor dropped;                     // [S, H] dropout(f): in kCheap one for all layers, else in f's place
  Tensor probs;                       // [S, E] F32
  Tensor experts;                     // [S, k] I32
  Tensor weights;                     // [S, k] F32
  std::vector<int32_t> chosen;        // [slice_real, k] `experts` on the host
  Tensor hidden;                      // [M, d] adapters before GELU (the only round's)
  Tensor received, received_weights;  // [C, H], [C, k] F32; ep > 1
  Tensor indices;                     // [chunks, N] I32 of the plans; ep > 1
  std::array<ExchangePlan, kMaxChunks> plans;  // of the chunks
};

struct LayerSaved {
  Tensor x;                 // [S, H] layer input
  Tensor rstd1, rstd2;      // [1, S] F32
  Tensor qkv;               // [P, (HQ + 2 HK) D], rotated
  Tensor attention;         // [P, HQ D], on one tp rank with a_o beside it where W and B of o stand so
  Tensor lse;               // [HQ, P] F32
  Tensor x2;                // [S, H] after attention
  Tensor gate_up;           // [P, 2F]
  Tensor a_qkv, a_gate_up;  // [P, R] LoRA activations of the column-parallel linears
  Tensor a_o, a_down;       // [S, r] of the row-parallel ones; a_o where it is not kept beside `attention`
  MoeSaved moe;
};

struct Saved {
  std::vector<LayerSaved> layers;
  Tensor x_final;       // [S, H] input of the final norm
  Tensor rstd_final;    // [1, S] F32
  Tensor stats;         // [2 * layers, E] F32: per layer assignments and sums of probabilities
  Tensor balance;       // [layers, E] F32 gradient with respect to each token's probabilities
  Tensor balance_loss;  // [1, layers] F32
};

struct Workspace {
  Tensor h, dslice;                            // [S, H] and LoRA columns beside them (lora_linear.h)
  Tensor delta, dx;                            // [S, H]; `delta` in a forward: see Recompute
  Tensor dropped;                              // [S, H] dropout of a norm's output, with LoRA's dropout
  Tensor gathered, gathered2;                  // [P, H], the first like h
  Tensor wide;                                 // [P, max(F + r, (HQ + 2 HK) D)]
  Tensor wide2;                                // [P, max(F + r, HQ D + r)]
  Tensor lora_slice, lora_full;                // [S, R], [P, R]
  Tensor dweights, dlogits;                    // [S, k], [S, E] F32
  Tensor received, received2, received_out;    // [C, H]; ep > 1
  Tensor received_weights, received_dweights;  // [C, k] F32
  Tensor hidden;                               // [C k, d] adapters of further rounds
  Tensor head_rows, head_drows, logits;        // [chunk, H], [chunk, H], [chunk, V]
  Tensor max, sums, loss;                      // [1, chunk], [2, chunk], [1, chunk] F32
};

// The sizes that planning and running share.
struct Sizes {
  int64_t slice = 0, padded = 0;
  int chunks = 1;
  int64_t chunk_slice = 0;                // tokens of a chunk
  int64_t capacity = 0, assignments = 0;  // of a chunk's round
  int64_t indices = 0;                    // of a chunk's plan: ExpertExchange::index_count
  DType compute = DType::kF32;
  Sizes(const Capacity& capacity, const PescConfig& pesc, const Mesh& mesh, DType compute);
};

[[nodiscard]] Saved allocate_saved(const ModelConfig& model, const PescConfig& pesc, const Mesh& mesh,
                                   const ModelParameters& parameters, const Sizes& sizes, Purpose purpose,
                                   Recompute recompute, Arena& arena);
[[nodiscard]] Workspace allocate_workspace(const ModelConfig& model, const PescConfig& pesc, const Mesh& mesh,
                                           const ModelParameters& parameters, const Sizes& sizes,
                                           const Capacity& capacity, Arena& arena);
// Bytes that the exchange may take from its own scratch arena at one time.
[[nodiscard]] int64_t exchange_bytes(const ModelConfig& model, const PescConfig& pesc, const Mesh& mesh,
                                     const Sizes& sizes);
// Bytes that the ops may take from the scratch arena at one time.
[[nodiscard]] int64_t scratch_bytes(const ModelConfig& model, const PescConfig& pesc, const Mesh& mesh,
                                    const ModelParameters& parameters, const Sizes& sizes,
                                    const Capacity& capacity, const Device& device);

}  // namespace pesc
