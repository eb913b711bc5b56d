// The whole model on one rank: embedding, decoder layers, head; forward and backward of one micro-batch at a
// time.
//
// All memory comes from named arenas that are laid out before the first step. `Decoder::plan` computes their
// sizes for any layout, without a device or a communicator. model/README.md walks through a layer.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/activations.h"
#include "model/attention_block.h"
#include "model/batch.h"
#include "model/config.h"
#include "model/forward_context.h"
#include "model/head.h"
#include "model/layer_adapters.h"
#include "model/lora_linear.h"
#include "model/parameters.h"
#include "model/router_replay.h"
#include "parallel/communicator.h"
#include "parallel/gpu_world.h"
#include "parallel/mesh.h"
#include "parallel/tensor_parallel.h"
#include "parallel/token_dispatcher.h"

namespace pesc {

// The groups of one rank; owned by the caller.
struct Groups {
  Communicator& world;
  Communicator& tp;
  Communicator& ep;
};

// Whether collectives on a GPU run on a stream of their own, concurrently with kernels. Results are the same.
enum class Overlap { kOff, kOn };

struct DecoderOptions {
  Device device;
  Capacity capacity;
  int64_t max_positions = 0;  // of the rotary tables: the longest sequence, generation included
  int64_t cache_slots = 0;    // sequences of the KV cache; 0: none
  Purpose purpose = Purpose::kTraining;
  Recompute recompute = Recompute::kNone;             // of training
  DType compute = DType::kF32;                        // of weights and activations: F32, or BF16 on CUDA
  std::optional<FrozenFormat> frozen;                 // of the frozen linears; absent: as `compute`
  FrozenGemm frozen_gemm = FrozenGemm::kDequantized;  // of quantised ones
  Overlap overlap = Overlap::kOn;
  GpuUse gpu_use = GpuUse::kExclusive;  // decides what NCCL takes

  [[nodiscard]] Precision precision() const {
    return {compute, frozen.value_or(plain_format(compute)), frozen_gemm};
  }
};

// Whether collectives have a stream of their own.
[[nodiscard]] inline bool has_comm_stream(const Mesh& mesh, const DecoderOptions& options) {
  return options.overlap == Overlap::kOn && mesh.world() > 1;
}

struct ArenaSize {
  std::string name;
  int64_t bytes = 0;
};
struct ForwardOptions {
  ForwardMode kind = ForwardMode::kTrain;
  uint64_t seed = 0;
  uint32_t step = 0;
  RouterReplay* router_replay = nullptr;
};

class Decoder {
 public:
  Decoder(const ModelConfig& model, const PescConfig& pesc, const Mesh& mesh, const Groups& groups,
          const DecoderOptions& options);
  ~Decoder();

  // Bytes of every arena of a rank of this mesh, with nothing allocated. For all that a rank takes of its
  // device see model/device_memory.h.
  [[nodiscard]] static std::vector<ArenaSize> plan(const ModelConfig& model, const PescConfig& pesc,
                                                   const Mesh& mesh, const DecoderOptions& options);

  [[nodiscard]] ModelParameters& parameters();
  [[nodiscard]] const ModelParameters& parameters() const;
  [[nodiscard]] Stream& stream();
  [[nodiscard]] std::vector<ArenaSize> arenas() const;
  [[nodiscard]] const ModelConfig& model() const { return model_; }
  [[nodiscard]] const PescConfig& pesc() const { return pesc_; }
  [[nodiscard]] const Mesh& mesh() const { return mesh_; }

  // Embedding and layers. Collective over world; a rank without tokens takes part with an empty batch.
  void forward(const HostBatch& batch, const ForwardOptions& options);
  // Sums the routing statistics of the forward over world and derives the aux loss and its gradient.
  // `tokens`: real tokens of the micro-batch over all ranks; `coef`: weight of one layer's loss in the total.
  // Collective over world.
  void compute_aux_loss(int64_t tokens, double coef);
  // Adds the loss of the batch's supervised rows to the sum of take_loss_sum(). With kLossAndGradient,
  // backward() may follow.
  void loss(HeadMode mode, float grad_scale, std::vector<float>* row_losses = nullptr);
  // Called for each layer, the last one first, after the work that completes its trainable gradients is
  // enqueued, and after this layer's critical collectives, so that a gradient reduction does not delay them.
  using LayerDone = std::function<void(int64_t layer)>;
  // Adds to the gradients of the trainable parameters. REQUIRES: loss(kLossAndGradient) before.
  void backward(const LayerDone& done = {});
  // Returns the logits [rows, vocab] of positions `rows` of the local batch, the same on every tp rank.
  // Collective over tp.
  [[nodiscard]] std::vector<float> logits(const std::vector<int32_t>& rows);

  void zero_gradients();
  // Returns the loss in nats, summed over this dp rank's supervised rows since the last call, and resets it.
  // The same on all its tp ranks.
  [[nodiscard]] double take_loss_sum();
  // A [1, 1] F64 device tensor for the caller's sums (the gradient norm).
  [[nodiscard]] Tensor scalar() const;
  // Host copies after `compute_aux_loss`: the loss of each layer; assignments of each expert [layers, E] over
  // all ranks.
  [[nodiscard]] std::vector<float> aux_losses();
  [[nodiscard]] std::vector<float> expert_assignments();
  // The last forward's expert choices and their weights, [slice_real, k] of a layer; and its batch.
  [[nodiscard]] std::vector<int32_t> topk_indices(int64_t layer);
  [[nodiscard]] std::vector<float> topk_weights(int64_t layer);
  [[nodiscard]] const Batch& batch() const { return batch_; }
  // The largest number of exchange rounds of the last forward, over its layers.
  [[nodiscard]] int dispatch_rounds() const;

 private:
  struct Memory;
  [[nodiscard]] ForwardContext context();
  Tensor final_hidden(const ForwardContext& ctx);
  enum class Run { kFirst, kRecompute };  // kRecompute keeps the choice of experts
  void embed(const Tensor& x);
  void layer_forward(const ForwardContext& ctx, int64_t i, RouterReplay* router_replay, const Tensor& next,
                     Run run);
  void recompute_input(const ForwardContext& ctx, int64_t i);
  void layer_backward(const ForwardContext& ctx, int64_t i, const Tensor& dx, const LayerDone& done);
  void chunk_backward(const ForwardContext& ctx, int64_t i, size_t c, const Tensor& df, const Tensor& h,
                      const Tensor& dropped, const ConcatView& dh);

  ModelConfig model_;
  PescConfig pesc_;
  Mesh mesh_;
  Groups groups_;
  DecoderOptions options_;
  Stream stream_;
  TensorParallel tp_;
  std::unique_ptr<Memory> memory_;
  CommContext comm_;
  std::unique_ptr<TokenDispatcher> dispatcher_;  // null without experts
  std::unique_ptr<LayerAdapters> adapters_;      // null without experts
  Batch batch_;
  std::vector<BatchChunk> chunks_;
  ForwardOptions forward_options_;
};

}  // namespace pesc
