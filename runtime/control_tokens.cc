#include "runtime/control_tokens.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "model/hf_names.h"
#include "ops/core/check.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr int64_t kSampledRows = 256;
constexpr size_t kMostOthers = 256;
// Both are shares of the usual norm. SmolLM2-135M-Instruct shows what lies on either side: its embedding has
// twelve rows of tokens that no text has (<jupyter_code> and the like) beside those of a trained ChatML.
//
// The least norm of its 49,152 rows is 0.57. What makes rows near zero goes on for all of a training run, so
// theirs are below that by powers of ten (fix_untrained_tokens of unsloth takes 1e-16), and a single pass of
// chats ends that: Adam moves every element by about the learning rate a step, which at 1e-5 makes 0.05 of an
// element of 0.02 (Llama's initializer_range) in 100 steps. So 0.05 is below all that was trained.
constexpr double kNearZero = 0.05;
// Its twelve untrained rows are at most 0.003 from each other, though their norm is 1.05. <|im_start|> and
// <|im_end|>, which were trained on chats alone, are 0.15 from each other and at least 0.12 from those rows;
// ordinary rows are at least 0.5 apart. 0.02 is the geometric mean of 0.003 and 0.12.
constexpr double kNotApart = 0.02;

// Rows of one [vocab_size, hidden_size] matrix.
class Rows {
 public:
  Rows(WeightSource& base, const ModelConfig& model, const std::string& name)
      : base_(base), model_(model), name_(name) {}

  [[nodiscard]] std::vector<float> row(int64_t number) const {
    std::vector<float> values(static_cast<size_t>(model_.hidden_size));
    base_.read({name_, model_.vocab_size, model_.hidden_size, number, 1, 0, model_.hidden_size},
               values.data());
    return values;
  }
  // The median of rows spread over the vocabulary.
  [[nodiscard]] double usual_norm() const {
    std::vector<double> norms;
    const int64_t count = std::min(kSampledRows, model_.vocab_size);
    for (int64_t i = 0; i < count; ++i) norms.push_back(norm(row(i * model_.vocab_size / count)));
    const auto middle = norms.begin() + std::ssize(norms) / 2;
    std::ranges::nth_element(norms, middle);
    return *middle;
  }
  static double norm(const std::vector<float>& values) {
    double sum = 0;
    for (const float v : values) sum += static_cast<double>(v) * static_cast<double>(v);
    return std::sqrt(sum);
  }

 private:
  WeightSource& base_;
  const ModelConfig& model_;
  std::string name_;
};

std::string token_text(const ControlTokens::Token& token) {
  return str_cat(in_quotes(token.text), " (token ", token.id, ")");
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  std::vector<float> difference(a.size());
  std::ranges::transform(a, b, difference.begin(), std::minus<>());
  return Rows::norm(difference);
}

using Tokens = std::vector<ControlTokens::Token>;

// What makes the rows of `looked_at` suspicious; empty: nothing. `all` are compared with.
std::string suspicion(const Rows& matrix, const Tokens& looked_at, const Tokens& all) {
  const double usual = matrix.usual_norm();
  if (usual <= 0) return "";
  std::vector<std::vector<float>> rows;
  for (const ControlTokens::Token& token : looked_at) {
    rows.push_back(matrix.row(token.id));
    const double share = Rows::norm(rows.back()) / usual;
    if (share < kNearZero)
      return str_cat("the norm of that of ", token_text(token), " is ", share, " of the usual one");
  }
  for (const ControlTokens::Token& other : all) {
    const std::vector<float> row = matrix.row(other.id);
    for (size_t i = 0; i < looked_at.size(); ++i) {
      if (looked_at[i].id == other.id) continue;
      const double apart = distance(rows[i], row) / usual;
      if (apart < kNotApart)
        return str_cat("those of ", token_text(looked_at[i]), " and ", token_text(other),
                       " are all but equal, ", apart, " of the usual norm apart");
    }
  }
  return "";
}

}  // namespace

void check_control_tokens(WeightSource& base, const ModelConfig& model, const ControlTokens& control) {
  const auto in_model = [&](Tokens tokens) {
    std::erase_if(tokens, [&](const auto& token) { return token.id < 0 || token.id >= model.vocab_size; });
    return tokens;
  };
  const Tokens tokens = in_model(control.tokens);
  Tokens all = in_model(control.others);
  if (all.size() > kMostOthers) all.resize(kMostOthers);
  all.insert(all.begin(), tokens.begin(), tokens.end());
  const auto check = [&](const std::string& name, const Tokens& looked_at) {
    const std::string why = suspicion(Rows(base, model, name), looked_at, all);
    if (why.empty()) return;
    throw DataError(str_cat(
        control.template_name, ": the model was never trained on its control tokens: of their rows of ", name,
        " ", why,
        ". These weights are frozen, so the model would hardly learn to end an answer; use a model of "
        "this family that was trained on chats, or data.chat_template: \"published\", which needs no such "
        "token"));
  };
  check(hf::kEmbedding, tokens);
  if (model.tie_word_embeddings) return;
  Tokens ends = tokens;
  std::erase_if(ends, [&](const auto& token) { return token.id != control.end_of_turn; });
  check(hf::kHead, ends);
}

}  // namespace pesc
