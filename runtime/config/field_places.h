// Where the fields of an experiment were set, so that a message about a value can say where to change it.
#pragma once

#include <map>
#include <string>

namespace pesc {

struct FieldPlaces {
  std::string file;  // of the whole experiment
  std::map<std::string, std::string>
      of_field;  // "train.max_steps" -> "tune.textproto:12" or "--set train.max_steps=0"

  // "tune.textproto:12: ": where `field` was set, else the group that it belongs to, else the file; empty
  // where nothing is known.
  [[nodiscard]] std::string prefix(std::string field) const {
    while (!field.empty()) {
      if (const auto found = of_field.find(field); found != of_field.end()) return found->second + ": ";
      const size_t cut = field.find_last_of(".[");
      field.resize(cut == std::string::npos ? 0 : cut);
    }
    return file.empty() ? "" : file + ": ";
  }
};

}  // namespace pesc
