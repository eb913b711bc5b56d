// The LoRA down projection against a reference in double, with and without dropout, and its backward by
// finite differences of the op.
#include "ops/lora.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "tests/ops/host_matrix.h"

namespace pesc {
namespace {

struct Shape {
  int64_t tokens, columns, rank, gap;
  float rate;
  int threads;
};
const std::vector<Shape> kShapes = {{1, 1, 1, 0, 0, 1},        {7, 13, 3, 2, 0, 1},    {7, 13, 3, 2, 0.4F, 1},
                                    {65, 130, 12, 1, 0.1F, 2}, {65, 130, 12, 0, 0, 2}, {0, 5, 2, 0, 0.1F, 1}};
constexpr float kScale = 0.75F;

struct Lora {
  HostMatrix x, a, out;
  std::vector<int64_t> samples;
  std::vector<int32_t> positions;
  Dropout dropout;
  Stream stream;
  Arena scratch;

  explicit Lora(const Shape& s)
      : x(HostMatrix::normal(s.tokens, s.columns, 1, s.gap)),
        a(HostMatrix::normal(s.rank, s.columns, 2, s.gap)),
        out(s.tokens, s.rank, s.gap, NAN),
        stream(Device{.threads = s.threads}),
        // Without dropout nothing is copied: there is no scratch to copy into.
        scratch("lora", Device{}, s.rate == 0 ? 0 : lora_scratch_bytes(Device{}, s.tokens, s.columns)) {
    for (int64_t t = 0; t < s.tokens; ++t) {
      samples.push_back(40 + t / 3);
      positions.push_back(static_cast<int32_t>(t % 3));
    }
    dropout.rate = s.rate;
    dropout.seed = 9;
    dropout.column0 = 6;
    dropout.samples = tensor_of(samples.data(), 1, s.tokens);
    dropout.positions = tensor_of(positions.data(), 1, s.tokens);
  }

  void forward() {
    HostMatrix dropped = x;
    pesc::dropout(stream, dropout, x.view, dropped.view);
    lora_down_forward(stream, {dropped.view, a.view, kScale, out.view});
  }
  void backward(const HostMatrix& dout, const HostMatrix& da, const Tensor& dx) {
    lora_down_backward(stream, {dout.view, a.view, kScale, dropout, da.view}, x.view, dx, scratch);
    EXPECT_EQ(scratch.used(), 0);
  }
  // The factor of each element of x: 0 or 1 / (1 - rate).
  [[nodiscard]] std::vector<double> mask() {
    HostMatrix ones(x.view.rows, x.view.cols, 0, 1);
    pesc::dropout(stream, dropout, ones.view, ones.view);
    return ones.values();
  }
};

TEST(Lora, ForwardMatchesTheReference) {
  for (const Shape& s : kShapes) {
    Lora l(s);
    l.forward();
    const std::vector<double> mask = l.mask();
    std::vector<double> want;
    for (int64_t t = 0; t < s.tokens; ++t) {
      for (int64_t r = 0; r < s.rank; ++r) {
        double sum = 0;
        for (int64_t c = 0; c < s.columns; ++c)
          sum += mask[static_cast<size_t>(t * s.columns + c)] * l.x(t, c) * l.a(r, c);
        want.push_back(kScale * sum);
      }
    }
    EXPECT_LT(relative_error(l.out.values(), want), 1e-5) << s.columns;
    EXPECT_TRUE(l.out.gaps_untouched());
  }
}

TEST(Lora, BackwardMatchesTheReferenceAndAddsToItsOutputs) {
  for (const Shape& s : kShapes) {
    Lora l(s);
    const HostMatrix dout = HostMatrix::normal(s.tokens, s.rank, 3, s.gap);
    HostMatrix da(s.rank, s.columns, s.gap, 5);
    HostMatrix dx(s.tokens, s.columns, s.gap, -6);
    l.backward(dout, da, dx.view);
    const std::vector<double> mask = l.mask();
    std::vector<double> want_da;
    for (int64_t r = 0; r < s.rank; ++r) {
      for (int64_t c = 0; c < s.columns; ++c) {
        double sum = 0;
        for (int64_t t = 0; t < s.tokens; ++t)
          sum += static_cast<double>(dout(t, r)) * mask[static_cast<size_t>(t * s.columns + c)] * l.x(t, c);
        want_da.push_back(5 + kScale * sum);
      }
    }
    std::vector<double> want_dx;
    for (int64_t t = 0; t < s.tokens; ++t) {
      for (int64_t c = 0; c < s.columns; ++c) {
        double sum = 0;
        for (int64_t r = 0; r < s.rank; ++r) sum += static_cast<double>(dout(t, r)) * l.a(r, c);
        want_dx.push_back(-6 + mask[static_cast<size_t>(t * s.columns + c)] * kScale * sum);
      }
    }
    EXPECT_LT(relative_error(da.values(), want_da), 1e-5);
    EXPECT_LT(relative_error(dx.values(), want_dx), 1e-5);
    EXPECT_TRUE(da.gaps_untouched() && dx.gaps_untouched());
  }
}

TEST(Lora, BackwardMatchesFiniteDifferencesOfTheForward) {
  for (float rate : {0.0F, 0.3F}) {
    Lora l({5, 9, 2, 1, rate, 1});
    const HostMatrix dout = HostMatrix::normal(5, 2, 3, 0);
    HostMatrix da(2, 9);
    HostMatrix dx(5, 9);
    l.backward(dout, da, dx.view);
    const auto loss = [&] {
      l.forward();
      double sum = 0;
      for (int64_t t = 0; t < 5; ++t)
        for (int64_t r = 0; r < 2; ++r) sum += static_cast<double>(dout(t, r)) * l.out(t, r);
      return sum;
    };
    for (auto [input, gradient] : {std::pair{&l.x, &dx}, {&l.a, &da}}) {
      std::vector<double> want;
      for (int64_t i = 0; i < input->view.rows; ++i) {
        for (int64_t j = 0; j < input->view.cols; ++j) {
          float& value = (*input)(i, j);
          const float kept = value;
          value = kept + 0.5F;
          const double up = loss();
          value = kept - 0.5F;
          want.push_back(up - loss());
          value = kept;
        }
      }
      EXPECT_LT(relative_error(gradient->values(), want), 1e-5) << rate;
    }
  }
}

// What an operation that makes x itself uses: the two GEMMs, and the mask between them.
TEST(Lora, TheTwoGemmsEqualTheBackward) {
  for (float rate : {0.0F, 0.3F}) {
    Lora l({5, 9, 2, 1, rate, 1});
    const HostMatrix dout = HostMatrix::normal(5, 2, 3);
    HostMatrix whole(2, 9), parts(2, 9), dx(5, 9), by_parts(5, 9), before_mask(5, 9);
    l.backward(dout, whole, dx.view);
    const LoraBranch branch{dout.view, l.a.view, kScale, l.dropout, parts.view};
    HostMatrix dropped = l.x;
    pesc::dropout(l.stream, l.dropout, l.x.view, dropped.view);
    lora_weight_gradient(l.stream, branch, dropped.view);
    lora_input_gradient(l.stream, branch, before_mask.view);
    dropout_add(l.stream, l.dropout, before_mask.view, by_parts.view);
    EXPECT_EQ(whole.data, parts.data);
    EXPECT_LT(relative_error(by_parts.values(), dx.values()), 1e-6);
  }
}

TEST(Lora, ScratchIsExactlyWhatIsUsed) {
  Lora l({65, 130, 12, 1, 0.1F, 1});
  const HostMatrix dout = HostMatrix::normal(65, 12, 3), da(12, 130), dx(65, 130);
  l.backward(dout, da, dx.view);
  EXPECT_EQ(l.scratch.peak(), lora_scratch_bytes(Device{}, 65, 130));
  Arena small("small", Device{}, lora_scratch_bytes(Device{}, 65, 130) - Arena::kAlignment);
  EXPECT_THROW(lora_down_backward(l.stream, {dout.view, l.a.view, kScale, l.dropout, da.view}, l.x.view,
                                  dx.view, small),
               InternalError);
}

TEST(Lora, ShapesMustAgree) {
  Lora l({4, 6, 2, 0, 0, 1});
  EXPECT_THROW(lora_down_forward(l.stream, {l.x.view, l.a.view, kScale, l.x.view}), InternalError);
}

}  // namespace
}  // namespace pesc
