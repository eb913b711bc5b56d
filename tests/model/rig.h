// Tiny models with random weights on any layout, for the tests of the whole model.
//
// Every weight, norm, bias, LoRA and adapter value is a function of its tensor's name and its global index,
// so that all layouts hold the same model. `alone` gives a rank a world of its own: the reference of a test
// on several ranks runs on each of them by itself.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "model/decoder.h"
#include "model/hf_names.h"
#include "model/quantized_weights.h"
#include "ops/core/check.h"
#include "runtime/optimizer.h"
#include "runtime/ranks.h"
#include "tests/assemble.h"
#include "tests/device.h"
#include "tests/model/layout.h"

namespace pesc {

inline ModelConfig tiny_llama() {
  ModelConfig m;
  m.vocab_size = 44;
  m.hidden_size = 32;
  m.intermediate_size = 40;
  m.num_hidden_layers = 2;
  m.num_attention_heads = 4;
  m.num_key_value_heads = 2;
  m.head_dim = 8;
  m.max_position_embeddings = 64;
  return m;
}
// Biases on q, k and v; tied embeddings.
inline ModelConfig tiny_qwen2() {
  ModelConfig m = tiny_llama();
  m.family = Family::kQwen2;
  m.qkv_bias = true;
  m.tie_word_embeddings = true;
  return m;
}
// Norms of the heads of q and k; heads of another size than hidden / heads; tied embeddings.
inline ModelConfig tiny_qwen3() {
  ModelConfig m = tiny_llama();
  m.family = Family::kQwen3;
  m.head_dim = 12;
  m.tie_word_embeddings = true;
  return m;
}
// The second layer does not rotate q and k.
inline ModelConfig tiny_smollm3() {
  ModelConfig m = tiny_llama();
  m.family = Family::kSmolLm3;
  m.layers_without_rope = {1};
  m.tie_word_embeddings = true;
  return m;
}
// Nothing divides what it does in the usual shapes: head_dim is not hidden / heads, one KV head, a vocabulary
// that no tp divides, interpolated positions.
inline ModelConfig odd_llama() {
  ModelConfig m = tiny_llama();
  m.vocab_size = 37;
  m.hidden_size = 20;
  m.intermediate_size = 24;
  m.num_key_value_heads = 1;
  m.head_dim = 6;
  m.rope = {RopeKind::kLlama3, 500.0, 4.0, 1.0, 4.0, 16};
  return m;
}

// So wide that on a CPU the FFN of many_rows() goes in blocks (shared_ffn.h).
inline ModelConfig wide_llama() {
  ModelConfig m = tiny_llama();
  m.intermediate_size = 400;
  return m;
}

// For BF16: widths that let a frozen weight and LoRA's B stand side by side, heads that cuDNN takes.
inline ModelConfig bf16_llama() {
  ModelConfig m = tiny_llama();
  m.hidden_size = 256;
  m.intermediate_size = 512;
  m.head_dim = 64;
  m.max_position_embeddings = 128;
  return m;
}

inline PescConfig tiny_pesc() {
  PescConfig p;
  p.lora = {
      3, 6, 0.1, {Linear::kQ, Linear::kK, Linear::kV, Linear::kO, Linear::kGate, Linear::kUp, Linear::kDown}};
  p.moe = {8, 2, 5, 0.7, 0.2, 0.01};
  return p;
}
inline PescConfig bf16_pesc() {
  PescConfig p = tiny_pesc();
  p.lora.r = 8;
  p.moe.adapter_dim = 16;
  return p;
}
inline PescConfig odd_pesc() {
  PescConfig p;
  p.lora = {2, 5, 0.1, {Linear::kQ, Linear::kV, Linear::kUp, Linear::kDown}};
  p.moe = {8, 3, 3, 1.3, 0.1, 0.01};
  return p;
}
inline PescConfig dense_only() {
  PescConfig p;
  p.mode = TrainMode::kLora;
  p.moe.num_experts = 0;
  return p;
}
inline PescConfig full_tuning() {
  PescConfig p = dense_only();
  p.mode = TrainMode::kFull;
  return p;
}

// Uniform in [-1, 1) from a name and a number.
inline double noise(const std::string& name, uint64_t i) {
  uint64_t z = i * 0x9E3779B97F4A7C15ULL;
  for (const char c : name) z = (z ^ static_cast<unsigned char>(c)) * 0x100000001B3ULL;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return static_cast<double>((z ^ (z >> 31)) >> 11) / static_cast<double>(1ULL << 52) - 1.0;
}

// The value of a weight of the test models.
inline float weight_noise(const ShardSpec& s, int64_t row, int64_t col) {
  const bool norm = s.name.find("norm") != std::string::npos;
  // Large embeddings: with small ones the norms make the loss too curved for finite differences.
  double scale = 1.7 / std::sqrt(static_cast<double>(s.global_cols));
  if (norm || s.global_rows == 1) scale = 0.3;
  if (s.name == hf::kEmbedding) scale = 1;
  const double v = noise(s.name, static_cast<uint64_t>(row * s.global_cols + col));
  return static_cast<float>((norm ? 1.0 : 0.0) + scale * v);
}

inline void randomise(Decoder& d, const Parameter& p) {
  const ShardSpec& s = p.spec;
  // These are read from a folder alone.
  if (p.held.type.format == FrozenFormat::kFP8Blocks || p.held.type.format == FrozenFormat::kNF4Single)
    return;
  if (p.held.out > 0 && is_quantized(p.held.type.format)) {
    const ReadRows read = [&s](int64_t row, int64_t rows, float* to) {
      for (int64_t r = row; r < row + rows; ++r)
        for (int64_t c = 0; c < s.global_cols; ++c) *to++ = weight_noise(s, r, c);
    };
    return write_quantized(d.stream(), s, read, p.held);
  }
  std::vector<float> host;
  for (int64_t r = s.row; r < s.row + s.rows; ++r)
    for (int64_t c = s.col; c < s.col + s.cols; ++c) host.push_back(weight_noise(s, r, c));
  const FrozenLinear to = p.held.out > 0 ? p.held : FrozenLinear::of(p.master);
  PESC_CHECK(FrozenWriter(d.stream(), to).write(0, s.rows, host.data()) < 0, s.name,
             " does not hold its noise");
}
inline void randomise(Decoder& d) {
  for (const Parameter& p : d.parameters().all()) randomise(d, p);
  d.parameters().refresh_compute_weights(d.stream());
}
// What is trained alone: the base stays.
inline void randomise_trainable(Decoder& d) {
  for (const Parameter& p : d.parameters().all())
    if (p.trainable) randomise(d, p);
  d.parameters().refresh_compute_weights(d.stream());
}

// Rows of a batch, of any lengths; every third token is not supervised.
using Rows = std::vector<std::vector<int32_t>>;
inline Rows some_rows(int64_t vocab, const std::vector<int64_t>& lengths) {
  Rows rows;
  for (size_t i = 0; i < lengths.size(); ++i) {
    std::vector<int32_t> row;
    for (int64_t t = 0; t < lengths[i]; ++t) {
      const double u = noise("row", i * 1000 + static_cast<uint64_t>(t)) / 2 + 0.5;
      row.push_back(static_cast<int32_t>(u * static_cast<double>(vocab)));
    }
    rows.push_back(row);
  }
  return rows;
}
inline Rows five_rows(const ModelConfig& m) {
  return some_rows(m.vocab_size, {7, 3, 9, 1, 6});
}
// `whole` rows of 30 tokens and two shorter ones; all of them have 2540 tokens.
inline Rows many_rows(size_t whole = 84) {
  std::vector<int64_t> lengths(whole, 30);
  lengths.push_back(17);
  lengths.push_back(3);
  return some_rows(wide_llama().vocab_size, lengths);
}
inline int64_t count_tokens(const Rows& rows) {
  int64_t n = 0;
  for (const auto& row : rows) n += static_cast<int64_t>(row.size());
  return n;
}
inline HostBatch batch_of_rows(const Rows& rows, Range range) {
  HostBatch b;
  for (int64_t i = range.begin; i < range.end; ++i) {
    const auto& row = rows[static_cast<size_t>(i)];
    for (size_t t = 0; t < row.size(); ++t) {
      b.tokens.push_back(row[t]);
      b.targets.push_back(t + 1 < row.size() && t % 3 != 2 ? row[t + 1] : -100);
      b.positions.push_back(static_cast<int32_t>(t));
      b.samples.push_back(i);
    }
    b.starts.push_back(static_cast<int32_t>(b.tokens.size()));
  }
  return b;
}

// A model on a layout of `world`, its share of the rows, and training steps on them.
class Rig {
 public:
  Rig(Communicator& world, const ModelConfig& model, const PescConfig& pesc, const Rows& all_rows,
      const Layout& layout)
      : rows(all_rows), ranks(world, layout.tp, layout.ep, model.num_key_value_heads), reduce(layout.reduce) {
    validate_model(model);
    validate_layout(model, pesc, world.size(), layout.tp, layout.ep);
    const Mesh& mesh = ranks.mesh();
    batch = batch_of_rows(rows, split_range(static_cast<int64_t>(rows.size()), mesh.dp(), mesh.dp_rank()));
    const DecoderOptions o = options_of(model, pesc, mesh, layout, std::max<int64_t>(count_tokens(rows), 1));
    decoder = std::make_unique<Decoder>(model, pesc, mesh, ranks.groups(), o);
    randomise(*decoder);
  }

  // The loss ce_scale * (sum over supervised tokens) + aux_loss_coef * (sum over layers), over all ranks.
  double loss(RouterReplay* router_replay = nullptr, HeadMode mode = HeadMode::kLoss) {
    decoder->forward(batch,
                     {.kind = ForwardMode::kTrain, .seed = 5, .step = step, .router_replay = router_replay});
    decoder->compute_aux_loss(count_tokens(rows), aux_loss_coef);
    decoder->loss(mode, static_cast<float>(ce_scale));
    double total = ce_scale * sum_over_dp(decoder->take_loss_sum());
    for (const float b : decoder->aux_losses()) total += aux_loss_coef * static_cast<double>(b);
    return total;
  }
  // Forward and backward, then the reduction over ranks; returns the loss and keeps the gradient's norm.
  double train(RouterReplay* router_replay = nullptr) {
    decoder->zero_gradients();
    const double value = loss(router_replay, HeadMode::kLossAndGradient);
    GradientReducer sum(*decoder, ranks.reduction(), reduce, 1);  // layer by layer
    decoder->backward(sum.overlapped());
    norm = sum.finish(ranks.world());
    return value;
  }
  Tensors gradients() {
    return assemble(ranks.world(), *decoder, [](const Parameter& p) { return p.grad; });
  }
  Tensors values() {
    return assemble(ranks.world(), *decoder, [](const Parameter& p) { return p.master; });
  }
  // Logits [tokens of all rows, vocab], on every rank.
  std::vector<float> all_logits(ForwardMode kind) {
    decoder->forward(batch, {.kind = kind, .seed = 5, .step = 3});
    std::vector<int32_t> index(static_cast<size_t>(batch.size()));
    for (size_t i = 0; i < index.size(); ++i) index[i] = static_cast<int32_t>(i);
    const std::vector<float> mine = decoder->logits(index);
    std::string bytes;
    if (ranks.mesh().tp_rank() == 0)
      bytes.assign(reinterpret_cast<const char*>(mine.data()), mine.size() * sizeof(float));
    std::vector<float> all;
    for (const std::string& part : ranks.world().host_all_gather(bytes)) {
      const size_t at = all.size();
      all.resize(at + part.size() / sizeof(float));
      std::memcpy(all.data() + at, part.data(), part.size());
    }
    return all;
  }

  Rows rows;
  Ranks ranks;
  Reduce reduce;
  HostBatch batch;
  std::unique_ptr<Decoder> decoder;
  double ce_scale = 0.05;
  double aux_loss_coef = 0.3;
  double norm = 0;
  uint32_t step = 3;  // of the dropout masks

 private:
  double sum_over_dp(double mine) {
    std::string bytes(sizeof(double), '\0');
    std::memcpy(bytes.data(), &mine, sizeof(mine));
    double total = 0;
    const std::vector<std::string> all = ranks.world().host_all_gather(bytes);
    for (size_t r = 0; r < all.size(); r += static_cast<size_t>(ranks.mesh().tp())) {
      double one = 0;
      std::memcpy(&one, all[r].data(), sizeof(one));
      total += one;
    }
    return total;
  }
};

// Keeps each layer's choice of experts and gives it again in every later step: two logits that are all but
// equal would else be ordered by rounding.
class FirstChoices : public RouterReplay {
 public:
  bool replay(const Batch& /*batch*/, int64_t layer, std::vector<int32_t>& experts) override {
    const auto it = choices_.find(layer);
    if (it == choices_.end()) return false;
    experts = it->second;
    return true;
  }
  void record(const Batch& /*batch*/, int64_t layer, const std::vector<int32_t>& experts) override {
    choices_[layer] = experts;
  }

 private:
  std::map<int64_t, std::vector<int32_t>> choices_;
};

// A world of one rank, on every rank.
inline std::unique_ptr<Communicator> alone(Communicator& world) {
  return world.split(world.rank(), "alone");
}

// max|a - b| / max|b|; absolute where b = 0.
inline double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return INFINITY;
  double difference = 0;
  double scale = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    difference = std::isnan(d) ? INFINITY : std::max(difference, d);
    scale = std::max(scale, std::abs(static_cast<double>(b[i])));
  }
  return scale > 0 ? difference / scale : difference;
}
inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace pesc
