// Attention against float64 loops over single scores: segments of many lengths, grouped heads, odd head
// sizes, column ranges of one fused buffer, keys longer than the queries.
#include "ops/attention.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/ops/reference.h"

namespace pesc {
namespace {

struct Case {
  int64_t q_heads, kv_heads, head_dim;
  std::vector<AttentionSegment> segments;
  int64_t queries, keys;
  int threads;

  [[nodiscard]] AttentionShape shape() const {
    return {q_heads, kv_heads, head_dim, static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)))};
  }
};

// Segments of these lengths one after the other, `gap` unused rows between them.
Case self_attention(int64_t q_heads, int64_t kv_heads, int64_t head_dim, const std::vector<int32_t>& lengths,
                    int threads, int32_t gap = 0) {
  Case c{q_heads, kv_heads, head_dim, {}, 0, 0, threads};
  int32_t begin = 0;
  for (const int32_t n : lengths) {
    c.segments.push_back({begin, n, begin, n});
    begin += n + gap;
  }
  c.queries = c.keys = begin;
  return c;
}

struct Result64 {
  Matrix64 out, lse;
};

Result64 reference(const Case& c, const Matrix64& q, const Matrix64& k, const Matrix64& v) {
  Result64 result{Matrix64(c.queries, c.q_heads * c.head_dim), Matrix64(c.q_heads, c.queries)};
  const double scale = c.shape().scale;
  for (const AttentionSegment& s : c.segments) {
    for (int64_t h = 0; h < c.q_heads; ++h) {
      const int64_t kv = h / (c.q_heads / c.kv_heads);
      for (int64_t i = 0; i < s.q_len; ++i) {
        std::vector<double> p(static_cast<size_t>(i + 1 + s.kv_len - s.q_len));
        double total = 0;
        for (size_t j = 0; j < p.size(); ++j) {
          double score = 0;
          for (int64_t d = 0; d < c.head_dim; ++d)
            score += q(s.q_begin + i, h * c.head_dim + d) *
                     k(s.kv_begin + static_cast<int64_t>(j), kv * c.head_dim + d);
          p[j] = std::exp(score * scale);  // the tests' scores are small
          total += p[j];
        }
        result.lse(h, s.q_begin + i) = std::log(total);
        for (size_t j = 0; j < p.size(); ++j)
          for (int64_t d = 0; d < c.head_dim; ++d)
            result.out(s.q_begin + i, h * c.head_dim + d) +=
                p[j] / total * v(s.kv_begin + static_cast<int64_t>(j), kv * c.head_dim + d);
      }
    }
  }
  return result;
}

// q, k, v as column ranges of one buffer where Q = K, as the model has them.
struct Inputs {
  HostMatrix fused, kv_only;
  Tensor q, k, v;
  explicit Inputs(const Case& c)
      : fused(HostMatrix::normal(c.queries, (c.q_heads + 2 * c.kv_heads) * c.head_dim, 1, 3)),
        kv_only(HostMatrix::normal(c.keys, 2 * c.kv_heads * c.head_dim, 2)) {
    const int64_t q_cols = c.q_heads * c.head_dim;
    const int64_t kv_cols = c.kv_heads * c.head_dim;
    const bool same = c.queries == c.keys;
    const Tensor& kv = same ? fused.view : kv_only.view;
    const int64_t first = same ? q_cols : 0;
    q = fused.view.col_range(0, q_cols);
    k = kv.col_range(first, first + kv_cols);
    v = kv.col_range(first + kv_cols, first + 2 * kv_cols);
  }
};

Matrix64 to64(const Tensor& t) {
  Matrix64 out(t.rows, t.cols);
  for (int64_t r = 0; r < t.rows; ++r)
    for (int64_t col = 0; col < t.cols; ++col) out(r, col) = t.f32()[r * t.ld + col];
  return out;
}

Arena arena_for(const Case& c) {
  int64_t max_q = 0;
  int64_t max_kv = 0;
  for (const AttentionSegment& s : c.segments) {
    max_q = std::max<int64_t>(max_q, s.q_len);
    max_kv = std::max<int64_t>(max_kv, s.kv_len);
  }
  return {"scratch", Device{},
          attention_scratch_bytes(Device{.threads = c.threads}, c.shape(), max_q, max_kv)};
}

void check_forward(const Case& c) {
  SCOPED_TRACE(str_cat(c.q_heads, "/", c.kv_heads, " heads of ", c.head_dim, ", ", c.segments.size(),
                       " segments, ", c.queries, " queries, ", c.keys, " keys, ", c.threads, " threads"));
  const Inputs in(c);
  HostMatrix out(c.queries, c.q_heads * c.head_dim, 5);
  HostMatrix lse(c.q_heads, c.queries, 2);
  Stream stream(Device{.threads = c.threads});
  Arena scratch = arena_for(c);
  attention_forward(stream, {c.shape(), c.segments, in.q, in.k, in.v, out.view, lse.view}, scratch);
  EXPECT_EQ(scratch.used(), 0);
  const Result64 want = reference(c, to64(in.q), to64(in.k), to64(in.v));
  EXPECT_LT(relative_error(out, want.out), 1e-5);
  EXPECT_LT(relative_error(lse, want.lse), 1e-5);
  EXPECT_TRUE(out.gaps_untouched());
  EXPECT_TRUE(lse.gaps_untouched());
  // Without lse the same output, bitwise.
  HostMatrix again(c.queries, c.q_heads * c.head_dim, 5);
  attention_forward(stream, {c.shape(), c.segments, in.q, in.k, in.v, again.view, {}}, scratch);
  EXPECT_EQ(again.data, out.data);
}

TEST(Attention, ForwardOfManyLengths) {
  for (const int32_t n : {1, 2, 3, 5, 6, 7, 16, 17, 31, 33, 63, 65, 100, 129})
    check_forward(self_attention(2, 2, 16, {n}, 1));
  check_forward(self_attention(4, 2, 32, {1, 3, 17, 63, 65, 129, 40}, 2, 2));
  check_forward(self_attention(4, 4, 64, {130, 7, 64, 64}, 3));
}

TEST(Attention, ForwardOfGroupsAndHeadSizes) {
  for (const int64_t group : {1, 2, 4, 8})
    for (const int64_t d : {1, 3, 8, 16, 24, 40, 48, 80, 128})
      check_forward(self_attention(2 * group, 2, d, {33, 1, 18}, 1 + static_cast<int>(d % 2)));
}

TEST(Attention, ForwardWithMoreKeysThanQueries) {
  for (const int64_t d : {5, 16, 32, 64})
    for (const int64_t group : {1, 2, 4, 7})
      for (const int32_t q_len : {1, 2, 4, 9, 50})
        check_forward({2 * group,
                       2,
                       d,
                       {{0, q_len, 0, q_len}, {q_len, q_len, 200, q_len + 71}, {2 * q_len, 1, 100, 90}},
                       2 * q_len + 1,
                       400,
                       1 + q_len % 2});
}

TEST(Attention, ForwardIsStableForLargeScores) {
  const Case c = self_attention(1, 1, 16, {40}, 1);
  HostMatrix q(40, 16, 0, 100.0F);
  HostMatrix v = HostMatrix::normal(40, 16, 3);
  HostMatrix out(40, 16);
  HostMatrix lse(1, 40);
  Stream stream(Device{});
  Arena scratch = arena_for(c);
  attention_forward(stream, {c.shape(), c.segments, q.view, q.view, v.view, out.view, lse.view}, scratch);
  // All scores are equal (160000 / 4): the output is the mean of the values seen.
  double sum = 0;
  for (int64_t i = 0; i < 40; ++i) {
    sum += v(i, 0);
    EXPECT_NEAR(out(i, 0), sum / static_cast<double>(i + 1), 1e-5);
    EXPECT_FLOAT_EQ(lse(0, i), static_cast<float>(40000 + std::log(static_cast<double>(i + 1))));
  }
}

struct Gradients {
  Matrix64 q, k, v;
};

// By the formulas of the softmax's derivative, entry by entry.
Gradients reference_gradients(const Case& c, const Matrix64& q, const Matrix64& k, const Matrix64& v,
                              const Matrix64& dout) {
  Gradients g{Matrix64(q.rows, q.cols), Matrix64(k.rows, k.cols), Matrix64(v.rows, v.cols)};
  const Result64 forward = reference(c, q, k, v);
  const double scale = c.shape().scale;
  const int64_t dim = c.head_dim;
  for (const AttentionSegment& s : c.segments) {
    for (int64_t h = 0; h < c.q_heads; ++h) {
      const int64_t kv = h / (c.q_heads / c.kv_heads);
      for (int64_t i = s.q_begin; i < s.q_begin + s.q_len; ++i) {
        for (int64_t j = s.kv_begin; j <= i; ++j) {
          double score = 0;
          double dp = 0;
          for (int64_t d = 0; d < dim; ++d) {
            score += q(i, h * dim + d) * k(j, kv * dim + d);
            dp += dout(i, h * dim + d) * (v(j, kv * dim + d) - forward.out(i, h * dim + d));
          }
          const double p = std::exp(score * scale - forward.lse(h, i));
          for (int64_t d = 0; d < dim; ++d) {
            g.v(j, kv * dim + d) += p * dout(i, h * dim + d);
            g.q(i, h * dim + d) += scale * p * dp * k(j, kv * dim + d);
            g.k(j, kv * dim + d) += scale * p * dp * q(i, h * dim + d);
          }
        }
      }
    }
  }
  return g;
}

struct Backward {
  HostMatrix fused;  // dq, dk, dv as column ranges of one buffer
  Tensor q, k, v;
};

Backward run_backward(const Case& c, const Inputs& in, const HostMatrix& dout) {
  HostMatrix out(c.queries, c.q_heads * c.head_dim);
  HostMatrix lse(c.q_heads, c.queries);
  Stream stream(Device{.threads = c.threads});
  Arena scratch = arena_for(c);
  const AttentionForward forward{c.shape(), c.segments, in.q, in.k, in.v, out.view, lse.view};
  attention_forward(stream, forward, scratch);
  const int64_t q_cols = in.q.cols;
  const int64_t kv_cols = in.k.cols;
  Backward d{HostMatrix(c.queries, q_cols + 2 * kv_cols, 1), {}, {}, {}};
  d.q = d.fused.view.col_range(0, q_cols);
  d.k = d.fused.view.col_range(q_cols, q_cols + kv_cols);
  d.v = d.fused.view.col_range(q_cols + kv_cols, q_cols + 2 * kv_cols);
  attention_backward(stream,
                     {.shape = c.shape(),
                      .segments = c.segments,
                      .q = in.q,
                      .k = in.k,
                      .v = in.v,
                      .out = out.view,
                      .lse = lse.view,
                      .dout = dout.view,
                      .dq = d.q,
                      .dk = d.k,
                      .dv = d.v},
                     scratch);
  EXPECT_TRUE(d.fused.gaps_untouched());
  EXPECT_EQ(scratch.used(), 0);
  return d;
}

void check_backward(const Case& c) {
  SCOPED_TRACE(str_cat(c.q_heads, "/", c.kv_heads, " heads of ", c.head_dim, ", ", c.segments.size(),
                       " segments, ", c.queries, " queries, ", c.threads, " threads"));
  const Inputs in(c);
  const HostMatrix dout = HostMatrix::normal(c.queries, c.q_heads * c.head_dim, 7, 4);
  const Backward d = run_backward(c, in, dout);
  const Gradients want = reference_gradients(c, to64(in.q), to64(in.k), to64(in.v), Matrix64(dout));
  EXPECT_LT(relative_error(to64(d.q).data, want.q.data), 1e-4);
  EXPECT_LT(relative_error(to64(d.k).data, want.k.data), 1e-4);
  EXPECT_LT(relative_error(to64(d.v).data, want.v.data), 1e-4);
}

TEST(Attention, BackwardOfManyLengths) {
  for (const int32_t n : {1, 2, 5, 6, 7, 17, 47, 48, 49, 63, 65, 97, 129})
    check_backward(self_attention(2, 1, 16, {n}, 1));
  check_backward(self_attention(4, 2, 32, {1, 3, 17, 63, 65, 129, 40}, 2));
}

TEST(Attention, BackwardOfGroupsAndHeadSizes) {
  for (const int64_t group : {1, 2, 4})
    for (const int64_t d : {3, 8, 16, 24, 40, 64, 80})
      check_backward(self_attention(2 * group, 2, d, {50, 1, 18}, 1 + static_cast<int>(group % 2)));
}

TEST(Attention, BackwardIsTheDerivative) {
  const Case c = self_attention(2, 1, 4, {5, 3}, 1);
  const Inputs in(c);
  const HostMatrix dout = HostMatrix::normal(c.queries, c.q_heads * c.head_dim, 7);
  const Matrix64 q = to64(in.q);
  const Matrix64 k = to64(in.k);
  const Matrix64 v = to64(in.v);
  const Backward d = run_backward(c, in, dout);
  const auto loss = [&](const Matrix64& x, const Matrix64& y, const Matrix64& z) {
    return dot(reference(c, x, y, z).out.data, dout.values());
  };
  const Matrix64 dq = finite_differences(q, [&](const Matrix64& x) { return loss(x, k, v); });
  const Matrix64 dk = finite_differences(k, [&](const Matrix64& x) { return loss(q, x, v); });
  const Matrix64 dv = finite_differences(v, [&](const Matrix64& x) { return loss(q, k, x); });
  EXPECT_LT(relative_error(to64(d.q).data, dq.data), 1e-4);
  EXPECT_LT(relative_error(to64(d.k).data, dk.data), 1e-4);
  EXPECT_LT(relative_error(to64(d.v).data, dv.data), 1e-4);

  // And of the operation itself, on the fused buffer as a whole.
  Inputs moved(c);
  HostMatrix out(c.queries, c.q_heads * c.head_dim);
  Stream stream(Device{});
  Arena scratch = arena_for(c);
  const Matrix64 all = finite_differences_f32(moved.fused, [&] {
    attention_forward(stream, {c.shape(), c.segments, moved.q, moved.k, moved.v, out.view, {}}, scratch);
    return dot(out.values(), dout.values());
  });
  EXPECT_LT(relative_error(d.fused, all), 1e-2);
}

TEST(Attention, ThreadsDoNotChangeTheResult) {
  Case c = self_attention(4, 2, 32, {30, 64, 100, 7}, 1);
  const Inputs in(c);
  const HostMatrix dout = HostMatrix::normal(c.queries, c.q_heads * c.head_dim, 7);
  const Backward one = run_backward(c, in, dout);
  c.threads = 2;
  EXPECT_EQ(run_backward(c, in, dout).fused.data, one.fused.data);
}

TEST(Attention, WithoutTokensNothingIsDone) {
  const Case c = self_attention(2, 1, 16, {}, 2);
  const Inputs in(c);
  check_forward(c);
  const HostMatrix dout(0, 32);
  (void)run_backward(c, in, dout);
}

TEST(Attention, SegmentsThatDoNotFitAreRefused) {
  const Case c = self_attention(2, 1, 16, {8}, 1);
  const Inputs in(c);
  HostMatrix out(8, 32);
  Stream stream(Device{});
  Arena scratch = arena_for(c);
  for (const AttentionSegment s : {AttentionSegment{0, 9, 0, 9}, AttentionSegment{0, 4, 0, 3},
                                   AttentionSegment{0, 0, 0, 3}, AttentionSegment{4, 4, 6, 4}}) {
    const std::vector<AttentionSegment> segments = {s};
    EXPECT_THROW(attention_forward(stream, {c.shape(), segments, in.q, in.k, in.v, out.view, {}}, scratch),
                 InternalError);
  }
}

}  // namespace
}  // namespace pesc
