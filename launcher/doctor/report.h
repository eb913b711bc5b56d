// What `pesc doctor` says of a machine, for people and for programs.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launcher/doctor/abilities.h"
#include "launcher/doctor/machine.h"

namespace pesc {

enum class FactState {
  kFine,
  kNote,     // worth a look; the text says why
  kMissing,  // something that some work needs
};
struct Fact {
  std::string section, name, text;
  FactState state = FactState::kFine;
  nlohmann::ordered_json data;  // for programs
};
[[nodiscard]] std::vector<Fact> facts(const BuildFacts& build, const MachineFacts& machine);

enum class DoctorColours { kNone, kTerminal };
[[nodiscard]] std::string doctor_text(const std::vector<Fact>& facts, const std::vector<Ability>& abilities,
                                      DoctorColours colours);
// {"SECTION": {"NAME": data, ...}, ..., "abilities": {"KEY": {"can": true, "missing": []}, ...}}
[[nodiscard]] nlohmann::ordered_json doctor_json(const std::vector<Fact>& facts,
                                                 const std::vector<Ability>& abilities);

}  // namespace pesc
