#include "model/gradient_slots.h"

#include <algorithm>

#include "model/parameters.h"
#include "ops/core/check.h"

namespace pesc {

void GradientSlots::fill(const std::vector<Parameter>& all) const {
  std::vector<bool> reached(all.size(), false);
  for (const auto& [slot, members] : members_) {
    std::vector<size_t> sorted = members;
    std::sort(sorted.begin(), sorted.end());
    *slot = {};
    for (const size_t i : sorted) {
      const Parameter& p = all.at(i);
      reached[i] = true;
      if (i == sorted.front()) {
        *slot = p.grad;
        continue;
      }
      // While planning, both are null.
      const void* end = slot->row_range(slot->rows, slot->rows).data;
      PESC_CHECK(p.grad.cols == slot->cols && p.grad.data == end, "the gradient of '", p.spec.name,
                 "' does not stand below the one before it in their slot");
      slot->rows += p.grad.rows;
    }
  }
  for (size_t i = 0; i < all.size(); ++i)
    PESC_CHECK(reached[i] || !all[i].trainable, "'", all[i].spec.name,
               "' is trainable and has no gradient slot");
}

}  // namespace pesc
