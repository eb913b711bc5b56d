// ranks: 1
// Where dropout acts, against a float64 forward of the whole model written down here from its definition: the
// mask of q, k and v is one, that of gate and up is one, the router sees the FFN's input whole, the adapters
// see dropout(f) while f itself goes round them. The masks are made here too, from the counters that
// ops/dropout.h describes.
//
// How far float32 may be from it is not a figure that somebody has seen. One rounding changes a value by at
// most u = 2^-24 of it, and a logit has some six hundred of them one after the other on its way through two
// layers (sums of 32 or 40 GEMMs in every linear, 8 and 9 in attention, 3 and 5 in LoRA and adapters). By
// themselves they would add up, as errors of either sign do, to sqrt(600) u = 1.5e-6. But the model makes
// errors larger: a score of 10 turns a relative error of q or k into ten times as much of exp(score), gate
// and up multiply theirs, and a head's sums cancel. By how much is a property of these weights and of the
// masks (which scale what they leave by 1 / (1 - rate), and leave fewer terms to even errors out), so that
// there is no formula of the shapes alone. Therefore it is computed: the reference runs again, as often as
// kRoundedRuns says, with every result of every operation moved by a random share of u up to the most that
// float32's rounding can be (Monte Carlo arithmetic; Parker, 1997). How far those runs come to be from the
// exact one is how far float32 does. The real run is one more draw, with other signs, sums in another order,
// and about as many roundings. An error in one direction, as a single score makes it, is |z| times a typical
// one, z being standard normal: the largest |z| of sixteen is above 1.37 but for one case in twenty, so
// kMargin = 4 times it is 5.5 standard deviations, passed by chance once in twenty million draws. The noise
// is the same on every machine: the sixteen runs come to 3.4e-5 with dropout and 3.5e-6 without, the bounds
// to 1.4e-4 and 1.4e-5. 3.5e-5 and 2.7e-5 have been seen with dropout.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "tests/model/rig.h"

namespace pesc {
namespace {

using Vector = std::vector<double>;
using Matrix = std::vector<Vector>;  // [rows][columns]

constexpr uint64_t kSeed = 5;  // as Rig::all_logits has them
constexpr uint32_t kStep = 3;
constexpr std::array kSites{DropoutSite::kQkv, DropoutSite::kO, DropoutSite::kGateUp, DropoutSite::kDown,
                            DropoutSite::kAdapter};

constexpr int kRoundedRuns = 16;
constexpr double kMargin = 4;

// What rounding to float32 does to a value: at most `units` of u, either way. Of functions, as much as their
// own tests allow.
class Rounding {
 public:
  explicit Rounding(uint64_t run) : state_(run * 0x9E3779B97F4A7C15ULL) {}
  double operator()(double value, double units) {
    uint64_t z = state_ += 0x9E3779B97F4A7C15ULL;  // splitmix64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    const double share = static_cast<double>((z ^ (z >> 31)) >> 11) / static_cast<double>(1ULL << 52) - 1.0;
    return value * (1 + std::ldexp(units * share, -24));
  }

 private:
  uint64_t state_;
};
constexpr double kExpUnits = 4;    // two units in the last place
constexpr double kGeluUnits = 17;  // 1e-6
constexpr double kRootUnits = 3;   // mean, root and quotient

struct Token {
  int32_t id = 0, position = 0;
  int64_t sample = 0;
  size_t row_begin = 0;  // the first token of its row
};

class Reference {
 public:
  Reference(const Decoder& decoder, const ModelConfig& model, const PescConfig& pesc)
      : model_(model), pesc_(pesc) {
    for (const Parameter& p : decoder.parameters().all()) {
      const auto rows = static_cast<size_t>(p.master.rows);
      const auto cols = static_cast<size_t>(p.master.cols);
      Matrix& m = values_[p.spec.name];
      m.assign(rows, Vector(cols));
      for (size_t r = 0; r < rows; ++r)
        for (size_t c = 0; c < cols; ++c)
          m[r][c] = p.master.f32()[static_cast<int64_t>(r) * p.master.ld + static_cast<int64_t>(c)];
    }
  }
  // Sites whose inputs are dropped; all by default.
  std::set<DropoutSite> sites{kSites.begin(), kSites.end()};
  Rounding* rounding = nullptr;  // null: exact

  [[nodiscard]] Matrix logits(const std::vector<Token>& tokens) const {
    Matrix x;
    for (const Token& t : tokens) x.push_back(value(hf::kEmbedding)[static_cast<size_t>(t.id)]);
    for (int64_t i = 0; i < model_.num_hidden_layers; ++i) layer(i, tokens, x);
    Matrix out;
    for (const Vector& row : x) out.push_back(times(value(hf::kHead), norm(row, value(hf::kFinalNorm)[0])));
    return out;
  }

 private:
  const Matrix& value(const std::string& name) const { return values_.at(name); }

  // The result of one operation.
  [[nodiscard]] double op(double value, double units = 1) const {
    return rounding == nullptr ? value : (*rounding)(value, units);
  }
  void sum_up(double& sum, double a, double b) const { sum = op(sum + op(a * b)); }

  [[nodiscard]] Vector times(const Matrix& w, const Vector& x) const {
    Vector y(w.size());
    for (size_t r = 0; r < w.size(); ++r)
      for (size_t c = 0; c < x.size(); ++c) sum_up(y[r], w[r][c], x[c]);
    return y;
  }
  void add(const Vector& x, double scale, Vector& y) const {
    for (size_t c = 0; c < x.size(); ++c) sum_up(y[c], scale, x[c]);
  }
  [[nodiscard]] Vector norm(const Vector& x, const Vector& weight) const {
    double squares = 0;
    for (const double v : x) sum_up(squares, v, v);
    const double rstd =
        op(1 / std::sqrt(squares / static_cast<double>(x.size()) + model_.rms_norm_eps), kRootUnits);
    Vector y(x.size());
    for (size_t c = 0; c < x.size(); ++c) y[c] = op(op(x[c] * rstd) * weight[c]);
    return y;
  }

  // Philox4x32-7 (Salmon et al., 2011) of the counter and key of a group of eight columns.
  static uint32_t bits_of(const Token& t, int64_t layer, DropoutSite site, size_t column) {
    std::array<uint32_t, 4> c{static_cast<uint32_t>(column / 8), static_cast<uint32_t>(t.position),
                              static_cast<uint32_t>(t.sample),
                              static_cast<uint32_t>(layer << 8) | static_cast<uint32_t>(site)};
    std::array<uint32_t, 2> key{static_cast<uint32_t>(kSeed), kStep};
    for (int round = 0; round < 7; ++round) {
      const uint64_t a = uint64_t{0xD2511F53} * c[0];
      const uint64_t b = uint64_t{0xCD9E8D57} * c[2];
      c = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ key[0], static_cast<uint32_t>(b),
           static_cast<uint32_t>(a >> 32) ^ c[3] ^ key[1], static_cast<uint32_t>(a)};
      key = {key[0] + 0x9E3779B9, key[1] + 0xBB67AE85};
    }
    const uint32_t word = c[column % 8 / 2];
    return column % 2 == 0 ? word & 0xFFFF : word >> 16;
  }
  [[nodiscard]] Vector dropped(const Vector& x, const Token& t, int64_t layer, DropoutSite site) const {
    if (!sites.contains(site)) return x;
    const double rate = site == DropoutSite::kAdapter ? pesc_.moe.adapter_dropout : pesc_.lora.lora_dropout;
    const double threshold = std::round(rate * 65536);
    Vector y(x.size());
    for (size_t c = 0; c < x.size(); ++c)
      if (bits_of(t, layer, site, c) >= threshold) y[c] = op(x[c] * op(65536 / (65536 - threshold)));
    return y;
  }

  // W x + B (alpha / r) A dropped
  [[nodiscard]] Vector linear(int64_t layer, Linear l, const Vector& x, const Vector& dropped_x) const {
    Vector y = times(value(hf::weight(layer, l)), x);
    const Vector a = times(value(hf::lora_a(layer, l)), dropped_x);
    add(times(value(hf::lora_b(layer, l)), a), pesc_.lora.lora_alpha / static_cast<double>(pesc_.lora.r), y);
    return y;
  }
  void rotate(Vector& x, int32_t position) const {
    const auto dim = static_cast<size_t>(model_.head_dim);
    for (size_t head = 0; head < x.size(); head += dim) {
      for (size_t i = 0; i < dim / 2; ++i) {
        const double angle =
            position * std::pow(model_.rope.theta, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
        const double first = x[head + i];
        const double second = x[head + i + dim / 2];
        const double cos = op(std::cos(angle));
        const double sin = op(std::sin(angle));
        x[head + i] = op(op(first * cos) - op(second * sin));
        x[head + i + dim / 2] = op(op(second * cos) + op(first * sin));
      }
    }
  }
  [[nodiscard]] Vector attend(const Vector& q, const Matrix& k, const Matrix& v, size_t begin,
                              size_t end) const {
    const auto dim = static_cast<size_t>(model_.head_dim);
    const auto group = static_cast<size_t>(model_.num_attention_heads / model_.num_key_value_heads);
    Vector out(q.size());
    for (size_t head = 0; head < q.size() / dim; ++head) {
      const size_t kv = head / group * dim;
      Vector weights;
      double sum = 0;
      for (size_t s = begin; s <= end; ++s) {
        double score = 0;
        for (size_t c = 0; c < dim; ++c) sum_up(score, q[head * dim + c], k[s][kv + c]);
        weights.push_back(op(std::exp(op(score / op(std::sqrt(static_cast<double>(dim))))), kExpUnits));
        sum = op(sum + weights.back());
      }
      for (size_t s = begin; s <= end; ++s)
        for (size_t c = 0; c < dim; ++c)
          sum_up(out[head * dim + c], op(weights[s - begin] / sum), v[s][kv + c]);
    }
    return out;
  }
  // What the chosen experts give to a token, from the FFN's input and output.
  [[nodiscard]] Vector experts(int64_t i, const Token& t, const Vector& input, const Vector& f) const {
    const Vector scores = times(value(hf::router(i)), input);
    std::vector<size_t> order(scores.size());
    for (size_t e = 0; e < order.size(); ++e) order[e] = e;
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });
    order.resize(static_cast<size_t>(pesc_.moe.num_experts_per_tok));
    std::map<size_t, double> share;
    double sum = 0;
    for (const size_t e : order) sum = op(sum + (share[e] = op(std::exp(scores[e]), kExpUnits)));
    const Vector in = dropped(f, t, i, DropoutSite::kAdapter);
    Vector out(f.size());
    for (const size_t e : order) {
      Vector hidden = times(value(hf::adapter_down(i, static_cast<int64_t>(e))), in);
      for (double& v : hidden) v = op(v * 0.5 * std::erfc(-v / std::sqrt(2.0)), kGeluUnits);
      add(times(value(hf::adapter_up(i, static_cast<int64_t>(e))), hidden),
          op(pesc_.moe.adapter_scaling * op(share.at(e) / sum)), out);
    }
    return out;
  }
  void layer(int64_t i, const std::vector<Token>& tokens, Matrix& x) const {
    Matrix q, k, v;
    for (size_t t = 0; t < tokens.size(); ++t) {
      const Vector h = norm(x[t], value(hf::input_norm(i))[0]);
      const Vector d = dropped(h, tokens[t], i, DropoutSite::kQkv);
      q.push_back(linear(i, Linear::kQ, h, d));
      k.push_back(linear(i, Linear::kK, h, d));
      v.push_back(linear(i, Linear::kV, h, d));
      rotate(q.back(), tokens[t].position);
      rotate(k.back(), tokens[t].position);
    }
    for (size_t t = 0; t < tokens.size(); ++t) {
      const Vector out = attend(q[t], k, v, tokens[t].row_begin, t);
      add(linear(i, Linear::kO, out, dropped(out, tokens[t], i, DropoutSite::kO)), 1, x[t]);
      const Vector h = norm(x[t], value(hf::post_norm(i))[0]);
      const Vector d = dropped(h, tokens[t], i, DropoutSite::kGateUp);
      const Vector gate = linear(i, Linear::kGate, h, d);
      Vector act = linear(i, Linear::kUp, h, d);
      for (size_t c = 0; c < act.size(); ++c)
        act[c] = op(act[c] * op(gate[c] / op(1 + op(std::exp(-gate[c]), kExpUnits))));
      const Vector f = linear(i, Linear::kDown, act, dropped(act, tokens[t], i, DropoutSite::kDown));
      add(f, 1, x[t]);
      add(experts(i, tokens[t], h, f), 1, x[t]);
    }
  }

  const ModelConfig& model_;
  const PescConfig& pesc_;
  std::map<std::string, Matrix> values_;
};

std::vector<float> flat(const Matrix& m) {
  std::vector<float> all;
  for (const Vector& row : m) all.insert(all.end(), row.begin(), row.end());
  return all;
}

// How far rounding takes the reference from its exact logits, at most, with the sites that it drops at.
double rounding_bound(Reference& reference, const std::vector<Token>& tokens) {
  const std::vector<float> exact = flat(reference.logits(tokens));
  double furthest = 0;
  for (int run = 1; run <= kRoundedRuns; ++run) {
    Rounding rounding(static_cast<uint64_t>(run));
    reference.rounding = &rounding;
    furthest = std::max(furthest, relative_error(flat(reference.logits(tokens)), exact));
    reference.rounding = nullptr;
  }
  return kMargin * furthest;
}

TEST(DropoutReference, EverySiteIsWhereItsDefinitionSays) {
  const MpiSession session;
  const auto world = session.world();
  const ModelConfig model = tiny_llama();
  PescConfig pesc = tiny_pesc();
  pesc.lora.lora_dropout = 0.3;
  pesc.moe.adapter_dropout = 0.4;
  const Rows rows = five_rows(model);
  Rig rig(*world, model, pesc, rows, {});
  std::vector<Token> tokens;
  for (size_t r = 0; r < rows.size(); ++r) {
    const size_t begin = tokens.size();
    for (size_t t = 0; t < rows[r].size(); ++t)
      tokens.push_back({rows[r][t], static_cast<int32_t>(t), static_cast<int64_t>(r), begin});
  }
  Reference reference(*rig.decoder, model, pesc);
  const std::vector<float> want = flat(reference.logits(tokens));
  const double apart = relative_error(rig.all_logits(ForwardMode::kTrain), want);
  const double bound = rounding_bound(reference, tokens);
  std::printf("float32 against float64, with dropout: %.1e, bound %.1e\n", apart, bound);
  EXPECT_LT(apart, bound);
  // A bound that a mask at another place could come near, which is seen at 1e-2, would show nothing.
  EXPECT_LT(bound, 1e-3);

  // Each of the masks is seen, and without any the model is that of evaluation.
  for (const DropoutSite site : kSites) {
    reference.sites = {kSites.begin(), kSites.end()};
    reference.sites.erase(site);
    EXPECT_GT(relative_error(flat(reference.logits(tokens)), want), 1e-2) << static_cast<int>(site);
  }
  reference.sites.clear();
  const double bound_of_eval = rounding_bound(reference, tokens);
  EXPECT_LT(relative_error(rig.all_logits(ForwardMode::kEval), flat(reference.logits(tokens))),
            bound_of_eval);
  EXPECT_LT(bound_of_eval, 1e-3);
}

}  // namespace
}  // namespace pesc
