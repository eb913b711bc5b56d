// The load of experts over a run, in a bounded number of slices of its steps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace pesc {

class ExpertHistory {
 public:
  struct OfTag {
    double tokens = 0;
    std::vector<double> share;  // [experts], the sum over steps of share * tokens
  };
  struct Slice {
    int64_t first = 0, last = 0, steps = 0;
    std::vector<double> layers;  // [layers][experts], the sum over steps
    std::map<std::string, OfTag, std::less<>> tags;
  };

  // At most so many values in all slices together.
  explicit ExpertHistory(size_t most_values) : most_values_(most_values) {}

  // Begins a step. Slices are of equal numbers of steps; neighbours are merged when there are too many.
  void begin_step(int64_t step);
  // [layers * experts], of the step that has begun. A number of values other than before is left out.
  void add_layers(std::span<const double> share, int64_t layers);
  // [experts], of the step's tokens with this tag.
  void add_tag(std::string_view tag, std::span<const double> share, double tokens);

  [[nodiscard]] const std::vector<Slice>& slices() const { return slices_; }
  [[nodiscard]] int64_t layers() const { return layers_; }
  [[nodiscard]] int64_t experts() const { return experts_; }

 private:
  void merge_neighbours();

  size_t most_values_, most_slices_ = 48;
  int64_t width_ = 1;  // steps of a full slice
  int64_t layers_ = 0, experts_ = 0;
  std::vector<Slice> slices_;
};

}  // namespace pesc
