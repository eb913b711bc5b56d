// Gathering of the adapters' weights; see weight_gatherer.h. An expert's rank holds consecutive experts, so that the
// pieces of all ranks in rank order are all experts in order.
#include "parallel/weight_gatherer.h"

#include <algorithm>
#include <utility>

#include "ops/core/check.h"
#include "ops/reduce.h"

namespace pesc {

WeightGatherer::WeightGatherer(Communicator& ep, Buffers buffers)
    : ep_(ep),
      buffers_(std::move(buffers)),
      gathered_(buffers_.weights.size(), -1),
      complete_(buffers_.weights.size()) {
  PESC_CHECK(!buffers_.weights.empty(), "no buffer for the weights of '", ep.name(), "'");
}

void WeightGatherer::forget() {
  std::fill(gathered_.begin(), gathered_.end(), -1);
}

void WeightGatherer::start_gather(Stream& stream, int64_t layer, const AdapterMatrices& own) {
  const size_t b = buffer_of(layer);
  if (gathered_[b] == layer) return;
  Stream& comm_stream = stream.comm_stream();
  const PhaseScope phase(comm_stream, Phase::kCommunication);
  comm_stream.wait_stream(stream);  // the optimizer's update, and whoever read the buffer
  ep_.all_gather(comm_stream, own.down, buffers_.weights[b].down);
  ep_.all_gather(comm_stream, own.up, buffers_.weights[b].up);
  complete_[b].record(comm_stream);
  gathered_[b] = layer;
}

const AdapterMatrices& WeightGatherer::weights(int64_t layer) const {
  return buffers_.weights[buffer_of(layer)];
}

void WeightGatherer::finish_gather(Stream& stream, int64_t layer) const {
  const size_t b = buffer_of(layer);
  PESC_CHECK(gathered_[b] == layer, "the weights of layer ", layer, " are used, and those of layer ",
             gathered_[b], " were gathered");
  complete_[b].wait(stream);
}

const AdapterMatrices& WeightGatherer::zero_grads(Stream& stream) const {
  const PhaseScope phase(stream, Phase::kAdapters);
  reduced_.wait(stream);
  fill_zero(stream, buffers_.grads.down);
  fill_zero(stream, buffers_.grads.up);
  return buffers_.grads;
}

void WeightGatherer::reduce_scatter_grads(Stream& stream, const AdapterMatrices& own) {
  Stream& comm_stream = stream.comm_stream();
  const PhaseScope phase(comm_stream, Phase::kCommunication);
  comm_stream.wait_stream(stream);
  for (const auto& [all, mine] :
       {std::pair{&buffers_.grads.down, &own.down}, {&buffers_.grads.up, &own.up}}) {
    const Tensor sum = buffers_.own_grad.reshaped(mine->rows, mine->cols);
    ep_.reduce_scatter(comm_stream, *all, sum);
    add(comm_stream, sum, *mine);
  }
  reduced_.record(comm_stream);
}

}  // namespace pesc
