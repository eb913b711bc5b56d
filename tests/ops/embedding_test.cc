// Token embedding over slices of the vocabulary.
#include "ops/embedding.h"

#include <gtest/gtest.h>

#include "tests/ops/reference.h"

namespace pesc {
namespace {

struct Shape {
  int64_t tokens, vocab, begin, hidden, gap;
  int threads;
};
// `vocab` rows from `begin` of 100 ids.
const std::vector<Shape> kShapes = {{0, 10, 0, 4, 0, 2},     {1, 100, 0, 1, 0, 1},     {17, 50, 50, 65, 3, 1},
                                    {129, 30, 40, 63, 0, 2}, {300, 100, 0, 130, 2, 2}, {9, 0, 20, 16, 0, 1}};

bool local(const Shape& s, int32_t id) {
  return id >= 0 && id >= s.begin && id < s.begin + s.vocab;
}

TEST(Embedding, ForwardGathersLocalRows) {
  for (const Shape& s : kShapes) {
    Stream stream(Device{.threads = s.threads});
    std::vector<int32_t> ids = random_ints(s.tokens, -2, 99, 1);
    const HostMatrix table = HostMatrix::normal(s.vocab, s.hidden, 2, s.gap);
    HostMatrix out(s.tokens, s.hidden, 1, 5.0F);
    embedding_forward(stream, tensor_of(ids.data(), 1, s.tokens), table.view, s.begin, out.view);
    for (int64_t t = 0; t < s.tokens; ++t) {
      const int32_t id = ids[static_cast<size_t>(t)];
      for (int64_t c = 0; c < s.hidden; ++c)
        ASSERT_EQ(out(t, c), local(s, id) ? table(id - s.begin, c) : 0.0F) << t << " " << id;
    }
    EXPECT_TRUE(out.gaps_untouched());
  }
}

TEST(Embedding, BackwardAddsRows) {
  for (const Shape& s : kShapes) {
    Stream stream(Device{.threads = s.threads});
    std::vector<int32_t> ids = random_ints(s.tokens, -2, 99, 1);
    const HostMatrix dout = HostMatrix::normal(s.tokens, s.hidden, 2, s.gap);
    HostMatrix dtable = HostMatrix::normal(s.vocab, s.hidden, 3, s.gap);
    Matrix64 want(dtable);
    for (int64_t t = 0; t < s.tokens; ++t) {
      const int32_t id = ids[static_cast<size_t>(t)];
      if (!local(s, id)) continue;
      for (int64_t c = 0; c < s.hidden; ++c) want(id - s.begin, c) += dout(t, c);
    }
    embedding_backward(stream, tensor_of(ids.data(), 1, s.tokens), dout.view, s.begin, dtable.view);
    EXPECT_LT(relative_error(dtable, want), 1e-6);
    EXPECT_TRUE(dtable.gaps_untouched());
  }
}

TEST(Embedding, BackwardIsTheDerivative) {
  // Rows 4 to 9 of the vocabulary: one id twice, one never, some that are others', one that is no id.
  constexpr int64_t kTokens = 8, kVocab = 6, kBegin = 4, kHidden = 5;
  std::vector<int32_t> ids = {4, 9, 3, 7, 4, -1, 10, 5};
  HostMatrix table = HostMatrix::normal(kVocab, kHidden, 1, 2);
  const HostMatrix dout = HostMatrix::normal(kTokens, kHidden, 2);
  HostMatrix dtable(kVocab, kHidden, 2);
  Stream stream(Device{});
  const Tensor i = tensor_of(ids.data(), 1, kTokens);
  embedding_backward(stream, i, dout.view, kBegin, dtable.view);
  const auto loss = [&](const Matrix64& x) {
    double total = 0;
    for (int64_t t = 0; t < kTokens; ++t) {
      const int64_t row = ids[static_cast<size_t>(t)] - kBegin;
      if (row < 0 || row >= kVocab) continue;
      for (int64_t c = 0; c < kHidden; ++c) total += x(row, c) * dout(t, c);
    }
    return total;
  };
  EXPECT_LT(relative_error(dtable, finite_differences(Matrix64(table), loss)), 1e-5);
  EXPECT_TRUE(dtable.gaps_untouched());
  HostMatrix out(kTokens, kHidden);
  const auto run = [&] {
    embedding_forward(stream, i, table.view, kBegin, out.view);
    return dot(out.values(), dout.values());
  };
  EXPECT_LT(relative_error(dtable, finite_differences_f32(table, run)), 1e-2);
}

TEST(Embedding, NegativeIdsGiveZeroRows) {
  Stream stream(Device{});
  std::vector<int32_t> ids = {-1, 3};
  const HostMatrix table = HostMatrix::normal(4, 3, 1);
  HostMatrix out(2, 3, 0, 9.0F);
  embedding_forward(stream, tensor_of(ids.data(), 1, 2), table.view, 0, out.view);
  EXPECT_EQ(out(0, 0), 0.0F);
  EXPECT_EQ(out(1, 2), table(3, 2));
}

TEST(Embedding, WrongShapesAndIdsAreRefused) {
  Stream stream(Device{});
  std::vector<int32_t> ids = {1, 3};
  const HostMatrix table(4, 3);
  const HostMatrix out(2, 4);
  EXPECT_THROW(embedding_forward(stream, tensor_of(ids.data(), 1, 2), table.view, 0, out.view),
               InternalError);
  EXPECT_THROW(embedding_forward(stream, tensor_of(ids.data(), 1, 1), out.view, 0, out.view), InternalError);
}

}  // namespace
}  // namespace pesc
