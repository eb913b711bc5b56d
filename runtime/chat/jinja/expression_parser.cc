// Operators, and the tokens that all parsers share.
#include "runtime/chat/jinja/expression_parser.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "ops/core/check.h"

namespace pesc::jinja {
namespace {

constexpr int kMaxNesting = 100;    // of brackets and the like
constexpr int kMaxOperators = 300;  // of an expression's tree: a + b + c + ..

std::optional<Comparison> comparison_of(const Token& token) {
  constexpr std::array kSigns =
      std::to_array<std::pair<std::string_view, Comparison>>({{"==", Comparison::kEqual},
                                                              {"!=", Comparison::kUnequal},
                                                              {"<", Comparison::kLess},
                                                              {"<=", Comparison::kLessEqual},
                                                              {">", Comparison::kGreater},
                                                              {">=", Comparison::kGreaterEqual}});
  if (token.kind != Lexeme::kOperator) return std::nullopt;
  for (const auto& [sign, comparison] : kSigns) {
    if (token.text == sign) return comparison;
  }
  return std::nullopt;
}

}  // namespace

ExpressionParser::Nesting::Nesting(ExpressionParser& parser) : depth(parser.nesting_) {
  if (++depth > kMaxNesting)
    fail(str_cat("an expression is nested more than ", kMaxNesting, " deep"), parser.current().line);
}

bool ExpressionParser::skip_name(std::string_view name) {
  if (!at_name(name)) return false;
  ++at_;
  return true;
}

bool ExpressionParser::skip_operator(std::string_view sign) {
  if (!at_operator(sign)) return false;
  ++at_;
  return true;
}

void ExpressionParser::expect_operator(std::string_view sign) {
  if (!skip_operator(sign))
    fail(str_cat("'", sign, "' is expected, not '", current().text, "'"), current().line);
}

void ExpressionParser::expect(Lexeme kind, std::string_view what) {
  if (current().kind != kind) fail(str_cat(what, " is expected, not '", current().text, "'"), current().line);
  take();
}

std::string ExpressionParser::expect_name() {
  if (current().kind != Lexeme::kName)
    fail(str_cat("a name is expected, not '", current().text, "'"), current().line);
  return take().text;
}

Token ExpressionParser::take() {
  Token token = tokens_[at_];
  if (at_ + 1 < tokens_.size()) ++at_;
  return token;
}

void ExpressionParser::unexpected() const {
  fail(str_cat("'", current().text, "' is not expected here"), current().line);
}

ExpressionPtr ExpressionParser::make(Op op, int line, ExpressionPtr a, ExpressionPtr b) {
  auto node = std::make_unique<Expression>();
  node->op = op;
  node->line = line;
  if (a != nullptr) add(*node, std::move(a));
  if (b != nullptr) add(*node, std::move(b));
  return node;
}

void ExpressionParser::add(Expression& to, ExpressionPtr arg) {
  if (arg != nullptr) to.depth = std::max(to.depth, arg->depth + 1);
  if (to.depth > kMaxOperators)
    fail(str_cat("an expression has more than ", kMaxOperators, " operators in a row"), to.line);
  to.args.push_back(std::move(arg));
}

ExpressionPtr ExpressionParser::constant(const Value& value, int line) {
  ExpressionPtr node = make(Op::kConst, line);
  node->constant = value;
  return node;
}

ExpressionPtr ExpressionParser::tuple(bool test_follows) {
  const int line = current().line;
  const auto at_end = [&] {
    return current().kind == Lexeme::kVariableEnd || current().kind == Lexeme::kBlockEnd ||
           at_operator(")") || (test_follows && at_name("recursive"));
  };
  const auto item = [&] { return test_follows ? disjunction() : condition(); };
  ExpressionPtr first = item();
  if (!at_operator(",")) return first;
  ExpressionPtr node = make(Op::kTuple, line, std::move(first));
  while (skip_operator(",") && !at_end()) add(*node, item());
  return node;
}

ExpressionPtr ExpressionParser::condition() {
  const Nesting nesting(*this);
  int line = current().line;
  ExpressionPtr value = disjunction();
  while (skip_name("if")) {
    ExpressionPtr node = make(Op::kCondition, line, disjunction(), std::move(value));
    add(*node, skip_name("else") ? condition() : nullptr);
    value = std::move(node);
    line = current().line;
  }
  return value;
}

ExpressionPtr ExpressionParser::disjunction() {
  ExpressionPtr left = conjunction();
  while (at_name("or")) {
    const int line = take().line;
    left = make(Op::kOr, line, std::move(left), conjunction());
  }
  return left;
}

ExpressionPtr ExpressionParser::conjunction() {
  ExpressionPtr left = negation();
  while (at_name("and")) {
    const int line = take().line;
    left = make(Op::kAnd, line, std::move(left), negation());
  }
  return left;
}

ExpressionPtr ExpressionParser::negation() {
  if (!at_name("not")) return comparison();
  const Nesting nesting(*this);
  const int line = take().line;
  return make(Op::kNot, line, negation());
}

ExpressionPtr ExpressionParser::comparison() {
  ExpressionPtr first = sum();
  ExpressionPtr node;
  while (true) {
    std::optional<Comparison> op = comparison_of(current());
    if (op.has_value()) {
      take();
    } else if (skip_name("in")) {
      op = Comparison::kIn;
    } else if (at_name("not") && next().kind == Lexeme::kName && next().text == "in") {
      take();
      take();
      op = Comparison::kNotIn;
    } else {
      break;
    }
    if (node == nullptr) {
      const int line = first->line;
      node = make(Op::kCompare, line, std::move(first));
    }
    node->comparisons.push_back(*op);
    add(*node, sum());
  }
  return node == nullptr ? std::move(first) : std::move(node);
}

ExpressionPtr ExpressionParser::sum() {
  ExpressionPtr left = concatenation();
  while (at_operator("+") || at_operator("-")) {
    const Token sign = take();
    left = make(sign.text == "+" ? Op::kAdd : Op::kSubtract, sign.line, std::move(left), concatenation());
  }
  return left;
}

ExpressionPtr ExpressionParser::concatenation() {
  ExpressionPtr first = product();
  if (!at_operator("~")) return first;
  const int line = first->line;
  ExpressionPtr node = make(Op::kConcat, line, std::move(first));
  while (skip_operator("~")) add(*node, product());
  return node;
}

ExpressionPtr ExpressionParser::product() {
  ExpressionPtr left = power();
  while (at_operator("*") || at_operator("/") || at_operator("//") || at_operator("%")) {
    const Token sign = take();
    const Op op = sign.text == "*"    ? Op::kMultiply
                  : sign.text == "/"  ? Op::kDivide
                  : sign.text == "//" ? Op::kFloorDivide
                                      : Op::kModulo;
    left = make(op, sign.line, std::move(left), power());
  }
  return left;
}

ExpressionPtr ExpressionParser::power() {
  ExpressionPtr left = unary(true);
  while (at_operator("**")) {
    const int line = take().line;
    left = make(Op::kPower, line, std::move(left), unary(true));
  }
  return left;
}

ExpressionPtr ExpressionParser::unary(bool with_filter) {
  ExpressionPtr node;
  if (at_operator("-") || at_operator("+")) {
    const Nesting nesting(*this);
    const Token sign = take();
    node = make(sign.text == "-" ? Op::kNegative : Op::kPositive, sign.line, unary(false));
  } else {
    node = primary();
  }
  node = postfix(std::move(node));
  return with_filter ? filters_and_tests(std::move(node)) : std::move(node);
}

}  // namespace pesc::jinja
