// The other expert exchange (parallel/README.md): tokens stay on their ranks, and the adapters' weights travel. Every
// rank of an expert-parallel group gathers the weights of all experts of a layer, and the gradients of those weights
// are reduce-scattered to the ranks that own the experts.
//
// Gathered weights stand in one or two buffers; layer i is gathered into buffer i mod their number. With two, a layer
// can be gathered while the one before it computes. The collectives, and the addition of the gradients, are enqueued
// on stream.comm_stream().
//
// Letters: E experts of the group, e experts of this rank, d adapter size, H hidden.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/communicator.h"

namespace pesc {

// The weights of a layer's adapters, or their gradients.
struct AdapterMatrices {
  Tensor down;  // [E * d, H], or [e * d, H] of this rank's experts: expert i in rows [i * d, (i + 1) * d)
  Tensor up;    // [E * H, d], or [e * H, d]
};

class WeightGatherer {
 public:
  struct Buffers {
    std::vector<AdapterMatrices> weights;  // one or two, of all experts
    AdapterMatrices grads;                 // F32, of all experts; absent for inference
    Tensor own_grad;                       // [1, e * d * H] F32; absent for inference
  };
  // `ep` is the group; it and the buffers' memory outlive this.
  WeightGatherer(Communicator& ep, Buffers buffers);

  // Whether a layer can be gathered while another one computes.
  [[nodiscard]] bool gathers_ahead() const { return buffers_.weights.size() > 1; }
  // Forgets what has been gathered: the weights may have changed.
  void forget();
  // Begins to gather `own`, this rank's weights of `layer`, after the work enqueued on `stream` so far. Does nothing
  // where the layer stands gathered already. The layer that has the same buffer must not be used any more.
  // Collective over the group.
  void start_gather(Stream& stream, int64_t layer, const AdapterMatrices& own);
  // What `layer` is gathered into.
  [[nodiscard]] const AdapterMatrices& weights(int64_t layer) const;
  // What is enqueued on `stream` from now on finds the weights of `layer`. REQUIRES: start_gather of it before, and of
  // no other layer that has the same buffer since.
  void finish_gather(Stream& stream, int64_t layer) const;

  // The gradients of all experts, set to zero on `stream`, for the adapters' backward to add to.
  [[nodiscard]] const AdapterMatrices& zero_grads(Stream& stream) const;
  // own += this rank's part of the gradients' sum over the group, which takes what the work enqueued on `stream` so
  // far adds to them. What reads or writes `own` on another stream than the comm stream waits for that first.
  // Collective over the group.
  void reduce_scatter_grads(Stream& stream, const AdapterMatrices& own);

 private:
  [[nodiscard]] size_t buffer_of(int64_t layer) const {
    return static_cast<size_t>(layer) % buffers_.weights.size();
  }
  Communicator& ep_;
  Buffers buffers_;
  std::vector<int64_t> gathered_;  // the layer in each buffer; -1: none
  std::vector<Event> complete_;    // of each buffer's gather
  Event reduced_;                  // the gradients' buffers may be written again
};

}  // namespace pesc
