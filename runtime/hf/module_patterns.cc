#define PCRE2_CODE_UNIT_WIDTH 8
#include "runtime/hf/module_patterns.h"

#include <pcre2.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "ops/core/check.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr std::string_view kRegular = "re:";
constexpr uint32_t kMostMatchSteps = 1'000'000;

}  // namespace

struct ModulePatterns::Expression {
  struct FreeCode {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  };
  std::string text;
  std::unique_ptr<pcre2_code, FreeCode> code;
};

ModulePatterns::ModulePatterns(const std::vector<std::string>& entries, const std::string& where)
    : where_(where) {
  for (const std::string& entry : entries) {
    const bool marked = entry.starts_with(kRegular);
    if (!marked && entry.find_first_of("*+?[(|^$\\") == std::string::npos) {
      names_.push_back(entry);
      continue;
    }
    const std::string text = marked ? entry.substr(kRegular.size()) : entry;
    int error = 0;
    size_t at = 0;
    std::unique_ptr<pcre2_code, Expression::FreeCode> code(pcre2_compile(
        reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), PCRE2_ANCHORED, &error, &at, nullptr));
    if (code == nullptr) {
      std::array<unsigned char, 128> why{};
      (void)pcre2_get_error_message(error, why.data(), why.size());
      throw DataError(str_cat(where, ": ", in_quotes(entry), " is no regular expression: at its character ",
                              at, ", ", reinterpret_cast<const char*>(why.data())));
    }
    expressions_.push_back({entry, std::move(code)});
  }
}

ModulePatterns::~ModulePatterns() = default;

bool ModulePatterns::match(const std::string& module) const {
  const std::string dotted = "." + module + ".";
  if (std::ranges::any_of(names_, [&](const std::string& name) {
        return !name.empty() && dotted.find("." + name + ".") != std::string::npos;
      }))
    return true;
  for (const Expression& e : expressions_) {
    const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
        pcre2_match_data_create(1, nullptr), pcre2_match_data_free);
    const std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> limits(
        pcre2_match_context_create(nullptr), pcre2_match_context_free);
    pcre2_set_match_limit(limits.get(), kMostMatchSteps);
    const int found = pcre2_match(e.code.get(), reinterpret_cast<PCRE2_SPTR>(module.data()), module.size(), 0,
                                  0, data.get(), limits.get());
    if (found >= 0) return true;
    if (found != PCRE2_ERROR_NOMATCH)
      throw DataError(str_cat(where_, ": the expression ", in_quotes(e.text), " takes too many steps on ",
                              in_quotes(module)));
  }
  return false;
}

}  // namespace pesc
