// The adapters with which a rank computes a layer: those of its own experts, or, with ExpertExchange::kWeights, those of
// all experts, which it gathers (parallel/weight_gatherer.h).
#pragma once

#include <memory>
#include <vector>

#include "model/parameters.h"
#include "parallel/weight_gatherer.h"

namespace pesc {

class LayerAdapters {
 public:
  // `layers` outlives this. Without a gatherer (null) the layers' own adapters are used, and every call below does no
  // more than to return them.
  LayerAdapters(const std::vector<LayerParameters>& layers, std::unique_ptr<WeightGatherer> gatherer);

  // Before the first layer's forward: the weights may have changed since they were gathered.
  void begin_forward(Stream& stream);
  // The parameters of layer i. Begins to gather its adapters where that has not begun.
  [[nodiscard]] MoeParameters forward(Stream& stream, int64_t i);
  // The same, with the gradients' buffers set to zero where they are of all experts. Begins to gather layer i - 1 too,
  // whose turn is next.
  [[nodiscard]] MoeParameters backward(Stream& stream, int64_t i);
  // Begins to gather the adapters of layer i, if there is such a layer and a buffer for it. REQUIRES: the layer two
  // above or below it, which has the same buffer, is enqueued.
  void gather_ahead(Stream& stream, int64_t i);
  // What is enqueued on `stream` from now on finds the weights that forward() or backward() returned for layer i.
  void finish_gather(Stream& stream, int64_t i) const;
  // After the backward of layer i's adapters: adds their gradients' sum over the expert group to those of this rank's
  // experts, on the comm stream.
  void reduce_grads(Stream& stream, int64_t i);
  // What is enqueued on `stream` from now on finds these gradients.
  void finish_backward(Stream& stream) const;

 private:
  [[nodiscard]] const MoeParameters& own(int64_t i) const { return layers_[static_cast<size_t>(i)].moe; }

  const std::vector<LayerParameters>& layers_;
  std::unique_ptr<WeightGatherer> gatherer_;
};

}  // namespace pesc
