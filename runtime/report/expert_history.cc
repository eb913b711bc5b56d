#include "runtime/report/expert_history.h"

#include <algorithm>
#include <utility>

namespace pesc {
namespace {

constexpr size_t kMostTagsOfSlice = 4096;  // of a slice; a run of ours has a handful

void add_to(std::vector<double>& sum, std::span<const double> values, double weight) {
  if (sum.empty()) sum.resize(values.size());
  if (sum.size() != values.size()) return;
  for (size_t i = 0; i < values.size(); ++i) sum[i] += weight * values[i];
}

}  // namespace

void ExpertHistory::merge_neighbours() {
  std::vector<Slice> merged;
  for (size_t i = 0; i < slices_.size(); i += 2) {
    Slice& a = slices_[i];
    if (i + 1 < slices_.size()) {
      const Slice& b = slices_[i + 1];
      a.last = b.last;
      a.steps += b.steps;
      if (!b.layers.empty()) add_to(a.layers, b.layers, 1);
      for (const auto& [tag, of_b] : b.tags) {
        OfTag& of_a = a.tags[tag];
        of_a.tokens += of_b.tokens;
        add_to(of_a.share, of_b.share, 1);
      }
    }
    merged.push_back(std::move(a));
  }
  slices_ = std::move(merged);
  width_ *= 2;
}

void ExpertHistory::begin_step(int64_t step) {
  while (slices_.size() >= most_slices_ && slices_.back().steps == width_) merge_neighbours();
  if (slices_.empty() || slices_.back().steps == width_) slices_.push_back({step, step, 0, {}, {}});
  slices_.back().last = step;
  ++slices_.back().steps;
}

void ExpertHistory::add_layers(std::span<const double> share, int64_t layers) {
  if (layers <= 0 || share.empty() || static_cast<int64_t>(share.size()) % layers != 0) return;
  if (layers_ == 0) {
    layers_ = layers;
    experts_ = static_cast<int64_t>(share.size()) / layers;
    most_slices_ = std::clamp<size_t>(most_values_ / share.size(), 2, 48) & ~size_t{1};
  }
  if (layers == layers_ && static_cast<int64_t>(share.size()) == layers_ * experts_)
    add_to(slices_.back().layers, share, 1);
}

void ExpertHistory::add_tag(std::string_view tag, std::span<const double> share, double tokens) {
  auto& tags = slices_.back().tags;
  auto found = tags.find(tag);
  if (found == tags.end()) {
    if (tags.size() >= kMostTagsOfSlice) return;
    found = tags.emplace(std::string(tag), OfTag{}).first;
  }
  found->second.tokens += tokens;
  add_to(found->second.share, share, tokens);
}

}  // namespace pesc
