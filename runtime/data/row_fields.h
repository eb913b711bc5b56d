// The fields of rows beyond their texts: those that would change what the model sees or learns and are not
// supported, which are refused, and all others, which are counted.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace pesc {

// Why a field is refused and what to write instead ("... is not supported; ..."), to follow its name; empty
// for all others. Rows have some of them, elements of `conversation` and `messages` others.
[[nodiscard]] std::string_view refused_row_field(std::string_view name);
[[nodiscard]] std::string_view refused_element_field(std::string_view name);

// The boolean with which a field changes nothing: of "label" true, of "mask" and of those without a meaning
// of their own false; none of "enable_thinking".
[[nodiscard]] std::optional<bool> neutral_boolean(std::string_view name);
// Whether the number changes nothing: 1 for true and 0 for false, of marks such as "label" and "mask".
[[nodiscard]] bool neutral_number(std::string_view name, double value);

// Whether the field is as good as absent: null, an empty text or list, or its neutral boolean or number. Json is
// nlohmann's, ordered or not.
template <class Json>
[[nodiscard]] bool says_nothing(std::string_view name, const Json& value) {
  if (value.is_number()) return neutral_number(name, value.template get<double>());
  if (value.is_boolean()) return value.template get<bool>() == neutral_boolean(name);
  if (value.is_string()) return value.template get_ref<const std::string&>().empty();
  return value.empty();  // null, {} or []
}

// How many rows of a file have each of some fields: "inputs", "messages[].name". Bounded: of many different
// ones the first are kept by name.
class FieldCounts {
 public:
  void add(const std::string& name, int64_t rows = 1);
  void add(const FieldCounts& other);
  void remove(const std::string& name) { rows_of_.erase(name); }
  [[nodiscard]] bool empty() const { return rows_of_.empty(); }
  // "\"inputs\" (1 row), \"messages[].name\" (20 rows)"
  [[nodiscard]] std::string text() const;

 private:
  std::map<std::string, int64_t> rows_of_;
  int64_t others_ = 0;
};

struct RowFields {
  FieldCounts unused;    // nothing reads them
  FieldCounts optional;  // read, but not in every row: system, history, weight, train
};

}  // namespace pesc
