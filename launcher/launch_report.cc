#include "launcher/launch_report.h"

#include <signal.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <set>
#include <string_view>

#include "launcher/launch_process.h"
#include "ops/core/check.h"
#include "runtime/checkpoint/run_identity.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr size_t kRanksNamed = 16;  // more are counted
constexpr size_t kMostOfSetting = 200;
constexpr const char* kNoticed = "noticed that process rank ";

const std::deque<std::string>& lines_of(const JobEnd& end, int rank) {
  static const std::deque<std::string> kNone;
  const auto found = end.last_lines.find(rank);
  return found == end.last_lines.end() ? kNone : found->second;
}

// Ranks that said so themselves, and those of which mpirun knows: the only word on one that a signal ended.
std::set<int> dead_ranks(const JobEnd& end) {
  std::set<int> dead;
  for (const Death& d : end.deaths) dead.insert(d.rank);
  for (const std::string& line : lines_of(end, kMpirunItself)) {
    int rank = 0;
    const size_t at = line.find(kNoticed);
    if (at != std::string::npos && std::sscanf(line.c_str() + at, "noticed that process rank %d", &rank) == 1)
      dead.insert(rank);
  }
  return dead;
}

std::string last_lines(const JobEnd& end, int rank, const std::string& whose) {
  const std::deque<std::string>& lines = lines_of(end, rank);
  std::string text;
  if (!lines.empty()) text += str_cat("  last lines of ", whose, ":\n");
  for (const std::string& line : lines) text += "    | " + line + "\n";
  return text;
}

}  // namespace

std::string report_of(const JobEnd& end, uint64_t launch_id) {
  std::string text =
      str_cat("pesc launch: launch ", launch_id, " failed after ", std::round(end.seconds * 10) / 10,
              " s: ", end.status, end.hang.empty() ? "" : ": " + end.hang, "\n");
  for (const std::string& line : lines_of(end, kMpirunItself)) {
    if (line.find(kNoticed) != std::string::npos) text += "  " + line + "\n";
  }
  for (const Death& d : end.deaths) {
    text += str_cat("  rank ", d.rank, " on ", d.host, ", pid ", d.pid, ", section ", section_name(d.section),
                    " after step ", d.step, ", exit code ", d.exit_code, ": ", d.error, "\n");
  }
  size_t others = 0;
  for (const Heartbeat& h : end.heartbeats) {
    const bool told =
        std::any_of(end.deaths.begin(), end.deaths.end(), [&](const Death& d) { return d.rank == h.rank; });
    if (told || ++others > kRanksNamed) continue;
    text += str_cat("  rank ", h.rank, " on ", h.host, ", pid ", h.pid, ": last seen in section ",
                    section_name(h.section), " after step ", h.step, "\n");
  }
  if (others > kRanksNamed) text += str_cat("  and ", others - kRanksNamed, " more\n");
  const std::set<int> dead = dead_ranks(end);
  size_t shown = 0;
  for (const int rank : dead) {
    if (++shown <= kRanksNamed) text += last_lines(end, rank, str_cat("rank ", rank));
  }
  if (dead.empty()) {  // nobody knows who began
    for (const auto& [rank, lines] : end.last_lines) {
      if (rank != kMpirunItself && ++shown <= kRanksNamed)
        text += last_lines(end, rank, str_cat("rank ", rank));
    }
  }
  return text + last_lines(end, kMpirunItself, "mpirun");
}

std::set<std::string> hosts_of_the_dead(const JobEnd& end) {
  std::set<std::string> hosts;
  for (const int rank : dead_ranks(end)) {
    std::string host;
    for (const Heartbeat& h : end.heartbeats) {
      if (h.rank == rank) host = h.host;
    }
    for (const Death& d : end.deaths) {
      if (d.rank == rank) host = d.host;
    }
    hosts.insert(host);
  }
  return hosts;
}

bool ranks_began(const JobEnd& end) {
  const bool crashed = end.code == 128 + SIGSEGV || end.code == 128 + SIGABRT;  // perhaps mpirun itself
  if (end.code == 0 || (end.code > 128 && !crashed)) return true;  // a signal, or a daemon that was lost
  if (!end.heartbeats.empty() || !dead_ranks(end).empty()) return true;
  for (const auto& [rank, lines] : end.last_lines) {
    if (rank != kMpirunItself) return true;
    for (const std::string& line : lines) {
      if (line.find("Process name: [[") != std::string::npos) return true;  // ended by itself, without a word
    }
  }
  return false;
}

std::string advice_on_mpi(const char* const* environment) {
  constexpr std::string_view kPrefix = "OMPI_MCA_";
  std::string set;
  for (; *environment != nullptr; ++environment) {
    const std::string_view entry(*environment);
    if (!entry.starts_with(kPrefix)) continue;
    set += (set.empty() ? "" : ", ") + printable(std::string(entry.substr(0, kMostOfSetting)));
  }
  if (set.empty()) {
    return "no OMPI_MCA_ variable is set here; settings may also stand in ~/.openmpi/mca-params.conf and "
           "Open "
           "MPI's openmpi-mca-params.conf";
  }
  return str_cat("the environment gives Open MPI these settings: ", set,
                 "; unset what this machine does not have (ompi_info lists the components that it has)");
}

double seconds_that_count(const std::string& metrics, int64_t first_step) {
  std::map<int64_t, double> steps;
  std::ifstream in(metrics);
  for (std::string line; std::getline(in, line);) {
    const nlohmann::json j = nlohmann::json::parse(line, nullptr, false);
    if (!j.is_object() || !j.contains("step") || !j["step"].is_number_integer()) continue;
    const auto step = j["step"].get<int64_t>();
    if (j.value("kind", "") == "launch") steps.erase(steps.upper_bound(step), steps.end());
    if (j.value("kind", "") == "step") steps[step] = j.value("seconds", 0.0);
  }
  double sum = 0;
  for (auto at = steps.upper_bound(first_step); at != steps.end(); ++at) sum += at->second;
  return sum;
}

bool has_begun(const std::string& metrics, uint64_t launch_id) {
  std::ifstream in(metrics);
  for (std::string line; std::getline(in, line);) {
    if (line.find("\"kind\":\"launch\"") == std::string::npos) continue;
    const nlohmann::json j = nlohmann::json::parse(line, nullptr, false);
    if (j.is_object() && j.value("kind", "") == "launch" && j.value("launch", uint64_t{0}) == launch_id)
      return true;
  }
  return false;
}

int64_t last_step(const JobEnd& end) {
  int64_t last = 0;
  for (const Heartbeat& h : end.heartbeats) last = std::max(last, h.step);
  return last;
}

nlohmann::json record_of(const JobEnd& end, const Placement& placement, const std::vector<Host>& hosts,
                         uint64_t launch_id, int64_t newest_checkpoint) {
  nlohmann::json deaths = nlohmann::json::array();
  for (const Death& d : end.deaths) {
    deaths.push_back({{"rank", d.rank},
                      {"host", d.host},
                      {"pid", d.pid},
                      {"section", section_name(d.section)},
                      {"step", d.step},
                      {"exit_code", d.exit_code},
                      {"error", d.error}});
  }
  nlohmann::json used = nlohmann::json::array();
  for (const Host& h : placement.hosts) used.push_back(h.name);
  nlohmann::json unreachable = nlohmann::json::object();
  nlohmann::json suspect = nlohmann::json::object();
  for (const Host& h : hosts) {
    if (!h.unreachable.empty()) unreachable[h.name] = h.unreachable;
    if (!h.suspect.empty()) suspect[h.name] = h.suspect;
  }
  nlohmann::json lines = nlohmann::json::object();
  for (const auto& [rank, last] : end.last_lines)
    lines[rank == kMpirunItself ? "mpirun" : str_cat("rank ", rank)] = last;
  return {{"launch", launch_id},
          {"ranks", placement.ranks},
          {"ep", placement.ep},
          {"hosts", used},
          {"left_out", placement.left_out},
          {"ended_unix", end.ended_unix},
          {"seconds", end.seconds},
          {"first_step_after_seconds", end.first_step_at},
          {"last_progress_after_seconds", end.progress_at},
          {"noticed_after_seconds", end.noticed_at},
          {"last_step", last_step(end)},
          {"exit_code", end.code},
          {"status", end.status},
          {"hang", end.hang},
          {"unreachable_hosts", unreachable},
          {"suspect_hosts", suspect},
          {"newest_checkpoint", newest_checkpoint},
          {"deaths", deaths},
          {"last_lines", lines}};
}

}  // namespace pesc
