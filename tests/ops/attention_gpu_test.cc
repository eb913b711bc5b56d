// Attention on the GPU against its CPU twin: segments of many lengths, grouped heads, odd head sizes, column
// ranges of one fused buffer, keys longer than the queries.
#include "ops/attention.h"
#include "ops/reduce.h"
#include "tests/ops/gpu_twin.h"

namespace pesc {
namespace {

struct Case {
  int64_t q_heads, kv_heads, head_dim;
  std::vector<AttentionSegment> segments;
  int64_t queries, keys;
  [[nodiscard]] AttentionShape shape() const {
    return {q_heads, kv_heads, head_dim, static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)))};
  }
  [[nodiscard]] std::string name(DType t) const {
    return str_cat(dtype_name(t), " ", q_heads, "/", kv_heads, " heads of ", head_dim, ", ", segments.size(),
                   " segments, ", queries, " queries, ", keys, " keys");
  }
};

Case self(int64_t q_heads, int64_t kv_heads, int64_t head_dim, const std::vector<int32_t>& lengths,
          int32_t gap = 0) {
  Case c{q_heads, kv_heads, head_dim, {}, 0, 0};
  int32_t begin = 0;
  for (const int32_t n : lengths) {
    c.segments.push_back({begin, n, begin, n});
    begin += n + gap;
  }
  c.queries = c.keys = begin;
  return c;
}

std::vector<Case> cases() {
  return {self(1, 1, 8, {1}),       self(4, 2, 8, {7, 3, 9, 1, 6}), self(2, 1, 6, {33, 31, 32, 64, 65}, 2),
          self(3, 3, 5, {70}),      self(8, 2, 64, {130, 200}),     self(4, 1, 128, {97, 1, 300}),
          self(2, 2, 80, {64, 65}), self(2, 1, 256, {45, 40})};
}

struct Inputs {
  HostMatrix fused;  // q, k, v side by side
  Inputs(const Case& c, DType t)
      : fused(rounded(
            HostMatrix::normal(std::max(c.queries, c.keys), (c.q_heads + 2 * c.kv_heads) * c.head_dim, 1, 3),
            t)) {}
};
Tensor q_of(const Case& c, const Tensor& fused) {
  return fused.row_range(0, c.queries).col_range(0, c.q_heads * c.head_dim);
}
Tensor kv_of(const Case& c, const Tensor& fused, int which) {
  const int64_t begin = (c.q_heads + which * c.kv_heads) * c.head_dim;
  return fused.row_range(0, c.keys).col_range(begin, begin + c.kv_heads * c.head_dim);
}

class AttentionGpu : public GpuTwin {
 protected:
  [[nodiscard]] int64_t bytes(const Case& c, const Device& d) const {
    return attention_scratch_bytes(d, c.shape(), c.queries, std::max(c.queries, c.keys));
  }
  // A bf16 output is rounded once; what is compared was computed in float32 from rounded inputs.
  static double forward_bound(DType t) { return t == DType::kBF16 ? 1.0 / 256 : 1e-5; }

  void forward(const Case& c, DType t) {
    const Inputs in(c, t);
    HostMatrix out(c.queries, c.q_heads * c.head_dim, 5), lse(c.q_heads, c.queries, 1);
    Arena host = host_scratch(bytes(c, cpu.device()));
    attention_forward(cpu,
                      {c.shape(), c.segments, q_of(c, in.fused.view), kv_of(c, in.fused.view, 0),
                       kv_of(c, in.fused.view, 1), out.view, lse.view},
                      host);
    const auto run = [&]() -> Outputs {
      const OnGpu g(gpu(), in.fused, t), gout(gpu(), HostMatrix(out.view.rows, out.view.cols, 5), t);
      const OnGpu glse(gpu(), HostMatrix(c.q_heads, c.queries, 1));
      Arena space = scratch(bytes(c, gpu().device()));
      attention_forward(gpu(),
                        {c.shape(), c.segments, q_of(c, g.view), kv_of(c, g.view, 0), kv_of(c, g.view, 1),
                         gout.view, glse.view},
                        space);
      return {gout.host(), glse.host()};
    };
    compare(c.name(t), run, {out, lse}, forward_bound(t));
  }

  void backward(const Case& c, DType t) {
    const Inputs in(c, t);
    const HostMatrix dout = rounded(HostMatrix::normal(c.queries, c.q_heads * c.head_dim, 2, 1), t);
    HostMatrix out(c.queries, c.q_heads * c.head_dim), lse(c.q_heads, c.queries),
        grad(in.fused.view.rows, in.fused.view.cols, 2);
    Arena host = host_scratch(bytes(c, cpu.device()));
    const Tensor& f = in.fused.view;
    attention_forward(
        cpu, {c.shape(), c.segments, q_of(c, f), kv_of(c, f, 0), kv_of(c, f, 1), out.view, lse.view}, host);
    const HostMatrix used = rounded(out, t);  // what the GPU keeps of the forward
    attention_backward(
        cpu,
        {c.shape(), c.segments, q_of(c, f), kv_of(c, f, 0), kv_of(c, f, 1), used.view, lse.view, dout.view,
         q_of(c, grad.view), kv_of(c, grad.view, 0), kv_of(c, grad.view, 1)},
        host);
    const auto run = [&]() -> Outputs {
      const OnGpu g(gpu(), in.fused, t), gout(gpu(), used, t), glse(gpu(), lse), gdout(gpu(), dout, t);
      const OnGpu ggrad(gpu(), HostMatrix(grad.view.rows, grad.view.cols, 2), t);
      Arena space = scratch(bytes(c, gpu().device()));
      attention_backward(
          gpu(),
          {c.shape(), c.segments, q_of(c, g.view), kv_of(c, g.view, 0), kv_of(c, g.view, 1), gout.view,
           glse.view, gdout.view, q_of(c, ggrad.view), kv_of(c, ggrad.view, 0), kv_of(c, ggrad.view, 1)},
          space);
      return {ggrad.host()};
    };
    compare(c.name(t), run, {grad}, t == DType::kBF16 ? 1.0 / 128 : 1e-5);
  }

  static int64_t longest(const Case& c) {
    int64_t most = 0;
    for (const AttentionSegment& s : c.segments) most = std::max<int64_t>(most, s.q_len);
    return most;
  }

  // BF16, rows next to each other as in the model, which a library may compute: forward and backward
  // together, since the lse is its own. Its GEMMs of probabilities are rounded to bf16, and there are as
  // many roundings as keys, averaged.
  void together(const Case& c) {
    const DType t = DType::kBF16;
    const Inputs in(c, t);
    const HostMatrix dout = rounded(HostMatrix::normal(c.queries, c.q_heads * c.head_dim, 2), t);
    HostMatrix out(c.queries, c.q_heads * c.head_dim), lse(c.q_heads, c.queries);
    HostMatrix grad(in.fused.view.rows, in.fused.view.cols);
    Arena host = host_scratch(bytes(c, cpu.device()));
    const Tensor& f = in.fused.view;
    const auto forward_args = [&](const Tensor& x, const Tensor& o, const Tensor& l) {
      return AttentionForward{c.shape(), c.segments, q_of(c, x), kv_of(c, x, 0), kv_of(c, x, 1), o, l};
    };
    attention_forward(cpu, forward_args(f, out.view, lse.view), host);
    attention_backward(cpu,
                       {c.shape(), c.segments, q_of(c, f), kv_of(c, f, 0), kv_of(c, f, 1), out.view, lse.view,
                        dout.view, q_of(c, grad.view), kv_of(c, grad.view, 0), kv_of(c, grad.view, 1)},
                       host);
    const auto run = [&]() -> Outputs {
      const HostMatrix tight(f.rows, f.cols);  // rows next to each other, as in the model
      copy(cpu, f, tight.view);
      const OnGpu g(gpu(), tight, t), gout(gpu(), HostMatrix(out.view.rows, out.view.cols), t);
      const OnGpu glse(gpu(), HostMatrix(c.q_heads, c.queries)), gdout(gpu(), dout, t);
      const OnGpu ggrad(gpu(), HostMatrix(f.rows, f.cols), t);
      Arena space = scratch(attention_scratch_bytes(gpu().device(), c.shape(), c.queries, longest(c), t));
      attention_forward(gpu(), forward_args(g.view, gout.view, glse.view), space);
      attention_backward(
          gpu(),
          {c.shape(), c.segments, q_of(c, g.view), kv_of(c, g.view, 0), kv_of(c, g.view, 1), gout.view,
           glse.view, gdout.view, q_of(c, ggrad.view), kv_of(c, ggrad.view, 0), kv_of(c, ggrad.view, 1)},
          space);
      return {gout.host(), ggrad.host()};
    };
    compare(c.name(t), run, {out, grad}, 1.0 / 64);
  }

  // Whether this build calls a library: it then announces room for it.
  [[nodiscard]] bool has_library() {
    return attention_scratch_bytes(gpu().device(), {1, 1, 8, 1}, 1, 1, DType::kBF16) >
           attention_scratch_bytes(gpu().device(), {1, 1, 8, 1}, 1, 1, DType::kF32);
  }
  // Forwards and backwards that were the library's so far.
  [[nodiscard]] int64_t library_calls() {
    const std::string report = attention_library(gpu());
    const size_t at = report.find(" plans, ");
    return at == std::string::npos ? 0 : std::stoll(report.substr(at + 8));
  }

  // Each case is the library's, both ways, where this build calls one.
  void together(const std::vector<Case>& cases) {
    for (const Case& c : cases) {
      const int64_t before = library_calls();
      together(c);
      const int64_t calls = library_calls() - before;
      if (has_library()) {
        EXPECT_TRUE(calls >= 2 && calls % 2 == 0) << c.name(DType::kBF16) << ": " << attention_library(gpu());
      }
    }
    printf("attention: %s\n", attention_library(gpu()).c_str());
  }
};

TEST_F(AttentionGpu, ForwardMatchesTheCpu) {
  for (const DType t : {DType::kF32, DType::kBF16})
    for (const Case& c : cases()) forward(c, t);
}

TEST_F(AttentionGpu, ForwardOverLongerKeysMatchesTheCpu) {
  for (const DType t : {DType::kF32, DType::kBF16}) {
    forward({4, 2, 8, {{0, 1, 0, 40}, {1, 3, 50, 35}, {4, 40, 90, 75}}, 44, 170}, t);
    forward({2, 1, 64, {{0, 1, 0, 1}, {1, 1, 10, 129}}, 2, 200}, t);
  }
}

TEST_F(AttentionGpu, BackwardMatchesTheCpu) {
  for (const DType t : {DType::kF32, DType::kBF16})
    for (const Case& c : cases()) backward(c, t);
}

TEST_F(AttentionGpu, SegmentsOfOneLengthMatchTheCpu) {
  together({self(4, 2, 16, {24, 24, 24}), self(2, 2, 128, {256, 256, 256, 256}), self(8, 1, 64, {200, 200}),
            self(4, 4, 128, {1024}), self(3, 3, 80, {70, 70}), self(16, 2, 128, {513, 513, 513})});
}

// As real rows are: no two of one length, some next to each other and some not, more than go into one call,
// and more than the announced scratch holds at once.
TEST_F(AttentionGpu, SegmentsOfManyLengthsMatchTheCpu) {
  together({self(4, 2, 16, {7, 300, 1, 128}), self(2, 2, 128, {700, 33, 512, 129, 64}, 3),
            self(8, 1, 64, {5, 4, 3, 2, 1}), self(4, 4, 128, {1999, 1}), self(3, 3, 80, {70, 71, 500}, 1),
            self(32, 8, 128, {2048, 2047, 1500, 900, 2048, 17, 1, 640, 1100}), self(3, 1, 128, {2000}),
            self(32, 32, 128, {1024, 1000, 900, 1024, 1000}), self(32, 32, 128, {1100, 1050, 1100})});
}

TEST_F(AttentionGpu, NoSegmentsAreNoWork) {
  forward(self(2, 1, 8, {}), DType::kF32);
  backward(self(2, 1, 8, {}), DType::kF32);
}

}  // namespace
}  // namespace pesc
