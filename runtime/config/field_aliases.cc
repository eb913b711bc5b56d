#include "runtime/config/field_aliases.h"

#include <algorithm>
#include <cctype>

#include "ops/core/check.h"
#include "runtime/config/field_alias_table.h"

namespace pesc {
namespace {

template <class Table>
const aliases::Field* find_in(const Table& table, std::string_view message, std::string_view name) {
  const auto* found = std::find_if(std::begin(table), std::end(table), [&](const aliases::Field& f) {
    return f.name == name && (f.message == message || f.message.empty());
  });
  return found == std::end(table) ? nullptr : found;
}

std::string answer(const aliases::Field& f) {
  if (f.path.empty()) return str_cat("leave it out: ", f.advice);
  return str_cat("the name is ", f.path, f.advice.empty() ? "" : "; ", f.advice);
}

}  // namespace

std::string field_alias_answer(std::string_view message, std::string_view name) {
  std::string plain(name);
  std::replace(plain.begin(), plain.end(), '-', '_');
  const aliases::Field* found = find_in(aliases::kOlder, message, plain);
  if (found == nullptr) found = find_in(aliases::kForeign, message, plain);
  return found == nullptr ? "" : answer(*found);
}

std::string value_alias_answer(std::string_view field, std::string_view value) {
  std::string upper(value);
  for (char& c : upper) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  for (const aliases::Value& v : aliases::kValues) {
    if (v.field == field && v.value == upper)
      return str_cat("the value is ", v.right, v.advice.empty() ? "" : "; ", v.advice);
  }
  return "";
}

std::string_view name_since_renaming(std::string_view message, std::string_view name) {
  const aliases::Field* found = find_in(aliases::kOlder, message, name);
  return found == nullptr ? std::string_view() : found->path;
}

}  // namespace pesc
