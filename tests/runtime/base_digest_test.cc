// A checkpoint of an older pesc, whose digest goes by the bytes of config.json, still finds its base.
#include "runtime/base_digest.h"

#include <gtest/gtest.h>

#include "ops/core/check.h"
#include "runtime/checkpoint/checkpoint.h"

namespace pesc {
namespace {

// Whether a checkpoint that keeps `saved` is taken for one of this base.
bool accepted(const BaseDigest& base, const std::string& saved) {
  CheckpointState state;
  state.base_path = "base";
  state.base_digest = saved;
  try {
    (void)check_base(state, "base", base.to_compare(saved));
  } catch (const DataError&) {
    return false;
  }
  return true;
}

TEST(BaseDigest, BothFormsAreAcceptedAndNoOther) {
  const BaseDigest base{"aa+tokenizer:11", "bb+tokenizer:11"};
  EXPECT_TRUE(accepted(base, "aa+tokenizer:11"));
  EXPECT_TRUE(accepted(base, "bb+tokenizer:11"));
  for (const char* other : {"cc+tokenizer:11", "aa+tokenizer:22", "bb+tokenizer:22", "aa", "bb", ""})
    EXPECT_FALSE(accepted(base, other)) << other;
}

// Of a checkpoint in the older form, too, a changed tokenizer is told from a changed base.
TEST(BaseDigest, AChangedTokenizerLeavesTheWeightsPart) {
  const BaseDigest base{"aa+tokenizer:11", "bb+tokenizer:11"};
  for (const char* saved : {"aa+tokenizer:22", "bb+tokenizer:22"}) {
    EXPECT_EQ(weights_part(base.to_compare(saved)), weights_part(saved));
    EXPECT_NE(tokenizer_part(base.to_compare(saved)), tokenizer_part(saved));
  }
  EXPECT_EQ(tokenizer_part("aa"), "");
}

}  // namespace
}  // namespace pesc
