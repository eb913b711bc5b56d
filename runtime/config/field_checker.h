// Checks of an experiment's values, for the readers of its messages.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <string>

#include "ops/core/check.h"
#include "runtime/config/field_places.h"

namespace pesc {

// Refuses values, naming the field, where it was set, its value and what is allowed. Not-a-number is in no
// range.
class FieldChecker {
 public:
  explicit FieldChecker(const FieldPlaces& places) : places_(places) {}

  void require(bool ok, const std::string& field, const std::string& what) const {
    if (!ok) throw UsageError(str_cat(places_.prefix(field), field, " ", what));
  }
  template <class T>
  void range(const std::string& field, T value, T low, T high) const {
    require(value >= low && value <= high, field,
            str_cat("is ", value, "; it must be between ", low, " and ", high));
  }
  // Counts of steps and rows: more than any run will see is a mistake too.
  void at_least(const std::string& field, int64_t value, int64_t low) const {
    require(value >= low, field, str_cat("is ", value, "; it must be at least ", low));
    require(value <= int64_t{1} << 40, field, str_cat("is ", value, "; it must be at most 2^40"));
  }
  void share(const std::string& field, double value) const {
    require(value >= 0 && value < 1, field, str_cat("is ", value, "; it must be at least 0 and less than 1"));
  }
  // Neither infinite nor rounded to 0 in the type that steps compute in.
  void in_float32(const std::string& field, double value) const {
    const double size = std::abs(value);
    require(size == 0 || (size >= double{FLT_MIN} && size <= double{FLT_MAX}), field,
            str_cat("is ", value, "; in float32 a number is 0, or between ", FLT_MIN, " and ", FLT_MAX));
  }
  void positive(const std::string& field, double value) const {
    require(value > 0 && std::isfinite(value), field,
            str_cat("is ", value, "; it must be positive and finite"));
    in_float32(field, value);
  }
  void not_negative(const std::string& field, double value) const {
    require(value >= 0 && std::isfinite(value), field,
            str_cat("is ", value, "; it must be finite and not negative"));
    in_float32(field, value);
  }
  // Under a name that only a shell replaces it would be made where nobody looks for it.
  void folder_to_make(const std::string& field, const std::string& path) const {
    require(!path.starts_with('~') && !path.starts_with('$'), field,
            str_cat("is '", path, "'; ~ and the variables of a shell are not replaced here: write the whole ",
                    "path, or ./", path, " for a folder of that name"));
  }
  void above_one_or_zero(const std::string& field, double value) const {
    require(value == 0 || (value > 1 && std::isfinite(value)), field,
            str_cat("is ", value, "; it must be above 1 and finite, or 0 for none"));
  }

 private:
  const FieldPlaces& places_;
};

}  // namespace pesc
