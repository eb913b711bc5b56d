#include "runtime/cpu_quota.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <vector>

namespace pesc {
namespace {

bool has_name(const std::string& names, const std::string& name) {
  std::istringstream in(names);
  for (std::string one; std::getline(in, one, ',');) {
    if (one == name) return true;
  }
  return false;
}

// Where the control groups of one version are seen: `group` of that hierarchy is at `point`.
struct Mount {
  std::string point, group;
};

// The mounts of version 1's cpu controller, or of version 2.
std::vector<Mount> mounts(const std::string& root, bool version_2) {
  std::vector<Mount> found;
  std::ifstream in(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(in, line);) {
    // 36 35 98:0 /group /mount/point options - type source super,options
    std::istringstream words(line);
    std::string id, parent, device, group, point, word, type, source, options;
    words >> id >> parent >> device >> group >> point;
    while (words >> word && word != "-") continue;
    words >> type >> source >> options;
    const bool fits = version_2 ? type == "cgroup2" : type == "cgroup" && has_name(options, "cpu");
    if (fits) found.push_back({point, group == "/" ? "" : group});
  }
  return found;
}

// The path of this process's group in that hierarchy; nothing where it has none.
bool own_group(const std::string& root, bool version_2, std::string& group) {
  std::ifstream in(root + "/proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {  // number:controllers:path
    const size_t one = line.find(':');
    const size_t two = one == std::string::npos ? one : line.find(':', one + 1);
    if (two == std::string::npos) continue;
    const std::string controllers = line.substr(one + 1, two - one - 1);
    if (version_2 ? !controllers.empty() : !has_name(controllers, "cpu")) continue;
    group = line.substr(two + 1);
    return true;
  }
  return false;
}

// CPUs of one group; 0: no bound.
double quota_in(const std::string& folder, bool version_2) {
  std::string quota;
  double period = 0;
  if (version_2) {
    std::ifstream(folder + "/cpu.max") >> quota >> period;
  } else {
    std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
    std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  }
  const double time = std::strtod(quota.c_str(), nullptr);  // "max" and "-1": none
  return time > 0 && period > 0 ? time / period : 0;
}

double quota_of(const std::string& root, bool version_2) {
  std::string group;
  if (!own_group(root, version_2, group)) return 0;
  double least = 0;
  for (const Mount& m : mounts(root, version_2)) {
    // In a container the mount shows the group itself, and the path may be told as the host sees it.
    std::string below = group == m.group || group == "/" ? "" : group;
    if (!m.group.empty() && below.starts_with(m.group + "/")) below = below.substr(m.group.size());
    for (;;) {
      const double here = quota_in(root + m.point + below, version_2);
      if (here > 0) least = least > 0 ? std::min(least, here) : here;
      if (below.empty()) break;
      below.resize(below.rfind('/') == std::string::npos ? 0 : below.rfind('/'));
    }
  }
  return least;
}

}  // namespace

double cpu_quota(const std::string& root) {
  const double one = quota_of(root, false), two = quota_of(root, true);
  return one > 0 && two > 0 ? std::min(one, two) : std::max(one, two);
}

}  // namespace pesc
