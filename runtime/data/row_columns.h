// The names that a file has for the fields of its rows, where they are others than ours (data.train[].columns).
#pragma once

#include <algorithm>
#include <map>
#include <string>
#include <string_view>

namespace pesc {

using ColumnNames = std::map<std::string, std::string>;  // from the file's name to ours

struct RowColumns {
  ColumnNames names{};
  std::string field{};  // of the experiment, for messages: "data.train[0].columns"

  // Our name of a field; empty where it is read as none, another one having been given its name.
  [[nodiscard]] std::string_view ours(const std::string& theirs) const {
    if (const auto found = names.find(theirs); found != names.end()) return found->second;
    return is_given(theirs) ? std::string_view() : std::string_view(theirs);
  }
  // The file's name of a field of ours.
  [[nodiscard]] std::string theirs(std::string_view ours) const {
    const auto found = std::ranges::find_if(names, [&](const auto& n) { return n.second == ours; });
    return found == names.end() ? std::string(ours) : found->first;
  }

 private:
  [[nodiscard]] bool is_given(std::string_view ours) const {
    return std::ranges::any_of(names, [&](const auto& n) { return n.second == ours; });
  }
};

}  // namespace pesc
