// metrics.jsonl across restarts, and what a step's record holds.
#include "runtime/metrics.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "ops/core/check.h"

namespace pesc {
namespace {

class Metrics : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / str_cat("pesc-metrics-", getpid());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  [[nodiscard]] std::string path() const { return (folder_ / "metrics.jsonl").string(); }
  [[nodiscard]] std::vector<nlohmann::json> records() const {
    std::vector<nlohmann::json> all;
    std::ifstream in(path());
    for (std::string line; std::getline(in, line);) all.push_back(nlohmann::json::parse(line));
    return all;
  }
  static nlohmann::json step(int64_t n, double loss) {
    StepMetrics m;
    m.step = n;
    m.loss = loss;
    return to_json(m);
  }
  std::filesystem::path folder_;
};

TEST_F(Metrics, ANewStartKeepsWhatWasMeasuredUnderTheLaunchThatMeasuredIt) {
  {
    MetricsLog log(path(), 1);
    for (int n = 1; n <= 5; ++n) log.write(step(n, n));
  }
  MetricsLog log(path(), 2);
  log.write({{"kind", "launch"}, {"step", 3}});
  log.write(step(4, 40));
  const auto all = records();
  ASSERT_EQ(all.size(), 7U);
  for (size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i]["launch"], i < 5 ? 1 : 2);
  EXPECT_EQ(all[4]["loss"], 5.0);
  EXPECT_EQ(all[6]["step"], 4);
  EXPECT_EQ(all[6]["loss"], 40.0);
}

TEST_F(Metrics, AnEvaluationCountsUntilItsStepIsComputedAgain) {
  EXPECT_EQ(eval_loss_of_step(path(), 4), std::nullopt);  // no file
  const auto evaluated = [](int64_t n) {
    return nlohmann::json{{"kind", "eval"}, {"step", n}, {"eval_loss_total", 0.1 * static_cast<double>(n)}};
  };
  {
    MetricsLog log(path(), 1);
    log.write({{"kind", "launch"}, {"step", 0}});
    log.write(step(2, 1));
    log.write(evaluated(2));
    log.write(step(4, 1));
    EXPECT_EQ(eval_loss_of_step(path(), 4), std::nullopt);
    log.write(evaluated(4));
  }
  EXPECT_EQ(eval_loss_of_step(path(), 2), 0.1 * 2);
  EXPECT_EQ(eval_loss_of_step(path(), 4), 0.1 * 4);
  MetricsLog log(path(), 2);
  log.write({{"kind", "launch"}, {"step", 4}});  // goes on behind it
  EXPECT_EQ(eval_loss_of_step(path(), 4), 0.1 * 4);
  log.write({{"kind", "launch"}, {"step", 3}});
  EXPECT_EQ(eval_loss_of_step(path(), 2), 0.1 * 2);
  EXPECT_EQ(eval_loss_of_step(path(), 4), std::nullopt);
  std::ofstream(path(), std::ios::app) << "torn";
  EXPECT_EQ(eval_loss_of_step(path(), 4), std::nullopt);
}

TEST_F(Metrics, ALineInWhichTheProcessDiedIsTakenAway) {
  const std::string whole = "{\"step\": 1, \"launch\": 1}\n";
  for (const std::string& torn :
       {std::string("{\"step\": 6, \"lo"), std::string(), std::string(10000, 'x')}) {
    for (const std::string& before : {whole, whole + whole, std::string()}) {
      std::ofstream(path(), std::ios::trunc) << before << torn;
      { MetricsLog(path(), 2).write({{"step", 2}}); }
      const auto all = records();  // each line parses
      EXPECT_EQ(all.size(), before.size() / whole.size() + 1) << torn.size();
      EXPECT_EQ(all.back()["launch"], 2);
    }
  }
}

// The file may not grow beyond 400 bytes, as on a full disk: whole lines stay, the rest follows when there is
// room.
TEST_F(Metrics, RecordsWaitForRoom) {
  MetricsLog log(path(), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  const rlimit small{400, old.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  for (int n = 1; n <= 20; ++n)
    log.write({{"step", n}, {"text", "forty characters, so that it fills quickly"}});
  const size_t whole = records().size();
  const auto bytes = std::filesystem::file_size(path());
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_GT(whole, 2U);
  EXPECT_LT(whole, 10U);
  EXPECT_LE(bytes, 400U);
  log.write({{"step", 21}});
  const auto all = records();
  ASSERT_EQ(all.size(), 21U);
  for (int n = 1; n <= 21; ++n) EXPECT_EQ(all[static_cast<size_t>(n - 1)]["step"], n);
}

TEST_F(Metrics, AFolderThatCannotBeWrittenIsAnIoError) {
  EXPECT_THROW(MetricsLog("/proc/none/metrics.jsonl", 0), IoError);
}

TEST(StepMetrics, RecordAndProgressLineSayTheSame) {
  StepMetrics m;
  m.step = 12;
  m.steps = 300;
  m.loss = 2.5;
  m.tokens = 4000;
  m.seconds = 0.5;
  m.sol_seconds = 0.2;
  m.expert_share = {{0.25, 0.75}};
  m.fill_rate = 0.75;
  const nlohmann::json j = to_json(m);
  EXPECT_EQ(j["fill_rate"], 0.75);
  EXPECT_EQ(j["tokens_per_second"], 8000.0);
  EXPECT_EQ(j["sol_fraction"], 0.4);
  EXPECT_EQ(j["expert_share"][0][1], 0.75);
  const std::string line = progress_line(m, 0.5);
  EXPECT_NE(line.find("step 12/300"), std::string::npos) << line;
  EXPECT_NE(line.find("8.0k tok/s"), std::string::npos) << line;
  EXPECT_NE(line.find("40% SOL"), std::string::npos) << line;
  EXPECT_NE(line.find("2:24 left"), std::string::npos) << line;  // 288 steps of half a second
}

TEST(StepMetrics, MfuIsSaidWhereThePeakIsKnown) {
  StepMetrics m;
  m.seconds = 0.5;
  EXPECT_FALSE(to_json(m).contains("mfu"));
  EXPECT_EQ(progress_line(m, 0.5).find("MFU"), std::string::npos);
  m.peak_seconds = 0.125;
  EXPECT_EQ(to_json(m)["mfu"], 0.25);
  EXPECT_NE(progress_line(m, 0.5).find("25% MFU"), std::string::npos) << progress_line(m, 0.5);
  EXPECT_EQ(mfu_text(0.25), ", MFU 0.25");
  EXPECT_EQ(mfu_text(0), "");
}

}  // namespace
}  // namespace pesc
