// The comparisons of golden_check: each quantity is a set of tensors with one tolerance.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "ops/core/check.h"

namespace pesc {

inline constexpr std::array kQuantities{"dense.logits",    "dense.loss", "pesc.logits", "top_experts",
                                        "top_weights",     "grad",       "curve.ce",    "curve.aux_loss",
                                        "curve.grad_norm", "final"};
inline constexpr const char* kEach = "each";

// Collects comparisons per quantity; the largest relative error of any of its tensors counts. `corrupt` names
// a quantity of which the first tensor compared is spoilt: one expected value by 20 tolerances, or, where tensors are
// compared as a whole, all that was computed is 0. Or it is kEach, and all comparisons are kept for print().
class Report {
 public:
  explicit Report(std::string corrupt) : corrupt_(std::move(corrupt)) {}

  void compare(const std::string& quantity, double tolerance, std::vector<float> got, std::vector<float> want,
               const std::string& tensor) {
    add({quantity, tensor, tolerance, Kind::kRelative, std::move(got), std::move(want)});
  }

  // ||got - want|| / ||want|| of the tensor in place of its worst element: for values whose elements may be off by their size.
  void compare_norm(const std::string& quantity, double tolerance, std::vector<float> got,
                    std::vector<float> want, const std::string& tensor) {
    add({quantity, tensor, tolerance, Kind::kNorm, std::move(got), std::move(want)});
  }

  // `tolerance`: the share of values that may differ. Experts' numbers are exact in float32.
  void compare_exact(const std::string& quantity, double tolerance, const std::vector<int32_t>& got,
                     const std::vector<int32_t>& want, const std::string& tensor) {
    add({quantity, tensor, tolerance, Kind::kExact, {got.begin(), got.end()}, {want.begin(), want.end()}});
  }

  // Whether all is well: within tolerance, and with kEach, each spoilt value noticed.
  [[nodiscard]] bool print() const {
    std::printf("%-16s %8s %8s %12s %10s  %s\n", "quantity", "tensors", "values", "worst error", "tolerance",
                "");
    for (const auto& [name, line] : lines_) {
      std::printf("%-16s %8lld %8lld %12.3e %10.0e  %s  (%s)\n", name.c_str(),
                  static_cast<long long>(line.tensors), static_cast<long long>(line.values), line.worst,
                  line.tolerance, line.ok ? "ok" : "WRONG", line.tensor.c_str());
    }
    PESC_CHECK(corrupt_.empty() || corrupt_ == kEach || corrupt_done_, "nothing of '", corrupt_,
               "' was compared");
    const bool ok = wrong(lines_).empty();
    return corrupt_ == kEach ? spoil_each() && ok : ok;
  }

 private:
  enum class Kind { kRelative, kNorm, kExact };
  struct Comparison {
    std::string quantity, tensor;
    double tolerance = 0;
    Kind kind = Kind::kRelative;
    std::vector<float> got, want;
  };
  struct Line {
    int64_t tensors = 0, values = 0;
    double worst = 0, tolerance = 0;
    bool ok = true;
    std::string tensor;
  };
  using Lines = std::map<std::string, Line>;

  void add(Comparison c) {
    PESC_CHECK(c.got.size() == c.want.size(), c.tensor, ": ", c.got.size(), " values against ",
               c.want.size());
    if (c.quantity == corrupt_ && !corrupt_done_ && !c.want.empty()) {
      spoil(c);
      corrupt_done_ = true;
    }
    judge(c, lines_);
    if (corrupt_ == kEach) kept_.push_back(std::move(c));
  }

  static void spoil(Comparison& c) {
    if (c.kind == Kind::kExact) {
      c.want.front() += 1;
      return;
    }
    if (c.kind == Kind::kNorm) {
      std::fill(c.got.begin(), c.got.end(), 0.0F);
      return;
    }
    const auto largest = std::max_element(c.want.begin(), c.want.end(),
                                          [](float a, float b) { return std::abs(a) < std::abs(b); });
    *largest += std::max(std::abs(*largest), 1e-3F) * static_cast<float>(c.tolerance) * 20.0F;
  }

  static void judge(const Comparison& c, Lines& lines) {
    double error = 0;
    bool ok = true;
    if (c.kind == Kind::kExact) {
      int64_t different = 0;
      for (size_t i = 0; i < c.got.size(); ++i) different += c.got[i] != c.want[i] ? 1 : 0;
      error = static_cast<double>(different) / std::max<double>(1, static_cast<double>(c.got.size()));
      ok = error <= c.tolerance;
    } else if (c.kind == Kind::kNorm) {
      double difference = 0, scale = 0;
      for (size_t i = 0; i < c.got.size(); ++i) {
        const double want = c.want[i], d = c.got[i] - want;
        difference += d * d;
        scale += want * want;
      }
      error = std::sqrt(scale == 0 ? difference : difference / scale);
      if (std::isnan(error)) error = INFINITY;
      ok = error <= (scale == 0 ? 1e-7 : c.tolerance);
    } else {
      double difference = 0;
      double scale = 0;
      for (size_t i = 0; i < c.got.size(); ++i) {
        const double d = std::abs(static_cast<double>(c.got[i]) - c.want[i]);
        difference = std::isnan(d) ? INFINITY : std::max(difference, d);
        scale = std::max(scale, std::abs(static_cast<double>(c.want[i])));
      }
      const bool zero = scale == 0;
      error = zero ? difference : difference / scale;
      ok = error <= (zero ? 1e-7 : c.tolerance);
    }
    Line& line = lines[c.quantity];
    line.tolerance = c.tolerance;
    line.values += static_cast<int64_t>(c.got.size());
    line.tensors += 1;
    line.ok = line.ok && ok;
    if (error >= line.worst) {
      line.worst = error;
      line.tensor = c.tensor;
    }
  }

  static std::vector<std::string> wrong(const Lines& lines) {
    std::vector<std::string> names;
    for (const auto& [name, line] : lines)
      if (!line.ok) names.push_back(name);
    return names;
  }

  // Of every comparison, one value spoilt: its quantity, no other, and its tensor must be called wrong.
  [[nodiscard]] bool spoil_each() const {
    std::map<std::string, std::pair<int64_t, int64_t>> counts;  // noticed, of all
    for (size_t spoilt = 0; spoilt < kept_.size(); ++spoilt) {
      Lines lines;
      for (size_t i = 0; i < kept_.size(); ++i) {
        if (i != spoilt) {
          judge(kept_[i], lines);
          continue;
        }
        Comparison c = kept_[i];
        if (!c.want.empty()) spoil(c);
        judge(c, lines);
      }
      const Comparison& c = kept_[spoilt];
      const bool noticed = wrong(lines) == std::vector{c.quantity} && lines.at(c.quantity).tensor == c.tensor;
      if (!noticed) std::printf("NOT NOTICED: %s of %s\n", c.tensor.c_str(), c.quantity.c_str());
      counts[c.quantity].first += noticed ? 1 : 0;
      counts[c.quantity].second += 1;
    }
    bool all = true;
    for (const char* name : kQuantities) {
      const auto& [noticed, of] = counts[name];
      std::printf("%-16s spoilt in %lld tensors, noticed in %lld\n", name, static_cast<long long>(of),
                  static_cast<long long>(noticed));
      all = all && noticed == of && of > 0;
    }
    return all;
  }

  std::string corrupt_;
  bool corrupt_done_ = false;
  Lines lines_;
  std::vector<Comparison> kept_;
};

}  // namespace pesc
