#include "model/layer_adapters.h"

#include <utility>

namespace pesc {

LayerAdapters::LayerAdapters(const std::vector<LayerParameters>& layers,
                             std::unique_ptr<WeightGatherer> gatherer)
    : layers_(layers), gatherer_(std::move(gatherer)) {}

void LayerAdapters::begin_forward(Stream& stream) {
  if (gatherer_ == nullptr) return;
  gatherer_->forget();
  gather_ahead(stream, 0);
}

MoeParameters LayerAdapters::forward(Stream& stream, int64_t i) {
  MoeParameters p = own(i);
  if (gatherer_ == nullptr) return p;
  gatherer_->start_gather(stream, i, {p.down, p.up});
  const AdapterMatrices& all = gatherer_->weights(i);
  p.down = all.down;
  p.up = all.up;
  return p;
}

MoeParameters LayerAdapters::backward(Stream& stream, int64_t i) {
  MoeParameters p = forward(stream, i);
  if (gatherer_ == nullptr) return p;
  gather_ahead(stream, i - 1);
  const AdapterMatrices& grads = gatherer_->zero_grads(stream);
  p.ddown = grads.down;
  p.dup = grads.up;
  return p;
}

void LayerAdapters::gather_ahead(Stream& stream, int64_t i) {
  const bool exists = 0 <= i && i < static_cast<int64_t>(layers_.size());
  if (gatherer_ == nullptr || !gatherer_->gathers_ahead() || !exists) return;
  gatherer_->start_gather(stream, i, {own(i).down, own(i).up});
}

void LayerAdapters::finish_gather(Stream& stream, int64_t i) const {
  if (gatherer_ != nullptr) gatherer_->finish_gather(stream, i);
}

void LayerAdapters::reduce_grads(Stream& stream, int64_t i) {
  if (gatherer_ != nullptr) gatherer_->reduce_scatter_grads(stream, {own(i).ddown, own(i).dup});
}

void LayerAdapters::finish_backward(Stream& stream) const {
  if (gatherer_ != nullptr) stream.wait_stream(stream.comm_stream());
}

}  // namespace pesc
