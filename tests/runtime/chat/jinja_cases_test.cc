// Small templates against what the original makes of them (make_jinja_cases.py beside this file wrote
// jinja_cases.json).
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "runtime/chat/conversation_values.h"
#include "runtime/chat/jinja/ast.h"
#include "runtime/chat/jinja/interpreter.h"

namespace pesc {
namespace {

using Json = nlohmann::ordered_json;

// What the original does and we refuse, by the words with which we do.
constexpr auto kRefused = std::to_array<std::string_view>({
    "is not supported",
    "are not supported",
    "is supported without arguments",
    "cannot be printed",
    "a number of 64 bits",
});

std::string rendered(const std::string& source, const Json& context) {
  const auto program = jinja::parse(source);
  jinja::Heap heap(int64_t{1} << 26, 1'000'000);
  jinja::Interpreter in(*program, heap, {}, "2025-01-31");
  for (const auto& [name, value] : context.items()) in.set(name, value_of(heap, value, jinja::kOwnText));
  in.run();
  return in.text().bytes;
}

TEST(JinjaCases, TextIsThatOfTheOriginal) {
  const std::string path = std::string(PESC_SOURCE_DIR) + "/tests/runtime/chat/jinja_cases.json";
  std::ifstream file(path);
  ASSERT_TRUE(file) << path;
  const Json all = Json::parse(file);
  int same = 0;
  int refused_by_both = 0;
  int refused = 0;
  for (const Json& one : all.at("cases")) {
    const std::string source = one.at("template");
    try {
      const std::string text = rendered(source, all.at("context"));
      EXPECT_TRUE(one.contains("text"))
          << source << "\nis an error of the original: " << one.value("error", "") << "\nand gives: " << text;
      if (!one.contains("text")) continue;
      EXPECT_EQ(text, one.at("text").get<std::string>()) << source;
      ++same;
    } catch (const jinja::Failure& failure) {
      EXPECT_GT(failure.line, 0) << source << "\n" << failure.what();
      if (!one.contains("text")) {
        ++refused_by_both;
        continue;
      }
      const std::string_view what = failure.what();
      EXPECT_TRUE(std::ranges::any_of(kRefused, [&](auto words) { return what.find(words) != what.npos; }))
          << source << "\n"
          << what << "\nwhere the original writes: " << one.at("text");
      ++refused;
    }
  }
  EXPECT_GT(same, 600);
  EXPECT_GT(refused_by_both, 100);
  EXPECT_LT(refused, 25);
  RecordProperty("same", same);
  RecordProperty("refused", refused);
}

}  // namespace
}  // namespace pesc
