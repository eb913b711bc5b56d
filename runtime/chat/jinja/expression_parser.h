// Parses expressions, with the precedence of Jinja.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/chat/jinja/ast.h"
#include "runtime/chat/jinja/lexer.h"

namespace pesc::jinja {

class ExpressionParser {
 public:
  ExpressionParser(std::vector<Token> tokens, Program& program)
      : tokens_(std::move(tokens)), program_(program) {}

  [[nodiscard]] const Token& current() const { return tokens_[at_]; }
  [[nodiscard]] bool at_name(std::string_view name) const {
    return current().kind == Lexeme::kName && current().text == name;
  }
  [[nodiscard]] bool at_operator(std::string_view sign) const {
    return current().kind == Lexeme::kOperator && current().text == sign;
  }
  bool skip_name(std::string_view name);
  bool skip_operator(std::string_view sign);
  void expect_operator(std::string_view sign);
  void expect(Lexeme kind, std::string_view what);
  std::string expect_name();
  Token take();
  [[noreturn]] void unexpected() const;

  ExpressionPtr expression() { return condition(); }
  // One expression, or several with commas between, which are a tuple. `test_follows`: an "if" is not part of
  // it.
  ExpressionPtr tuple(bool test_follows = false);
  // A chain of filters over `input`, which may be null, from the name of the first on.
  ExpressionPtr filter(ExpressionPtr input);
  // What is assigned to. `with_namespace`: an attribute, as in ns.x, too.
  Target target(bool with_namespace);

 private:
  // Guards the recursion of the parser.
  struct Nesting {
    explicit Nesting(ExpressionParser& parser);
    ~Nesting() { --depth; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;
    int& depth;
  };

  ExpressionPtr make(Op op, int line, ExpressionPtr a = nullptr, ExpressionPtr b = nullptr);
  // Counts the depth of a tree that has got another argument.
  void add(Expression& to, ExpressionPtr arg);
  ExpressionPtr constant(const Value& value, int line);
  [[nodiscard]] const Token& next() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }

  ExpressionPtr condition();
  ExpressionPtr disjunction();
  ExpressionPtr conjunction();
  ExpressionPtr negation();
  ExpressionPtr comparison();
  ExpressionPtr sum();
  ExpressionPtr concatenation();
  ExpressionPtr product();
  ExpressionPtr power();
  ExpressionPtr unary(bool with_filter);
  ExpressionPtr primary();
  ExpressionPtr in_parentheses();
  ExpressionPtr list();
  ExpressionPtr dict();
  ExpressionPtr postfix(ExpressionPtr node);
  ExpressionPtr subscript(ExpressionPtr node);
  ExpressionPtr filters_and_tests(ExpressionPtr node);
  ExpressionPtr test(ExpressionPtr node);
  ExpressionPtr call(ExpressionPtr node);
  void arguments(Expression& of);

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;

 protected:
  Program& program_;
};

}  // namespace pesc::jinja
