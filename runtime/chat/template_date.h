#pragma once

#include <cstddef>
#include <string_view>

namespace pesc {

// Whether it is a day as data.template_date has it: "2025-01-31".
[[nodiscard]] constexpr bool is_date(std::string_view date) {
  if (date.size() != 10 || date[4] != '-' || date[7] != '-') return false;
  for (const size_t i :
       {size_t{0}, size_t{1}, size_t{2}, size_t{3}, size_t{5}, size_t{6}, size_t{8}, size_t{9}}) {
    if (date[i] < '0' || date[i] > '9') return false;
  }
  const int month = (date[5] - '0') * 10 + date[6] - '0';
  const int day = (date[8] - '0') * 10 + date[9] - '0';
  return month >= 1 && month <= 12 && day >= 1 && day <= 31;
}

}  // namespace pesc
