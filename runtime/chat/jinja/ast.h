// A compiled template. Immutable; several renderings may share it.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/chat/jinja/value.h"

namespace pesc::jinja {

struct FilterEntry;
struct TestEntry;

enum class Op : uint8_t {
  kConst,
  kName,
  kList,
  kTuple,
  kDict,  // args: key, value, key, value ..
  kAttribute,
  kItem,
  kSlice,  // args: object, start, stop, step; each of the last three may be null
  kCall,   // args[0] is called with the others
  kFilter,
  kTest,
  kNot,
  kAnd,
  kOr,
  kNegative,
  kPositive,
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kFloorDivide,
  kModulo,
  kPower,
  kConcat,
  kCompare,    // args and, between each two of them, an operator
  kCondition,  // args: test, value, other value or null
};

enum class Comparison : uint8_t { kEqual, kUnequal, kLess, kLessEqual, kGreater, kGreaterEqual, kIn, kNotIn };

struct Expression {
  Op op = Op::kConst;
  int line = 0;
  int depth = 1;  // of the tree below
  int slot = -1;  // of a name
  Value constant;
  std::string name;  // of an attribute, filter or test
  std::vector<std::unique_ptr<Expression>> args;
  std::vector<std::pair<std::string, std::unique_ptr<Expression>>> keywords;
  std::vector<Comparison> comparisons;
  const FilterEntry* filter =
      nullptr;  // null: there is none of that name, which is an error once it is needed
  const TestEntry* test = nullptr;
};
using ExpressionPtr = std::unique_ptr<Expression>;

// What {% set %} and {% for %} assign to: a name, an attribute of a namespace, or a tuple of these.
struct Target {
  int slot = -1;
  std::string attribute;
  std::vector<Target> parts;  // not empty: a tuple
};

enum class Act : uint8_t {
  kOutput,
  kIf,
  kFor,
  kSet,
  kSetBlock,
  kMacro,
  kCallBlock,
  kFilterBlock,
  kGeneration,
  kBreak,
  kContinue,
};

struct Statement;
using Body = std::vector<std::unique_ptr<Statement>>;

// A macro's, or a call block's, name and parameters.
struct Signature {
  std::string name;
  std::vector<int> slots;
  std::vector<std::string> names;
  std::vector<ExpressionPtr> defaults;  // of the last parameters
};

struct Statement {
  Act act = Act::kOutput;
  int line = 0;
  // kOutput: what is written. kIf: the tests. kFor: what is gone through and, where there is one, the test.
  // kSet: the value. kSetBlock, kFilterBlock: a filter chain whose innermost argument is null, or nothing.
  // kCallBlock: the call.
  std::vector<ExpressionPtr> expressions;
  std::vector<Body> bodies;  // kIf: one for each test, and one more with an else
  Target target;             // kFor, kSet, kSetBlock
  Signature signature;       // kMacro, kCallBlock
};

struct Program {
  Body body;
  std::vector<std::string> names;  // of the slots
  std::deque<String> constants;
  bool has_generation = false;
  int slot(std::string_view name);  // makes one for a new name
  [[nodiscard]] int find_slot(std::string_view name) const;
};

// Throws Failure, with the line, for a mistake and for what is not supported.
[[nodiscard]] std::unique_ptr<Program> parse(std::string_view source);

}  // namespace pesc::jinja
