// The results of `pesc bench --scaling` as text.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace pesc {

// "7b-d64-dp2: 512.3 ms a step, 31.9k tokens/s, 0.98 of 7b-d64-1"; or why it was not run or failed.
[[nodiscard]] std::string point_line(const nlohmann::json& point);

// Tables in Markdown: the points with their efficiencies, the collectives of each, and the points without a
// result. A rate is of the bytes that a rank sends.
[[nodiscard]] std::string scaling_tables(const nlohmann::json& results);

}  // namespace pesc
