// What expressions are made of: literals, names, subscripts, calls, filters, tests; and what is assigned to.
#include <algorithm>
#include <utility>

#include "ops/core/check.h"
#include "runtime/chat/jinja/expression_parser.h"
#include "runtime/chat/jinja/filters.h"
#include "runtime/chat/jinja/tests.h"

namespace pesc::jinja {

ExpressionPtr ExpressionParser::primary() {
  const Token token = current();
  switch (token.kind) {
    case Lexeme::kName: {
      take();
      if (token.text == "true" || token.text == "True") return constant(Value(true), token.line);
      if (token.text == "false" || token.text == "False") return constant(Value(false), token.line);
      if (token.text == "none" || token.text == "None") return constant(Value::none(), token.line);
      ExpressionPtr node = make(Op::kName, token.line);
      node->slot = program_.slot(token.text);
      return node;
    }
    case Lexeme::kString: {
      String& made = program_.constants.emplace_back();
      while (current().kind == Lexeme::kString) made.text.append(take().text);
      return constant(Value(static_cast<const String*>(&made)), token.line);
    }
    case Lexeme::kInteger:
      take();
      return constant(Value(token.integer), token.line);
    case Lexeme::kFloat:
      take();
      return constant(Value(token.number), token.line);
    case Lexeme::kOperator:
      if (token.text == "(") return in_parentheses();
      if (token.text == "[") return list();
      if (token.text == "{") return dict();
      unexpected();
    default:
      unexpected();
  }
}

ExpressionPtr ExpressionParser::in_parentheses() {
  const int line = take().line;
  if (skip_operator(")")) return make(Op::kTuple, line);
  ExpressionPtr node = tuple();
  expect_operator(")");
  return node;
}

ExpressionPtr ExpressionParser::list() {
  ExpressionPtr node = make(Op::kList, take().line);
  while (!at_operator("]")) {
    if (!node->args.empty()) expect_operator(",");
    if (at_operator("]")) break;
    add(*node, condition());
  }
  take();
  return node;
}

ExpressionPtr ExpressionParser::dict() {
  ExpressionPtr node = make(Op::kDict, take().line);
  while (!at_operator("}")) {
    if (!node->args.empty()) expect_operator(",");
    if (at_operator("}")) break;
    add(*node, condition());
    expect_operator(":");
    add(*node, condition());
  }
  take();
  return node;
}

ExpressionPtr ExpressionParser::postfix(ExpressionPtr node) {
  while (true) {
    if (at_operator(".") || at_operator("[")) {
      node = subscript(std::move(node));
    } else if (at_operator("(")) {
      node = call(std::move(node));
    } else {
      return node;
    }
  }
}

ExpressionPtr ExpressionParser::subscript(ExpressionPtr object) {
  const Token open = take();
  if (open.text == ".") {
    if (current().kind == Lexeme::kInteger) {
      const Token index = take();
      return make(Op::kItem, open.line, std::move(object), constant(Value(index.integer), index.line));
    }
    ExpressionPtr node = make(Op::kAttribute, open.line, std::move(object));
    node->name = expect_name();
    return node;
  }
  ExpressionPtr first = at_operator(":") ? nullptr : condition();
  if (!skip_operator(":")) {
    if (at_operator(",")) fail("several indexes in one pair of brackets are not supported", current().line);
    expect_operator("]");
    return make(Op::kItem, open.line, std::move(object), std::move(first));
  }
  ExpressionPtr node = make(Op::kSlice, open.line, std::move(object));
  add(*node, std::move(first));
  add(*node, at_operator(":") || at_operator("]") ? nullptr : condition());
  add(*node, skip_operator(":") && !at_operator("]") ? condition() : nullptr);
  expect_operator("]");
  return node;
}

ExpressionPtr ExpressionParser::filters_and_tests(ExpressionPtr node) {
  while (true) {
    if (skip_operator("|")) {
      node = filter(std::move(node));
    } else if (at_name("is")) {
      node = test(std::move(node));
    } else if (at_operator("(")) {
      node = call(std::move(node));
    } else {
      return node;
    }
  }
}

ExpressionPtr ExpressionParser::filter(ExpressionPtr node) {
  do {
    const int line = current().line;
    ExpressionPtr outer = make(Op::kFilter, line);
    add(*outer, std::move(node));
    outer->name = expect_name();
    outer->filter = find_filter(outer->name, line);
    if (at_operator("(")) arguments(*outer);
    node = std::move(outer);
  } while (skip_operator("|"));
  return node;
}

ExpressionPtr ExpressionParser::test(ExpressionPtr node) {
  const int line = take().line;
  const bool negated = skip_name("not");
  ExpressionPtr outer = make(Op::kTest, line, std::move(node));
  outer->name = expect_name();
  outer->test = find_test(outer->name, line);
  const Lexeme kind = current().kind;
  if (at_operator("(")) {
    arguments(*outer);
  } else if (kind == Lexeme::kString || kind == Lexeme::kInteger || kind == Lexeme::kFloat ||
             at_operator("[") || at_operator("{") ||
             (kind == Lexeme::kName && !at_name("else") && !at_name("or") && !at_name("and"))) {
    if (at_name("is")) fail("a test follows a test (\"is\" .. \"is\")", current().line);
    add(*outer, postfix(primary()));
  }
  return negated ? make(Op::kNot, line, std::move(outer)) : std::move(outer);
}

ExpressionPtr ExpressionParser::call(ExpressionPtr node) {
  ExpressionPtr outer = make(Op::kCall, current().line, std::move(node));
  arguments(*outer);
  return outer;
}

Target ExpressionParser::target(bool with_namespace) {
  const Nesting nesting(*this);
  const auto one = [&] {
    Target target;
    if (skip_operator("(")) {
      target = this->target(with_namespace);
      expect_operator(")");
      return target;
    }
    const int line = current().line;
    const std::string name = expect_name();
    if (name == "true" || name == "false" || name == "none" || name == "True" || name == "False" ||
        name == "None")
      fail(str_cat("'", name, "' cannot be assigned to"), line);
    target.slot = program_.slot(name);
    if (with_namespace && skip_operator(".")) target.attribute = expect_name();
    return target;
  };
  Target first = one();
  if (!at_operator(",")) return first;
  Target tuple;
  tuple.parts.push_back(std::move(first));
  while (skip_operator(",")) {
    if (current().kind != Lexeme::kName && !at_operator("(")) break;
    if (at_name("in")) break;
    tuple.parts.push_back(one());
  }
  return tuple;
}

void ExpressionParser::arguments(Expression& of) {
  const Nesting nesting(*this);
  take();
  for (bool first = true; !at_operator(")"); first = false) {
    if (!first) expect_operator(",");
    if (at_operator(")")) break;
    if (at_operator("*") || at_operator("**"))
      fail("arguments from a list or a mapping (* and **) are not supported", current().line);
    if (current().kind == Lexeme::kName && next().kind == Lexeme::kOperator && next().text == "=") {
      std::string name = take().text;
      take();
      ExpressionPtr value = condition();
      of.depth = std::max(of.depth, value->depth + 1);
      of.keywords.emplace_back(std::move(name), std::move(value));
    } else {
      if (!of.keywords.empty()) fail("an argument without a name follows one with a name", current().line);
      add(of, condition());
    }
  }
  take();
}

}  // namespace pesc::jinja
