#include "runtime/update_count.h"

#include <sstream>

#include "ops/core/check.h"

namespace pesc {

std::string UpdateCount::save() const {
  return str_cat(updates_, ' ', skipped_);
}

void UpdateCount::load(const std::string& text, int64_t steps) {
  updates_ = steps;
  skipped_ = 0;
  if (text.empty()) return;
  std::istringstream in(text);
  std::string more;
  if (!(in >> updates_ >> skipped_) || in >> more || updates_ < 0 || skipped_ < 0 || skipped_ > steps ||
      updates_ > steps)
    throw DataError(str_cat("the checkpoint's count of updates is damaged (", text.size(), " bytes)"));
}

}  // namespace pesc
