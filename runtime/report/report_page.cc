#include "runtime/report/report_page.h"

#include <filesystem>
#include <map>
#include <set>

#include "ops/core/check.h"
#include "runtime/config/experiment.h"
#include "runtime/filesystem/filesystem.h"
#include "runtime/hf/atomic_file.h"
#include "runtime/metrics/unix_time.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

// `text` with each place replaced, which stands there once.
std::string with_asset(std::string_view text, std::string_view place, std::string_view with) {
  const size_t at = text.find(place);
  PESC_CHECK(at != std::string_view::npos, "report.html has no ", place);
  return str_cat(text.substr(0, at), with, text.substr(at + place.size()));
}

// JSON that may stand in a script element: nothing in it ends the element or opens a comment.
std::string in_script(const nlohmann::json& j) {
  std::string out;
  for (const char c : j.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)) {
    if (c == '<') {
      out += "\\u003c";
    } else {
      out += c;
    }
  }
  return out;
}

// What differs from the first run's configuration.
nlohmann::json differences(const RunData& first, const RunData& run) {
  nlohmann::json out = nlohmann::json::array();
  if (first.config.empty() || run.config.empty()) return out;
  try {
    for (const std::string& line : experiment_differences(first.config, run.config))
      out.push_back(printable(line, 500));
  } catch (const Error&) {  // of another version; read_run has noted it
  }
  return out;
}

// Two runs of one name are told apart by their paths.
void tell_apart(std::vector<RunData>& runs) {
  std::map<std::string, int> times;
  for (const RunData& run : runs) ++times[run.label];
  for (RunData& run : runs) {
    if (times[run.label] > 1) run.label = printable(run.path);
  }
}

void check_target(const std::string& out) {
  if (!posix_filesystem().exists(out)) return;
  throw UsageError(
      str_cat("--out ", in_quotes(out),
              ": is there already, and nothing is overwritten; name another file, or remove it"));
}

}  // namespace

std::string report_page(const std::vector<RunData>& runs) {
  nlohmann::json data = {{"made", unix_seconds()}};
  for (const ReportedCurve& c : kReportedCurves)
    data["curves"].push_back({{"key", c.key}, {"title", c.title}, {"unit", c.unit}});
  for (const RunData& run : runs) {
    nlohmann::json j = page_data(run, 1.0 / static_cast<double>(runs.size()));
    if (&run != &runs.front()) j["differences"] = differences(runs.front(), run);
    data["runs"].push_back(std::move(j));
  }
  const ReportAssets assets = report_assets();
  const std::string styled = with_asset(assets.html, "/* report.css */", assets.css);
  const std::string with_charts = with_asset(styled, "/* charts.js */", assets.charts);
  const std::string scripted = with_asset(with_charts, "/* report.js */", assets.script);
  return with_asset(scripted, "\"the data\"", in_script(data));
}

int64_t write_report(const std::vector<std::string>& run_dirs, const std::string& out) {
  check_target(out);
  std::set<std::string> seen;
  for (const std::string& run : run_dirs) {
    std::error_code error;
    if (!seen.insert(std::filesystem::weakly_canonical(run, error).string()).second)
      throw UsageError(str_cat("--run ", in_quotes(run), ": is given twice; leave one out"));
  }
  std::vector<RunData> runs;
  for (const std::string& run : run_dirs)
    runs.push_back(read_run(run, 1.0 / static_cast<double>(run_dirs.size())));
  tell_apart(runs);
  const std::string page = report_page(runs);
  AtomicFile file(out);
  file.write(page);
  check_target(out);  // it may have come meanwhile
  file.commit();
  return static_cast<int64_t>(page.size());
}

}  // namespace pesc
