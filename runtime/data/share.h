// Counts that are asked for as a fraction of other counts.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace pesc {

// share * whole as a count: the nearest whole number where the product differs from it by rounding only (0.07
// of 100 is 7, although the product is a little more), else the next one above. At least 1 for a share above
// 0.
[[nodiscard]] inline int64_t share_of(double share, int64_t whole) {
  const double exact = share * static_cast<double>(whole);
  const double nearest = std::round(exact);
  constexpr double kRounding = 1e-9;
  if (std::abs(exact - nearest) <= kRounding * std::max(1.0, nearest)) {
    return std::max<int64_t>(static_cast<int64_t>(nearest), share > 0 ? 1 : 0);
  }
  return static_cast<int64_t>(std::ceil(exact));
}

}  // namespace pesc
