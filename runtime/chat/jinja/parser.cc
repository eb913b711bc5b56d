// Statements. What Jinja has and we do not is refused here, by name.
#include <algorithm>
#include <array>
#include <utility>

#include "ops/core/check.h"
#include "runtime/chat/jinja/ast.h"
#include "runtime/chat/jinja/expression_parser.h"

namespace pesc::jinja {
namespace {

constexpr int kMaxBlocks = 60;  // blocks inside one another

constexpr std::array kRefused =
    std::to_array<std::string_view>({"import", "from", "include", "extends", "block", "with", "autoescape",
                                     "do", "trans", "pluralize", "print", "debug"});

class Parser : public ExpressionParser {
 public:
  Parser(std::vector<Token> tokens, Program& program) : ExpressionParser(std::move(tokens), program) {}

  Body all() {
    Body body = statements({});
    if (current().kind != Lexeme::kEnd) unexpected();
    return body;
  }

 private:
  using Names = std::initializer_list<std::string_view>;

  [[nodiscard]] bool at_any(Names names) const {
    return current().kind == Lexeme::kName && std::ranges::find(names, current().text) != names.end();
  }

  std::unique_ptr<Statement> make(Act act, int line) const {
    auto made = std::make_unique<Statement>();
    made->act = act;
    made->line = line;
    return made;
  }

  ExpressionPtr text_constant(const Token& token) {
    String& made = program_.constants.emplace_back();
    made.text.append(token.text);
    auto node = std::make_unique<Expression>();
    node->line = token.line;
    node->constant = Value(static_cast<const String*>(&made));
    return node;
  }

  // Up to one of `ends`, on which it stops (behind its "{%"); up to the end of the template when there are
  // none.
  Body statements(Names ends) {
    Body body;
    const auto output = [&](ExpressionPtr what) {
      if (body.empty() || body.back()->act != Act::kOutput) body.push_back(make(Act::kOutput, what->line));
      body.back()->expressions.push_back(std::move(what));
    };
    while (current().kind != Lexeme::kEnd) {
      const Token token = take();
      if (token.kind == Lexeme::kData) {
        output(text_constant(token));
      } else if (token.kind == Lexeme::kVariableBegin) {
        output(tuple());
        expect(Lexeme::kVariableEnd, "'}}'");
      } else {
        if (at_any(ends)) return body;
        body.push_back(statement());
        expect(Lexeme::kBlockEnd, "'%}'");
      }
    }
    if (ends.size() > 0)
      fail(str_cat("the template ends where '", *(ends.end() - 1), "' is expected"), current().line);
    return body;
  }

  // From the end of a block's opening tag to, and not with, the end of its closing one.
  Body block(Names ends) {
    if (++blocks_ > kMaxBlocks)
      fail(str_cat("blocks are nested more than ", kMaxBlocks, " deep"), current().line);
    skip_operator(":");
    expect(Lexeme::kBlockEnd, "'%}'");
    Body body = statements(ends);
    --blocks_;
    return body;
  }
  Body closed_block(std::string_view end) {
    Body body = block({end});
    take();
    return body;
  }

  std::unique_ptr<Statement> statement() {
    const Token token = current();
    if (token.kind != Lexeme::kName)
      fail(str_cat("a statement is expected, not '", token.text, "'"), token.line);
    take();
    const std::string& name = token.text;
    if (name == "for") return loop(token.line);
    if (name == "if") return condition(token.line);
    if (name == "set") return set(token.line);
    if (name == "macro") return macro(token.line);
    if (name == "call") return call_block(token.line);
    if (name == "filter") return filter_block(token.line);
    if (name == "generation") return generation(token.line);
    if (name == "break" || name == "continue") {
      if (loops_ == 0) fail(str_cat("'", name, "' stands outside of a loop"), token.line);
      return make(name == "break" ? Act::kBreak : Act::kContinue, token.line);
    }
    if (std::ranges::find(kRefused, name) != kRefused.end())
      fail(str_cat("{% ", name, " %} is not supported"), token.line);
    fail(str_cat("there is no statement '", name, "'"), token.line);
  }

  std::unique_ptr<Statement> loop(int line) {
    auto made = make(Act::kFor, line);
    made->target = target(false);
    if (!skip_name("in")) fail(str_cat("'in' is expected, not '", current().text, "'"), current().line);
    made->expressions.push_back(tuple(true));
    if (skip_name("if")) made->expressions.push_back(expression());
    if (at_name("recursive")) fail("{% for .. recursive %} is not supported", line);
    ++loops_;
    made->bodies.push_back(block({"else", "endfor"}));
    --loops_;
    if (at_name("else")) fail("{% else %} of a {% for %} is not supported", current().line);
    take();
    return made;
  }

  std::unique_ptr<Statement> condition(int line) {
    auto made = make(Act::kIf, line);
    while (true) {
      made->expressions.push_back(tuple());
      made->bodies.push_back(block({"elif", "else", "endif"}));
      const std::string end = take().text;
      if (end == "endif") return made;
      if (end == "elif") continue;
      made->bodies.push_back(closed_block("endif"));
      return made;
    }
  }

  std::unique_ptr<Statement> set(int line) {
    auto made = make(Act::kSet, line);
    made->target = target(true);
    if (skip_operator("=")) {
      made->expressions.push_back(tuple());
      return made;
    }
    made->act = Act::kSetBlock;
    if (skip_operator("|")) made->expressions.push_back(filter(nullptr));
    made->bodies.push_back(inner_block("endset"));
    return made;
  }

  // A body that is written into a text of its own: no `break` leads out of it.
  Body inner_block(std::string_view end) {
    const int loops = std::exchange(loops_, 0);
    Body body = closed_block(end);
    loops_ = loops;
    return body;
  }

  void parameters(Signature& signature) {
    expect_operator("(");
    while (!skip_operator(")")) {
      if (!signature.names.empty()) expect_operator(",");
      if (skip_operator(")")) return;
      const int line = current().line;
      signature.names.push_back(expect_name());
      signature.slots.push_back(program_.slot(signature.names.back()));
      if (skip_operator("=")) {
        signature.defaults.push_back(expression());
      } else if (!signature.defaults.empty()) {
        fail("a parameter without a default follows one with a default", line);
      }
    }
  }

  std::unique_ptr<Statement> macro(int line) {
    auto made = make(Act::kMacro, line);
    made->signature.name = expect_name();
    made->target.slot = program_.slot(made->signature.name);
    parameters(made->signature);
    made->bodies.push_back(inner_block("endmacro"));
    return made;
  }

  std::unique_ptr<Statement> call_block(int line) {
    auto made = make(Act::kCallBlock, line);
    if (at_operator("(")) parameters(made->signature);
    made->expressions.push_back(expression());
    if (made->expressions[0]->op != Op::kCall) fail("{% call %} needs a call", line);
    made->bodies.push_back(inner_block("endcall"));
    return made;
  }

  std::unique_ptr<Statement> filter_block(int line) {
    auto made = make(Act::kFilterBlock, line);
    made->expressions.push_back(filter(nullptr));
    made->bodies.push_back(inner_block("endfilter"));
    return made;
  }

  std::unique_ptr<Statement> generation(int line) {
    auto made = make(Act::kGeneration, line);
    program_.has_generation = true;
    made->bodies.push_back(inner_block("endgeneration"));
    return made;
  }

  int blocks_ = 0;
  int loops_ = 0;
};

}  // namespace

std::unique_ptr<Program> parse(std::string_view source) {
  auto program = std::make_unique<Program>();
  program->body = Parser(lex(source), *program).all();
  return program;
}

}  // namespace pesc::jinja
