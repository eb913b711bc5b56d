// Loss spikes: a batch whose loss stands far above those before it, from bad rows or a corrupted computation.
//
// A loss is a spike when it exceeds both `ratio` times the median of the last kWindow losses and that median
// plus kDeviations times their median absolute deviation (times 1.4826, a standard deviation's worth). Before
// kLeast losses nothing is one. Losses that were spikes do not join the window unless they are added.
#pragma once

#include <deque>
#include <string>

namespace pesc {

class LossSpikes {
 public:
  static constexpr size_t kWindow = 64;
  static constexpr size_t kLeast = 16;
  static constexpr double kDeviations = 8;

  explicit LossSpikes(double ratio) : ratio_(ratio) {}  // 0: nothing is a spike
  [[nodiscard]] bool is_spike(double loss) const;
  [[nodiscard]] double usual() const;  // the median; 0 without losses
  void add(double loss);

  // The window as bytes, for checkpoints: a resumed run judges as the uninterrupted one does.
  [[nodiscard]] std::string save() const;
  void load(const std::string& bytes);  // throws DataError when they are no window

 private:
  double ratio_;
  std::deque<double> losses_;
};

}  // namespace pesc
