// The page of `pesc report`: one file of HTML with all that it shows, made of the assets of this folder.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/report/run_data.h"

namespace pesc {

// report.html, report.css, charts.js and report.js, which CMake puts into the program.
struct ReportAssets {
  std::string_view html, css, charts, script;
};
[[nodiscard]] ReportAssets report_assets();

// What the page's script is given of a run. `share` as for read_run.
[[nodiscard]] nlohmann::json page_data(const RunData& run, double share);

// The whole page. Fields of the configurations that differ from the first run's are shown beside each other.
[[nodiscard]] std::string report_page(const std::vector<RunData>& runs);

// Reads the runs, writes the page beside `out` under a temporary name and renames it. Returns its bytes. Throws
// UsageError where `out` is there already or a run directory is none, DataError, IoError; then nothing is left.
int64_t write_report(const std::vector<std::string>& run_dirs, const std::string& out);

}  // namespace pesc
