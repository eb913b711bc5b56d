#include "runtime/control_tokens.h"

#include <algorithm>
#include <cmath>

#include "model/hf_names.h"
#include "ops/core/check.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr int64_t kSampledRows = 256;
constexpr double kLeastShare = 0.05;  // of the usual norm

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

// What makes the rows of these tokens suspicious; empty: nothing.
std::string suspicion(const Rows& matrix, const std::vector<ControlTokens::Token>& tokens) {
  const double usual = matrix.usual_norm();
  std::vector<std::vector<float>> rows;
  for (const ControlTokens::Token& token : tokens) {
    rows.push_back(matrix.row(token.id));
    const double share = usual > 0 ? Rows::norm(rows.back()) / usual : 1;
    if (share < kLeastShare)
      return str_cat("the norm of that of ", token_text(token), " is ", share, " of the usual one");
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (tokens[i].id != tokens[j].id && rows[i] == rows[j])
        return str_cat("those of ", token_text(tokens[j]), " and ", token_text(tokens[i]), " are equal");
    }
  }
  return "";
}

}  // namespace

void check_control_tokens(WeightSource& base, const ModelConfig& model, const ControlTokens& control) {
  const auto check = [&](const std::string& name, const std::vector<ControlTokens::Token>& tokens) {
    const std::string why = suspicion(Rows(base, model, name), tokens);
    if (why.empty()) return;
    throw DataError(str_cat(
        control.template_name, ": the model was never trained on its control tokens: of their rows of ", name,
        " ", why,
        ". These weights are frozen, so the model would hardly learn to end an answer; use a model of "
        "this family that was trained on chats, or data.chat_template: \"published\", which needs no such "
        "token"));
  };
  std::vector<ControlTokens::Token> tokens = control.tokens;
  std::erase_if(tokens, [&](const auto& token) { return token.id < 0 || token.id >= model.vocab_size; });
  check(hf::kEmbedding, tokens);
  if (model.tie_word_embeddings) return;
  std::erase_if(tokens, [&](const auto& token) { return token.id != control.end_of_turn; });
  check(hf::kHead, tokens);
}

}  // namespace pesc
