// A slot is the gradient that it was added for, in whichever order slots are added.
#include "model/gradient_slots.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <vector>

#include "model/parameters.h"
#include "ops/core/check.h"

namespace pesc {
namespace {

// Five parameters of three columns, whose gradients stand one after the other; number 2 is frozen.
class GradientSlotsTest : public ::testing::Test {
 protected:
  GradientSlotsTest() : memory_(1000) {
    int64_t at = 0;
    for (int64_t i = 0; i < 5; ++i) {
      Parameter p;
      p.spec.name = str_cat("p", i);
      p.trainable = i != 2;
      if (p.trainable) {
        p.grad = tensor_of(memory_.data() + at, i + 1, 3);
        at += p.grad.size();
      }
      all_.push_back(p);
    }
  }
  std::vector<float> memory_;
  std::vector<Parameter> all_;
};

TEST_F(GradientSlotsTest, OrderOfAddingDoesNotMatter) {
  struct Added {
    size_t parameter, slot;
  };
  // Slot 0 is number 0's, as slot 4 is; slot 1 is the stack of 3 and 4; slot 2 is a frozen one's.
  std::vector<Added> order{{0, 0}, {0, 4}, {1, 3}, {2, 2}, {3, 1}, {4, 1}};
  std::vector<size_t> turn{0, 1, 2, 3, 4, 5};
  do {
    std::array<Tensor, 5> slot;
    slot[2] = tensor_of(memory_.data(), 1, 1);  // what was there before goes
    GradientSlots slots;
    for (const size_t i : turn) slots.add(order[i].parameter, slot[order[i].slot]);
    slots.fill(all_);
    for (const size_t same : {0, 4}) {
      EXPECT_EQ(slot[same].data, all_[0].grad.data);
      EXPECT_EQ(slot[same].rows, 1);
    }
    EXPECT_EQ(slot[1].data, all_[3].grad.data);
    EXPECT_EQ(slot[1].rows, 4 + 5);
    EXPECT_EQ(slot[1].cols, 3);
    EXPECT_EQ(slot[2].cols, 0);
    EXPECT_FALSE(slot[2].present());
    EXPECT_EQ(slot[3].data, all_[1].grad.data);
    EXPECT_EQ(slot[3].rows, 2);
  } while (std::next_permutation(turn.begin(), turn.end()));
}

TEST_F(GradientSlotsTest, ATrainableParameterWithoutASlotIsNamed) {
  Tensor slot;
  GradientSlots slots;
  for (const size_t i : {0, 1, 4}) slots.add(i, slot);
  all_[4].grad.data = all_[1].grad.row_range(2, 2).data;  // so that the stack is one
  try {
    slots.fill(all_);
    ADD_FAILURE() << "no error";
  } catch (const InternalError& error) {
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "'p3' is trainable and has no gradient slot", error.what());
  }
}

TEST_F(GradientSlotsTest, GradientsThatAreNoStackAreRefused) {
  Tensor stack, first, third;
  GradientSlots slots;
  slots.add(0, first);
  slots.add(3, third);
  for (const size_t i : {1, 4}) slots.add(i, stack);  // number 3 stands between them
  try {
    slots.fill(all_);
    ADD_FAILURE() << "no error";
  } catch (const InternalError& error) {
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "'p4'", error.what());
  }
}

}  // namespace
}  // namespace pesc
