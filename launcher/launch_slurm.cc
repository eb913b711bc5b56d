#include "launcher/launch_slurm.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <string_view>

#include "launcher/launch_process.h"
#include "ops/core/check.h"

namespace pesc {
namespace {

constexpr size_t kMostNodes = 1000000;
constexpr auto kSqueueWithin = std::chrono::seconds(5);

std::optional<int> number_of(const std::string& text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

// "1-3" or "07" behind `prefix`, before `suffix`.
bool add_range(const std::string& range, const std::string& prefix, const std::string& suffix,
               std::vector<std::string>& names) {
  const size_t dash = range.find('-');
  const std::string first = range.substr(0, dash);
  const std::string last = dash == std::string::npos ? first : range.substr(dash + 1);
  const auto begin = number_of(first), end = number_of(last);
  if (!begin || !end || *end < *begin || static_cast<size_t>(*end - *begin) > kMostNodes - names.size())
    return false;
  for (int i = *begin; i <= *end; ++i) {
    std::string digits = std::to_string(i);
    if (digits.size() < first.size()) digits.insert(0, first.size() - digits.size(), '0');
    names.push_back(prefix + digits + suffix);
  }
  return true;
}

// One name, with at most one pair of brackets.
bool add_item(const std::string& item, std::vector<std::string>& names) {
  const size_t open = item.find('[');
  if (open == std::string::npos) {
    if (item.empty() || item.find(']') != std::string::npos) return false;
    names.push_back(item);
    return names.size() <= kMostNodes;
  }
  const size_t close = item.find(']', open);
  if (close == std::string::npos || item.find('[', close) != std::string::npos) return false;
  const std::string inside = item.substr(open + 1, close - open - 1);
  for (size_t at = 0; at <= inside.size();) {
    const size_t comma = std::min(inside.find(',', at), inside.size());
    if (!add_range(inside.substr(at, comma - at), item.substr(0, open), item.substr(close + 1), names))
      return false;
    at = comma + 1;
  }
  return true;
}

std::string name_without_domain(const std::string& name) {
  return name.substr(0, name.find('.'));
}

std::string text_of(const char* value) {
  return value == nullptr ? "" : value;
}

// "2(x3),1": the tasks of each node. Nothing where it is no such list, or not of so many nodes.
std::optional<int> tasks_of(const std::string& list, size_t nodes) {
  size_t counted = 0;
  int64_t sum = 0;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    std::string item = list.substr(begin, end - begin);
    size_t times = 1;
    if (const size_t at = item.find("(x"); at != std::string::npos && item.ends_with(')')) {
      const auto number = number_of(item.substr(at + 2, item.size() - at - 3));
      if (!number) return std::nullopt;
      times = static_cast<size_t>(*number);
      item.resize(at);
    }
    const auto tasks = number_of(item);
    if (!tasks) return std::nullopt;
    counted += times;
    sum += static_cast<int64_t>(*tasks) * static_cast<int64_t>(times);
    begin = end + 1;
  }
  if (counted != nodes || sum > (1 << 30)) return std::nullopt;
  return static_cast<int>(sum);
}

}  // namespace

std::optional<std::vector<std::string>> expand_node_list(const std::string& list) {
  std::vector<std::string> names;
  std::string item;
  int depth = 0;
  for (size_t i = 0; i <= list.size(); ++i) {
    if (i == list.size() || (list[i] == ',' && depth == 0)) {
      if (!add_item(item, names)) return std::nullopt;
      item.clear();
      continue;
    }
    depth += list[i] == '[' ? 1 : list[i] == ']' ? -1 : 0;
    item += list[i];
  }
  return names;
}

SlurmJob read_slurm_job(const Variables& variable, const std::string& host, const AskSlurm& ask) {
  const auto either = [&](const char* one, const char* other) {
    return text_of(variable(variable(one) != nullptr ? one : other));
  };
  SlurmJob job;
  const std::string id = either("SLURM_JOB_ID", "SLURM_JOBID");
  if (id.empty()) return job;
  const std::string list = either("SLURM_JOB_NODELIST", "SLURM_NODELIST");
  const auto left_over = [&](const std::string& why) {
    SlurmJob none;
    none.left_over = str_cat("SLURM_JOB_ID=", id.substr(0, 40), " (", why, ")");
    return none;
  };
  if (!number_of(id)) return left_over("it is no number");
  if (list.empty()) return left_over("SLURM_JOB_NODELIST is not set");
  if (variable("SLURM_TASKS_PER_NODE") == nullptr) return left_over("SLURM_TASKS_PER_NODE is not set");
  const auto nodes = expand_node_list(list);
  if (!nodes || nodes->empty())
    return left_over(str_cat("SLURM_JOB_NODELIST=", list.substr(0, 80), " is no list of nodes"));
  const std::string count = either("SLURM_JOB_NUM_NODES", "SLURM_NNODES");
  if (!count.empty() && number_of(count) != static_cast<int>(nodes->size())) {
    return left_over(str_cat("SLURM_JOB_NUM_NODES=", count,
                             " does not agree with SLURM_JOB_NODELIST=", list.substr(0, 80)));
  }
  const std::string per_node = text_of(variable("SLURM_TASKS_PER_NODE"));
  const std::optional<int> slots = tasks_of(per_node, nodes->size());
  if (!slots) {
    return left_over(str_cat("SLURM_TASKS_PER_NODE=", per_node.substr(0, 40),
                             " does not agree with SLURM_JOB_NODELIST=", list.substr(0, 80)));
  }
  const std::string node = text_of(variable("SLURMD_NODENAME"));
  const bool here = std::any_of(nodes->begin(), nodes->end(), [&](const std::string& n) {
    return n == node || name_without_domain(n) == name_without_domain(host);
  });
  const std::optional<std::string> state = ask(id);
  if (state && state->empty()) return left_over("Slurm knows of no such job that runs");
  // salloc's shell may be on another host than the job's nodes; then Slurm must say that the job runs.
  if (!state && !here)
    return left_over(str_cat("this host, ", host, ", is not in SLURM_JOB_NODELIST=", list.substr(0, 80)));
  job.nodes = static_cast<int>(nodes->size());
  job.slots = *slots;
  job.tasks = number_of(text_of(variable("SLURM_NTASKS"))).value_or(0);
  if (variable("SLURM_STEP_ID") != nullptr)
    job.copies = std::max(1, number_of(text_of(variable("SLURM_STEP_NUM_TASKS"))).value_or(1));
  return job;
}

std::optional<std::string> ask_squeue(const std::string& job) {
  if (!is_in_path("squeue")) return std::nullopt;
  const Answer answer = ask_program({"squeue", "--noheader", "--jobs=" + job, "--format=%T"}, kSqueueWithin);
  if (answer.status != 0) {
    if (answer.text.find("Invalid job id") != std::string::npos) return "";
    return std::nullopt;
  }
  return answer.text.substr(0, answer.text.find('\n'));
}

void forget_slurm() {
  std::vector<std::string> names;
  for (char** e = environ; *e != nullptr; ++e) {
    const std::string_view entry(*e);
    if (entry.starts_with("SLURM")) names.emplace_back(entry.substr(0, entry.find('=')));
  }
  for (const std::string& name : names) ::unsetenv(name.c_str());
}

}  // namespace pesc
