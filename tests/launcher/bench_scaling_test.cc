// The points of `pesc bench --scaling`, and what is measured on GPUs against the plan of a cluster.
#include "launcher/bench_scaling.h"

#include <gtest/gtest.h>
#include <regex.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <set>

#include "launcher/bench_scaling_tables.h"
#include "ops/core/check.h"
#include "runtime/cluster_plan.h"
#include "runtime/config/shapes.h"

namespace pesc {
namespace {

const std::string kExperiment = PESC_SOURCE_DIR "/configs/experiments/bench-scaling.textproto";

// The experiment with which a point is run, as bench_scaling.cc overrides it.
ExperimentConfig experiment_of(const ScalingPoint& point) {
  const int64_t rows = load_experiment(kExperiment, {}, ExperimentUse::kBench).train.micro_batch_rows();
  std::vector<std::string> set{str_cat("train.global_batch_size=", rows * point.batches),
                               str_cat("parallel.tp=", point.tp), str_cat("parallel.ep=", point.ep),
                               str_cat("moe.adapter_dim=", point.adapter_dim)};
  if (point.recompute) set.emplace_back("train.recompute_granularity=FULL");
  return load_experiment(kExperiment, set, ExperimentUse::kBench);
}

TEST(BenchScaling, PointsAreAtMostTwentyLayoutsThatFitAnH200) {
  EXPECT_LE(scaling_points().size(), 20U);
  std::set<std::string> names;
  for (const ScalingPoint& point : scaling_points()) {
    SCOPED_TRACE(point.name);
    EXPECT_TRUE(point.against[0] == '\0' || names.contains(point.against)) << "it stands behind its baseline";
    EXPECT_TRUE(names.insert(point.name).second);
    EXPECT_EQ(find_scaling_point(point.name), &point);
    const ModelConfig model = load_shape(point.shape);
    const ExperimentConfig config = experiment_of(point);
    EXPECT_NO_THROW(check_against_model(config, model, point.ranks));
    EXPECT_EQ(config.train.micro_batch_rows() % (point.ranks / point.tp), 0) << "all ranks have as many rows";
    EXPECT_LT(needed_bytes(config, model, point.ranks, training_use(config), MemoryRoom::Against::kAll),
              gpu_rates("H200-141", DType::kBF16).device_memory);
    const std::string name = point.name;
    const bool strong = name.find("strong") != std::string::npos || name.starts_with("70b");
    if (!strong) {
      EXPECT_EQ(point.batches, point.ranks) << "weak: tokens a rank stay the same";
    }
    // Of a point and its baseline all but the layout is the same.
    const ScalingPoint* base = find_scaling_point(point.against);
    if (base != nullptr) {
      EXPECT_STREQ(base->shape, point.shape);
      EXPECT_EQ(base->adapter_dim, point.adapter_dim);
      EXPECT_EQ(base->recompute, point.recompute);
      if (strong) {
        EXPECT_EQ(base->batches, point.batches);
      }
      if (point.ep > 1) {
        EXPECT_EQ(base->ranks, point.ranks) << "ep is compared with replicated adapters";
      }
    }
  }
  EXPECT_EQ(find_scaling_point("7b"), nullptr);
}

TEST(BenchScaling, EfficiencyIsTokensOfARank) {
  const ScalingPoint& one = *find_scaling_point("7b-d64-1");
  const ScalingPoint& eight = *find_scaling_point("7b-d64-dp8");
  EXPECT_DOUBLE_EQ(scaling_efficiency(eight, 80, one, 10), 1);
  EXPECT_DOUBLE_EQ(scaling_efficiency(eight, 60, one, 10), 0.75);
  EXPECT_DOUBLE_EQ(scaling_efficiency(*find_scaling_point("7b-d64-ep8"), 57, eight, 60), 0.95);
}

TEST(BenchScaling, TablesSayWhatRanAndWhyTheRestDidNot) {
  const nlohmann::json report = {{"step_seconds_median", 0.5},
                                 {"phase_seconds_rank0", {{"GEMM", 0.45}, {"exposed communication", 0.15}}},
                                 {"communication",
                                  {{{"name", "gradient reduction"},
                                    {"sent_bytes", 3e8},
                                    {"least_bytes", 2e8},
                                    {"seconds", 0.1},
                                    {"library_seconds", 0.08}},
                                   {{"name", "token exchange"},
                                    {"sent_bytes", 0.0},
                                    {"least_bytes", 0.0},
                                    {"seconds", 0.0},
                                    {"library_seconds", 0.0}}}}};
  const nlohmann::json done = {
      {"name", "7b-d64-dp2"},         {"ranks", 2},       {"tp", 1},           {"ep", 1},
      {"against", "7b-d64-1"},        {"status", "done"}, {"efficiency", 0.9}, {"tokens_per_step", 16384.0},
      {"tokens_per_second", 32768.0}, {"report", report}};
  const nlohmann::json not_run = {
      {"name", "7b-d64-dp8"}, {"status", "not run"}, {"why", "needs 8 GPUs; this machine has 2"}};
  EXPECT_EQ(point_line(done), "7b-d64-dp2: 500.0 ms a step, 32.77k tokens/s, 0.900 of 7b-d64-1");
  EXPECT_EQ(point_line(not_run), "7b-d64-dp8: not run: needs 8 GPUs; this machine has 2");
  const std::string text = scaling_tables({{"points", {done, not_run}}});
  for (const char* line :
       {"| 7b-d64-dp2 | 2 | 1 | 1 | 8192 | 500.0 | 32.8 | 0.900 | 7b-d64-1 | 150.00 | 0.250 |\n",
        "| 7b-d64-dp2 | gradient reduction | 300.000 | 1.500 | 100.00 | 3.00 | 3.75 | 0.80 |\n",
        "| 7b-d64-dp8 | not run | needs 8 GPUs; this machine has 2 |\n"})
    EXPECT_NE(text.find(line), std::string::npos) << line << text;
  EXPECT_EQ(text.find("token exchange"), std::string::npos) << "nothing was sent";
}

// ---- Against what was measured: the tables of tests/bench, of one host with H200s.

struct Measured {
  std::string what;
  ExperimentConfig config;
  std::string shape;
  int ranks = 1;
  double ms = 0;
};

double planned_ms(const Measured& m) {
  const Cluster cluster{.hosts = 1,
                        .gpus_per_host = m.ranks,
                        .rates = gpu_rates("H200-141", DType::kBF16),
                        .network = 50e9,
                        .gpu_mtbf = 3600 * 5e4,
                        .storage = 1e9};
  ModelConfig model = load_shape(m.shape);
  model.num_hidden_layers = m.config.model.shape.num_hidden_layers > 0
                                ? m.config.model.shape.num_hidden_layers
                                : model.num_hidden_layers;
  const ClusterPlan plan = plan_cluster(m.config, model, cluster, {cluster.rates.device_memory});
  for (const ClusterLayout& l : plan.layouts)
    if (l.tp == m.config.parallel.tp && l.ep == m.config.parallel.ep) return 1e3 * l.seconds;
  return 0;
}

std::vector<std::string> lines_of_pages() {
  std::vector<std::string> lines;
  for (const auto& entry : std::filesystem::directory_iterator(PESC_SOURCE_DIR "/tests/bench")) {
    if (!entry.path().filename().string().starts_with("h200")) continue;
    std::ifstream in(entry.path());
    for (std::string line; std::getline(in, line);) lines.push_back(line);
  }
  return lines;
}

// What the groups of an extended regular expression of POSIX found; nothing where it does not fit.
std::vector<std::string> groups(const std::string& line, const std::string& expression) {
  regex_t compiled;
  PESC_CHECK(regcomp(&compiled, expression.c_str(), REG_EXTENDED) == 0, expression);
  std::array<regmatch_t, 4> found{};
  std::vector<std::string> out;
  if (regexec(&compiled, line.c_str(), found.size(), found.data(), 0) == 0) {
    for (size_t i = 1; i < found.size() && found[i].rm_so >= 0; ++i)
      out.push_back(line.substr(static_cast<size_t>(found[i].rm_so),
                                static_cast<size_t>(found[i].rm_eo - found[i].rm_so)));
  }
  regfree(&compiled);
  return out;
}

// "| without the comm stream | 130, exposed 16 | 134, exposed 18 |": eight layers of 7B on two GPUs, ep 2, four rows a
// rank, in one chunk and in two.
std::vector<Measured> measured_overlap(const std::vector<std::string>& lines) {
  std::vector<Measured> all;
  const std::string row =
      "^\\| (without the|with it) .*\\| ([0-9]+), exposed [0-9]+ \\| ([0-9]+), exposed [0-9]+ \\|$";
  for (const std::string& line : lines) {
    const std::vector<std::string> found = groups(line, row);
    if (found.empty()) continue;
    for (const int chunks : {1, 2}) {
      const bool overlap = found[0] == "with it";
      all.push_back(
          {str_cat("ep 2, overlap ", overlap, ", chunks ", chunks),
           load_experiment(kExperiment,
                           {"model.shape.num_hidden_layers=8", "train.global_batch_size=8", "parallel.ep=2",
                            str_cat("parallel.overlap_comm=", overlap ? "true" : "false"),
                            str_cat("parallel.dispatch_chunks=", chunks)},
                           ExperimentUse::kBench),
           "7B", 2, std::stod(found[static_cast<size_t>(chunks)])});
    }
  }
  return all;
}

// Rows of scaling_tables: "| 7b-d64-dp2 | 2 | 1 | 1 | 8192 | 512.3 | ...".
std::vector<Measured> measured_points(const std::vector<std::string>& lines) {
  std::vector<Measured> all;
  const std::string row = "^\\| ([^ ]+) \\| [0-9]+ \\| [0-9]+ \\| [0-9]+ \\| [0-9]+ \\| ([0-9.]+) \\| ";
  for (const std::string& line : lines) {
    const std::vector<std::string> found = groups(line, row);
    if (found.empty()) continue;
    const ScalingPoint* point = find_scaling_point(found[0]);
    if (point == nullptr) continue;
    Measured m{point->name, experiment_of(*point), point->shape, point->ranks, std::stod(found[1])};
    m.config.model.shape.num_hidden_layers = 0;  // those of the shape
    all.push_back(std::move(m));
  }
  return all;
}

TEST(MeasuredScaling, IsPlannedWithinFifteenPerCent) {
  const std::vector<std::string> lines = lines_of_pages();
  std::vector<Measured> all = measured_overlap(lines);
  ASSERT_EQ(all.size(), 4U) << "the table of tests/bench/h200.md has moved";
  for (Measured& m : measured_points(lines)) all.push_back(std::move(m));
  for (const Measured& m : all) {
    const double ms = planned_ms(m);
    std::printf("%-28s %8.1f ms planned, %8.1f measured\n", m.what.c_str(), ms, m.ms);
    EXPECT_NEAR(ms / m.ms, 1, 0.15) << m.what;
  }
}

}  // namespace
}  // namespace pesc
