// The comparisons of golden_check: each quantity is a set of tensors with one tolerance.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "ops/core/check.h"

namespace pesc {

inline constexpr std::array kQuantities{"dense.logits",    "dense.loss", "pesc.logits", "top_experts",
                                        "top_weights",     "grad",       "curve.ce",    "curve.balance",
                                        "curve.grad_norm", "final"};

// Collects comparisons per quantity; the largest relative error of any of its tensors counts. `corrupt` names
// a quantity of which one expected value, in the first tensor compared, is spoilt by 20 tolerances.
class Report {
 public:
  explicit Report(std::string corrupt) : corrupt_(std::move(corrupt)) {}

  void compare(const std::string& quantity, double tolerance, const std::vector<float>& got,
               std::vector<float> want, const std::string& tensor) {
    PESC_CHECK(got.size() == want.size(), tensor, ": ", got.size(), " values against ", want.size());
    if (quantity == corrupt_ && !corrupt_done_ && !want.empty()) {
      const auto largest = std::max_element(want.begin(), want.end(),
                                            [](float a, float b) { return std::abs(a) < std::abs(b); });
      *largest += std::max(std::abs(*largest), 1e-3F) * static_cast<float>(tolerance) * 20.0F;
      corrupt_done_ = true;
    }
    double difference = 0;
    double scale = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const double d = std::abs(static_cast<double>(got[i]) - want[i]);
      difference = std::isnan(d) ? INFINITY : std::max(difference, d);
      scale = std::max(scale, std::abs(static_cast<double>(want[i])));
    }
    Line& line = lines_[quantity];
    const bool zero = scale == 0;
    const double error = zero ? difference : difference / scale;
    line.tolerance = tolerance;
    line.values += static_cast<int64_t>(got.size());
    line.tensors += 1;
    line.ok = line.ok && error <= (zero ? 1e-7 : tolerance);
    if (error >= line.worst) {
      line.worst = error;
      line.tensor = tensor;
    }
  }

  // `tolerance`: the share of values that may differ.
  void compare_exact(const std::string& quantity, double tolerance, const std::vector<int32_t>& got,
                     std::vector<int32_t> want, const std::string& tensor) {
    PESC_CHECK(got.size() == want.size(), tensor);
    if (quantity == corrupt_ && !corrupt_done_ && !want.empty()) {
      want.front() += 1;
      corrupt_done_ = true;
    }
    int64_t wrong = 0;
    for (size_t i = 0; i < got.size(); ++i) wrong += got[i] != want[i] ? 1 : 0;
    Line& line = lines_[quantity];
    line.values += static_cast<int64_t>(got.size());
    line.tensors += 1;
    const double share = static_cast<double>(wrong) / std::max<double>(1, static_cast<double>(got.size()));
    line.tolerance = tolerance;
    line.worst = std::max(line.worst, share);
    line.ok = line.ok && share <= tolerance;
    line.tensor = tensor;
  }

  [[nodiscard]] bool print() const {
    bool ok = true;
    std::printf("%-16s %8s %8s %12s %10s  %s\n", "quantity", "tensors", "values", "worst error", "tolerance",
                "");
    for (const auto& [name, line] : lines_) {
      std::printf("%-16s %8lld %8lld %12.3e %10.0e  %s  (%s)\n", name.c_str(),
                  static_cast<long long>(line.tensors), static_cast<long long>(line.values), line.worst,
                  line.tolerance, line.ok ? "ok" : "WRONG", line.tensor.c_str());
      ok = ok && line.ok;
    }
    PESC_CHECK(corrupt_.empty() || corrupt_done_, "nothing of '", corrupt_, "' was compared");
    return ok;
  }

 private:
  struct Line {
    int64_t tensors = 0, values = 0;
    double worst = 0, tolerance = 0;
    bool ok = true;
    std::string tensor;
  };
  std::string corrupt_;
  bool corrupt_done_ = false;
  std::map<std::string, Line> lines_;
};

}  // namespace pesc
