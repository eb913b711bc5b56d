#include "launcher/bench_scaling.h"

#include <regex.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "launcher/bench_scaling_tables.h"
#include "launcher/help.h"
#include "launcher/launch_checks.h"
#include "launcher/launch_process.h"
#include "launcher/standard_output.h"
#include "ops/core/check.h"
#include "ops/core/cuda.h"
#include "runtime/hf/atomic_file.h"

namespace pesc {
namespace {

constexpr int kMostScalingRanks = 8;
constexpr auto kPointLimit = std::chrono::minutes(20);
constexpr size_t kSaidLines = 6;  // of a point that failed

constexpr std::array<ScalingPoint, 20> kScalingPoints{{
    {"7b-d64-1", "7B", 64, 1, 1, 1, 1, ""},
    {"7b-d64-dp2", "7B", 64, 2, 1, 1, 2, "7b-d64-1"},
    {"7b-d64-dp4", "7B", 64, 4, 1, 1, 4, "7b-d64-1"},
    {"7b-d64-dp8", "7B", 64, 8, 1, 1, 8, "7b-d64-1"},
    {"7b-d64-ep2", "7B", 64, 2, 1, 2, 2, "7b-d64-dp2"},
    {"7b-d64-ep4", "7B", 64, 4, 1, 4, 4, "7b-d64-dp4"},
    {"7b-d64-ep8", "7B", 64, 8, 1, 8, 8, "7b-d64-dp8"},
    {"7b-d64-tp2", "7B", 64, 2, 2, 1, 2, "7b-d64-1"},
    {"7b-d64-tp4", "7B", 64, 4, 4, 1, 4, "7b-d64-1"},
    {"7b-d64-tp8", "7B", 64, 8, 8, 1, 8, "7b-d64-1"},
    {"7b-d512-dp2", "7B", 512, 2, 1, 1, 2, ""},
    {"7b-d512-ep2", "7B", 512, 2, 1, 2, 2, "7b-d512-dp2"},
    {"7b-d512-dp8", "7B", 512, 8, 1, 1, 8, "7b-d512-dp2"},
    {"7b-d512-ep8", "7B", 512, 8, 1, 8, 8, "7b-d512-dp8"},
    {"7b-d64-strong-1", "7B", 64, 1, 1, 1, 2, ""},
    {"7b-d64-strong-dp2", "7B", 64, 2, 1, 1, 2, "7b-d64-strong-1"},
    {"7b-d64-strong-dp8", "7B", 64, 8, 1, 1, 2, "7b-d64-strong-1"},
    {"70b-d64-tp2", "70B", 64, 2, 2, 1, 1, "", true},
    {"70b-d64-tp4", "70B", 64, 4, 4, 1, 1, "70b-d64-tp2", true},
    {"70b-d64-tp8", "70B", 64, 8, 8, 1, 1, "70b-d64-tp2", true},
}};

void say_scaling(const std::string& text) {
  std::fprintf(stderr, "pesc bench --scaling: %s\n", text.c_str());
}

// The ranks that can run here: one for each GPU. CPU ranks share the cores, and ranks that share a GPU it.
int ranks_here(const ExperimentConfig& config) {
  if (config.parallel.device == DeviceKind::kCpu || config.debug.share_gpu) return kMostScalingRanks;
  if (!cuda::built())
    throw UsageError(
        "parallel.device is CUDA, but this pesc was built without CUDA; set parallel.device to CPU");
  return cuda::device_count();
}

// An extended regular expression of POSIX.
class PointNames {
 public:
  explicit PointNames(const std::string& expression) {
    const int code = regcomp(&compiled_, expression.c_str(), REG_EXTENDED | REG_NOSUB);
    if (code == 0) return;
    std::array<char, 128> why{};
    (void)regerror(code, &compiled_, why.data(), why.size());
    throw UsageError(str_cat("--scaling_points: '", expression, "' is no regular expression: ", why.data()));
  }
  ~PointNames() { regfree(&compiled_); }
  PointNames(const PointNames&) = delete;
  PointNames& operator=(const PointNames&) = delete;

  [[nodiscard]] bool match(const char* name) const { return regexec(&compiled_, name, 0, nullptr, 0) == 0; }

 private:
  regex_t compiled_{};
};

std::vector<const ScalingPoint*> selected_points(const std::string& expression) {
  std::vector<const ScalingPoint*> selected;
  std::string names;
  const PointNames wanted(expression.empty() ? ".*" : expression);
  for (const ScalingPoint& point : kScalingPoints) {
    names += str_cat(names.empty() ? "" : ", ", point.name);
    if (wanted.match(point.name)) selected.push_back(&point);
  }
  if (selected.empty())
    throw UsageError(
        str_cat("--scaling_points: '", expression, "' is in the name of no point; there are ", names));
  return selected;
}

// What every point sets.
void refuse_fields_of_points(const std::vector<std::string>& overrides) {
  for (const std::string& override : overrides) {
    for (const char* field : {"parallel.tp", "parallel.ep", "moe.adapter_dim"}) {
      if (override.starts_with(str_cat(field, "=")))
        throw UsageError(str_cat("--set ", field, ": each point of --scaling has its own; leave it out, and ",
                                 "select points with --scaling_points"));
    }
  }
}

// A folder of this run under TMPDIR, removed at the end.
class ReportFolder {
 public:
  ReportFolder() {
    path_ = (std::filesystem::temp_directory_path() / "pesc-scaling-XXXXXX").string();
    if (::mkdtemp(path_.data()) == nullptr) throw IoError(path_ + ": the folder cannot be made");
  }
  ~ReportFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ReportFolder(const ReportFolder&) = delete;
  ReportFolder& operator=(const ReportFolder&) = delete;
  [[nodiscard]] std::string file(const ScalingPoint& point) const {
    return str_cat(path_, "/", point.name, ".json");
  }

 private:
  std::string path_;
};

std::vector<std::string> point_command(const CommandLine& command, const ExperimentConfig& config,
                                       const ScalingPoint& point, const std::string& report) {
  std::vector<std::string> c{"mpirun", "-np", str_cat(point.ranks), "--oversubscribe", "--bind-to", "none"};
  if (::geteuid() == 0) c.emplace_back("--allow-run-as-root");
  // One host, and no port that others could reach. NVLink multicast stays off, whatever the environment says.
  c.insert(c.end(),
           {"--mca", "btl", "self,vader", "--mca", "oob_tcp_if_include", "lo", "-x", "NCCL_NVLS_ENABLE=0"});
  c.push_back(std::filesystem::read_symlink("/proc/self/exe"));
  c.insert(c.end(), {"bench", "--config", command.config, "--steps", str_cat(command.steps), "--out", report,
                     "--shape", command.shape.empty() ? point.shape : command.shape});
  const auto set = [&c](const std::string& field, const auto& value) {
    c.insert(c.end(), {"--set", str_cat(field, "=", value)});
  };
  for (const std::string& override : command.overrides) c.insert(c.end(), {"--set", override});
  set("train.global_batch_size", config.train.micro_batch_rows() * point.batches);
  set("train.gradient_accumulation_steps", 1);
  set("parallel.tp", point.tp);
  set("parallel.ep", point.ep);
  set("moe.adapter_dim", point.adapter_dim);
  if (point.recompute) set("train.recompute_granularity", "FULL");
  return c;
}

// What the point itself said, or the last lines of all.
std::string complaint_of(const std::string& output) {
  std::vector<std::string> lines, own;
  std::istringstream in(output);
  for (std::string line; std::getline(in, line);) {
    if (line.find_first_not_of(" \t\r-") == std::string::npos) continue;
    if (line.starts_with("pesc: ")) own.push_back(line);
    lines.push_back(line);
  }
  if (!own.empty()) lines = own;
  std::string text;
  for (size_t i = lines.size() - std::min(lines.size(), kSaidLines); i < lines.size(); ++i)
    text += (text.empty() ? "" : " / ") + lines[i];
  return text;
}

nlohmann::json read_json(const std::string& path) {
  std::ifstream in(path);
  return nlohmann::json::parse(in, nullptr, false);
}

// The results of earlier calls with the same settings, and of this one.
class ScalingResults {
 public:
  ScalingResults(std::string path, nlohmann::json settings) : path_(std::move(path)) {
    all_ = {{"settings", std::move(settings)}, {"points", nlohmann::json::array()}};
    if (path_.empty() || !std::filesystem::exists(path_)) return;
    nlohmann::json before = read_json(path_);
    if (!before.is_object() || !before.contains("settings") || !before.contains("points"))
      throw UsageError(
          str_cat("--out ", path_, " is there and has no results of --scaling; name another file"));
    if (before["settings"] != all_["settings"])
      throw UsageError(
          str_cat("--out ", path_,
                  " has results of other settings (experiment, --set, --shape or --steps); name another "
                  "file, or remove it"));
    all_ = std::move(before);
  }

  [[nodiscard]] const nlohmann::json* find(const std::string& name) const {
    for (const nlohmann::json& p : all_["points"])
      if (p["name"] == name) return &p;
    return nullptr;
  }
  [[nodiscard]] bool done(const std::string& name) const {
    const nlohmann::json* point = find(name);
    return point != nullptr && (*point)["status"] == "done";
  }

  // In the order of the table.
  void put(nlohmann::json point) {
    nlohmann::json points = nlohmann::json::array();
    const std::string name = point["name"];
    for (const ScalingPoint& p : kScalingPoints) {
      const nlohmann::json* old = find(p.name);
      if (name == p.name) {
        points.push_back(point);
      } else if (old != nullptr) {
        points.push_back(*old);
      }
    }
    all_["points"] = std::move(points);
    add_efficiencies();
    if (path_.empty()) return;
    AtomicFile file(path_);
    file.write(all_.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
    file.commit();
  }
  [[nodiscard]] const nlohmann::json& all() const { return all_; }

 private:
  void add_efficiencies() {
    for (nlohmann::json& p : all_["points"]) {
      const ScalingPoint& point = *find_scaling_point(p["name"]);
      const nlohmann::json* base = find(point.against);
      if (p["status"] != "done" || base == nullptr || (*base)["status"] != "done") continue;
      p["efficiency"] = scaling_efficiency(point, p["tokens_per_second"], *find_scaling_point(point.against),
                                           (*base)["tokens_per_second"]);
    }
  }

  std::string path_;
  nlohmann::json all_;
};

nlohmann::json point_json(const ScalingPoint& point, const std::string& status) {
  return {{"name", point.name},       {"adapter_dim", point.adapter_dim},
          {"ranks", point.ranks},     {"tp", point.tp},
          {"ep", point.ep},           {"batches", point.batches},
          {"against", point.against}, {"status", status}};
}

// Runs the point; returns its exit code.
int run_point(const CommandLine& command, const ExperimentConfig& config, const ScalingPoint& point,
              const ReportFolder& folder, ScalingResults& results) {
  const std::string path = folder.file(point);
  const Answer answer = ask_program(point_command(command, config, point, path), kPointLimit);
  int code = WIFEXITED(answer.status) ? WEXITSTATUS(answer.status) : 128 + WTERMSIG(answer.status);
  nlohmann::json report = code == 0 ? read_json(path) : nlohmann::json();
  if (code == 0 && !report.is_object()) code = static_cast<int>(ExitCode::kIo);
  nlohmann::json j = point_json(point, code == 0 ? "done" : "failed");
  if (code == 0) {
    const auto tokens =
        static_cast<double>(config.train.micro_batch_rows() * point.batches * config.data.max_seq_length);
    j["tokens_per_step"] = tokens;
    j["tokens_per_second"] = tokens / report["step_seconds_median"].get<double>();
    j["report"] = std::move(report);
  } else {
    j["why"] = answer.late ? str_cat("no end within ", kPointLimit.count(), " minutes")
                           : str_cat("exit code ", code, ": ", complaint_of(answer.text));
  }
  results.put(std::move(j));
  say_scaling(point_line(*results.find(point.name)));
  return code;
}

}  // namespace

std::span<const ScalingPoint> scaling_points() {
  return kScalingPoints;
}

const ScalingPoint* find_scaling_point(const std::string& name) {
  const auto at = std::ranges::find_if(kScalingPoints, [&](const ScalingPoint& p) { return name == p.name; });
  return at == kScalingPoints.end() ? nullptr : &*at;
}

double scaling_efficiency(const ScalingPoint& point, double tokens_per_second, const ScalingPoint& against,
                          double tokens_per_second_against) {
  return tokens_per_second / point.ranks / (tokens_per_second_against / against.ranks);
}

int run_bench_scaling(const CommandLine& command) {
  if (std::getenv("OMPI_COMM_WORLD_RANK") != nullptr)
    throw UsageError("pesc bench --scaling starts mpirun itself, for each point; start it without mpirun");
  if (command.config.empty()) throw UsageError(str_cat("pesc bench needs --config FILE", see_help("bench")));
  const std::vector<const ScalingPoint*> selected = selected_points(command.scaling_points);
  refuse_fields_of_points(command.overrides);
  const ExperimentConfig config = load_experiment(command.config, command.overrides, ExperimentUse::kBench);
  check_mpirun();
  if (!command.out.empty()) check_out_file(command.out);
  const int here = ranks_here(config);
  ScalingResults results(command.out,
                         {{"experiment", config.text}, {"shape", command.shape}, {"steps", command.steps}});
  const ReportFolder folder;
  int first_failure = 0;
  for (const ScalingPoint* point : selected) {
    if (results.done(point->name)) {
      say_scaling(point_line(*results.find(point->name)) + ", of an earlier call");
    } else if (point->ranks > here) {
      nlohmann::json j = point_json(*point, "not run");
      j["why"] = str_cat("needs ", point->ranks, " GPUs; this machine has ", here);
      results.put(std::move(j));
      say_scaling(point_line(*results.find(point->name)));
    } else {
      const int code = run_point(command, config, *point, folder, results);
      if (first_failure == 0) first_failure = code;
    }
  }
  std::fputs(scaling_tables(results.all()).c_str(), stdout);
  return first_failure;
}

}  // namespace pesc
