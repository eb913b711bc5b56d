// ranks: 1
// Where dropout acts, against a float64 forward of the whole model written down here from its definition: the
// mask of q, k and v is one, that of gate and up is one, the router sees the FFN's input whole, the adapters
// see dropout(f) while f itself goes round them. The masks are made here too, from the counters that
// ops/dropout.h describes.
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <set>

#include "tests/model/rig.h"

namespace pesc {
namespace {

using Vector = std::vector<double>;
using Matrix = std::vector<Vector>;  // [rows][columns]

constexpr uint64_t kSeed = 5;  // as Rig::all_logits has them
constexpr uint32_t kStep = 3;
constexpr std::array kSites{DropoutSite::kQkv, DropoutSite::kO, DropoutSite::kGateUp, DropoutSite::kDown,
                            DropoutSite::kAdapter};

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
      const auto rows = static_cast<size_t>(p.value.rows);
      const auto cols = static_cast<size_t>(p.value.cols);
      Matrix& m = values_[p.spec.name];
      m.assign(rows, Vector(cols));
      for (size_t r = 0; r < rows; ++r)
        for (size_t c = 0; c < cols; ++c)
          m[r][c] = p.value.f32()[static_cast<int64_t>(r) * p.value.ld + static_cast<int64_t>(c)];
    }
  }
  // Sites whose inputs are dropped; all by default.
  std::set<DropoutSite> sites{kSites.begin(), kSites.end()};

  [[nodiscard]] Matrix logits(const std::vector<Token>& tokens) const {
    Matrix x;
    for (const Token& t : tokens) x.push_back(value(hf::kEmbedding)[static_cast<size_t>(t.id)]);
    for (int64_t i = 0; i < model_.layers; ++i) layer(i, tokens, x);
    Matrix out;
    for (const Vector& row : x) out.push_back(times(value(hf::kHead), norm(row, value(hf::kFinalNorm)[0])));
    return out;
  }

 private:
  const Matrix& value(const std::string& name) const { return values_.at(name); }

  static Vector times(const Matrix& w, const Vector& x) {
    Vector y(w.size());
    for (size_t r = 0; r < w.size(); ++r)
      for (size_t c = 0; c < x.size(); ++c) y[r] += w[r][c] * x[c];
    return y;
  }
  static void add(const Vector& x, double scale, Vector& y) {
    for (size_t c = 0; c < x.size(); ++c) y[c] += scale * x[c];
  }
  [[nodiscard]] Vector norm(const Vector& x, const Vector& weight) const {
    double squares = 0;
    for (const double v : x) squares += v * v;
    const double rstd = 1 / std::sqrt(squares / static_cast<double>(x.size()) + model_.rms_eps);
    Vector y(x.size());
    for (size_t c = 0; c < x.size(); ++c) y[c] = x[c] * rstd * weight[c];
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
    const double rate = site == DropoutSite::kAdapter ? pesc_.moe.dropout : pesc_.lora.dropout;
    const double threshold = std::round(rate * 65536);
    Vector y(x.size());
    for (size_t c = 0; c < x.size(); ++c)
      if (bits_of(t, layer, site, c) >= threshold) y[c] = x[c] * 65536 / (65536 - threshold);
    return y;
  }

  // W x + B (alpha / r) A dropped
  [[nodiscard]] Vector linear(int64_t layer, Linear l, const Vector& x, const Vector& dropped_x) const {
    Vector y = times(value(hf::weight(layer, l)), x);
    const Vector a = times(value(hf::lora_a(layer, l)), dropped_x);
    add(times(value(hf::lora_b(layer, l)), a), pesc_.lora.alpha / static_cast<double>(pesc_.lora.rank), y);
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
        x[head + i] = first * std::cos(angle) - second * std::sin(angle);
        x[head + i + dim / 2] = second * std::cos(angle) + first * std::sin(angle);
      }
    }
  }
  [[nodiscard]] Vector attend(const Vector& q, const Matrix& k, const Matrix& v, size_t begin,
                              size_t end) const {
    const auto dim = static_cast<size_t>(model_.head_dim);
    const auto group = static_cast<size_t>(model_.heads / model_.kv_heads);
    Vector out(q.size());
    for (size_t head = 0; head < q.size() / dim; ++head) {
      const size_t kv = head / group * dim;
      Vector weights;
      double sum = 0;
      for (size_t s = begin; s <= end; ++s) {
        double score = 0;
        for (size_t c = 0; c < dim; ++c) score += q[head * dim + c] * k[s][kv + c];
        weights.push_back(std::exp(score / std::sqrt(static_cast<double>(dim))));
        sum += weights.back();
      }
      for (size_t s = begin; s <= end; ++s)
        for (size_t c = 0; c < dim; ++c) out[head * dim + c] += weights[s - begin] / sum * v[s][kv + c];
    }
    return out;
  }
  // What the chosen experts give to a token, from the FFN's input and output.
  [[nodiscard]] Vector experts(int64_t i, const Token& t, const Vector& input, const Vector& f) const {
    const Vector scores = times(value(hf::router(i)), input);
    std::vector<size_t> order(scores.size());
    for (size_t e = 0; e < order.size(); ++e) order[e] = e;
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });
    order.resize(static_cast<size_t>(pesc_.moe.top_k));
    double sum = 0;
    for (const size_t e : order) sum += std::exp(scores[e]);
    const Vector in = dropped(f, t, i, DropoutSite::kAdapter);
    Vector out(f.size());
    for (const size_t e : order) {
      Vector hidden = times(value(hf::adapter_down(i, static_cast<int64_t>(e))), in);
      for (double& v : hidden) v *= 0.5 * std::erfc(-v / std::sqrt(2.0));  // GELU
      add(times(value(hf::adapter_up(i, static_cast<int64_t>(e))), hidden),
          pesc_.moe.scale * std::exp(scores[e]) / sum, out);
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
      for (size_t c = 0; c < act.size(); ++c) act[c] *= gate[c] / (1 + std::exp(-gate[c]));
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

TEST(DropoutReference, EverySiteIsWhereItsDefinitionSays) {
  const MpiSession session;
  const auto world = session.world();
  const ModelConfig model = tiny_llama();
  PescConfig pesc = tiny_pesc();
  pesc.lora.dropout = 0.3;
  pesc.moe.dropout = 0.4;
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
  const double apart = relative_error(rig.all_logits(PassKind::kTrain), want);
  std::printf("float32 against float64, with dropout: %.1e\n", apart);
  // The first bound was 2e-5, and 3.5e-5 came on an EPYC. That this is float32 rounding is likely, not
  // derived: without dropout the same model stays below 2e-5. A mask at another place is seen at 1e-2.
  EXPECT_LT(apart, 1e-4);

  // Each of the masks is seen, and without any the model is that of evaluation.
  for (const DropoutSite site : kSites) {
    reference.sites = {kSites.begin(), kSites.end()};
    reference.sites.erase(site);
    EXPECT_GT(relative_error(flat(reference.logits(tokens)), want), 1e-2) << static_cast<int>(site);
  }
  reference.sites.clear();
  EXPECT_LT(relative_error(rig.all_logits(PassKind::kEval), flat(reference.logits(tokens))), 2e-5);
}

}  // namespace
}  // namespace pesc
