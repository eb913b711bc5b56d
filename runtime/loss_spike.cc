#include "runtime/loss_spike.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "ops/core/check.h"

namespace pesc {
namespace {

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

double LossSpikes::usual() const {
  return losses_.empty() ? 0 : median({losses_.begin(), losses_.end()});
}

bool LossSpikes::is_spike(double loss) const {
  if (ratio_ <= 0 || losses_.size() < kLeast) return false;
  const double middle = usual();
  std::vector<double> distances;
  for (const double l : losses_) distances.push_back(std::abs(l - middle));
  return loss > ratio_ * middle && loss > middle + kDeviations * 1.4826 * median(distances);
}

void LossSpikes::add(double loss) {
  losses_.push_back(loss);
  if (losses_.size() > kWindow) losses_.pop_front();
}

std::string LossSpikes::save() const {
  std::string bytes;
  for (const double l : losses_) bytes.append(reinterpret_cast<const char*>(&l), sizeof(l));
  return bytes;
}

void LossSpikes::load(const std::string& bytes) {
  if (bytes.size() % sizeof(double) != 0 || bytes.size() > kWindow * sizeof(double))
    throw DataError(str_cat("the checkpoint's recent losses are damaged (", bytes.size(), " bytes)"));
  losses_.clear();
  for (size_t at = 0; at < bytes.size(); at += sizeof(double)) {
    double l = 0;
    std::memcpy(&l, bytes.data() + at, sizeof(l));
    losses_.push_back(l);
  }
}

}  // namespace pesc
