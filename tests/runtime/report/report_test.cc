// The page of `pesc report`: curves of any length in few points, what a run directory tells, and bad input.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>

#include "ops/core/check.h"
#include "runtime/report/expert_history.h"
#include "runtime/report/min_max_curve.h"
#include "runtime/report/report_page.h"
#include "tests/runtime/hf/temp_folder.h"

namespace pesc::testing {
namespace {

TEST(MinMaxCurve, KeepsEverySpikeAndTheMeanOfAnyNumberOfPoints) {
  for (const int64_t points : {1, 2, 99, 100, 101, 12345, 100000}) {
    MinMaxCurve curve(100);
    double sum = 0;
    for (int64_t step = 1; step <= points; ++step) {
      const double value = step == points / 3       ? 1e6
                           : step == points / 2 + 1 ? -1e6
                                                    : static_cast<double>(step % 7);
      curve.add(step, value);
      sum += value;
    }
    const auto& buckets = curve.buckets();
    ASSERT_LE(buckets.size(), 100U) << points;
    EXPECT_GE(static_cast<int64_t>(buckets.size()), std::min<int64_t>(points, 50)) << points;
    int64_t next = 1, counted = 0, high = 0, low = 0;
    double of_buckets = 0;
    for (const auto& b : buckets) {
      EXPECT_EQ(b.first, next) << points;
      EXPECT_EQ(b.last - b.first + 1, b.points);
      EXPECT_LE(b.min, b.mean());
      EXPECT_GE(b.max, b.mean());
      next = b.last + 1;
      counted += b.points;
      of_buckets += b.sum;
      high += b.max == 1e6 ? 1 : 0;
      low += b.min == -1e6 ? 1 : 0;
    }
    EXPECT_EQ(counted, points);
    EXPECT_NEAR(of_buckets, sum, 1e-6);
    EXPECT_EQ(high, points >= 3 ? 1 : 0) << points;
    EXPECT_EQ(low, points >= 1 ? 1 : 0) << points;
  }
}

TEST(MinMaxCurve, WhatIsNoNumberIsCountedApart) {
  MinMaxCurve curve(2);
  curve.add(1, 1);
  curve.add(2, std::numeric_limits<double>::quiet_NaN());
  curve.add(3, std::numeric_limits<double>::infinity());
  curve.add(4, 3);
  EXPECT_EQ(curve.not_finite(), 2);
  ASSERT_EQ(curve.buckets().size(), 2U);
  EXPECT_EQ(curve.buckets()[1].first, 4);
}

TEST(ExpertHistory, SlicesHaveTheSumsOfTheirStepsWhateverIsMerged) {
  ExpertHistory history(4 * 6);  // four slices of two layers of three experts
  constexpr int64_t kSteps = 37;
  for (int64_t step = 1; step <= kSteps; ++step) {
    history.begin_step(step);
    history.add_layers(std::vector<double>{0.5, 0.25, 0.25, 0, 1, 0}, 2);
    if (step % 2 == 0) history.add_tag("even", std::vector<double>{1, 0, 0}, 10);
  }
  EXPECT_EQ(history.layers(), 2);
  EXPECT_EQ(history.experts(), 3);
  EXPECT_LE(history.slices().size(), 4U);
  int64_t steps = 0, next = 1;
  double load = 0, tokens = 0, even = 0;
  for (const auto& s : history.slices()) {
    EXPECT_EQ(s.first, next);
    next = s.last + 1;
    steps += s.steps;
    load += s.layers[4];
    tokens += s.tags.at("even").tokens;
    even += s.tags.at("even").share[0];
  }
  EXPECT_EQ(steps, kSteps);
  EXPECT_EQ(load, kSteps);
  EXPECT_EQ(tokens, 180);
  EXPECT_EQ(even, 180);
}

std::string step_line(int64_t step, const std::string& loss, double seconds, double time) {
  return str_cat(
      R"({"expert_share":[[0.25,0.75]],"kind":"step","launch":1,"loss":)", loss, R"(,"seconds":)", seconds,
      R"(,"step":)", step,
      R"(,"tag_expert_share":{"<!--<script>":[0.5,0.5]},"tag_tokens":{"<!--<script>":8.0},"time":)", time,
      R"(,"tokens":16.0,"tokens_per_second":8.0})", "\n");
}

class Report : public ::testing::Test {
 protected:
  [[nodiscard]] std::string run(const std::string& name, const std::string& metrics) const {
    std::filesystem::create_directories(root() / name);
    write_file(root() / name / "metrics.jsonl", metrics);
    return (root() / name).string();
  }
  [[nodiscard]] std::string out() const { return (root() / "page.html").string(); }
  template <class E>
  [[nodiscard]] std::string refusal(const std::vector<std::string>& runs, const std::string& to) const {
    try {
      (void)write_report(runs, to);
    } catch (const E& e) {
      return e.what();
    }
    ADD_FAILURE() << "nothing was refused";
    return "";
  }
  [[nodiscard]] std::filesystem::path root() const { return folder_.path(); }
  TempFolder folder_;
};

TEST_F(Report, TellsWhatCountsOfARunThatWasResumed) {
  const std::string path = run(
      "run",
      R"({"kind":"launch","launch":1,"ranks":2,"step":0,"time":100.0})"
      "\n" +
          step_line(1, "3", 2, 105) + step_line(2, "1000", 2, 107) + step_line(3, "9", 2, 109) +
          R"({"kind":"launch","launch":2,"ranks":4,"step":1,"time":120.0})"
          "\n" +
          step_line(2, "2", 3, 124) +
          R"({"eval_loss":{"a":1.5},"eval_loss_total":1.25,"kind":"eval","seconds":4.0,"step":2,"time":128.0})"
          "\n" +
          R"({"launch":2,"saved_step":2,"step":2,"time":128.5})"
          "\n" +
          step_line(3, "null", 3, 131) + R"({"kind":"st)");
  const RunData data = read_run(path, 1);
  EXPECT_EQ(data.steps, 3);
  EXPECT_EQ(data.last_step, 3);
  EXPECT_EQ(data.recomputed_steps, 2);
  EXPECT_EQ(data.saves, 1);
  EXPECT_EQ(data.tokens, 48);
  const auto& loss = data.curves[0];
  ASSERT_EQ(loss.buckets().size(), 2U);
  EXPECT_EQ(loss.buckets()[1].max, 2) << "what the first launch measured of step 2 does not count";
  EXPECT_EQ(loss.not_finite(), 1);
  EXPECT_EQ(data.imbalance.buckets()[0].max, 1.5);
  ASSERT_EQ(data.launches.size(), 2U);
  EXPECT_EQ(data.launches[0].last_step, 3);
  EXPECT_EQ(data.launches[1].from_step, 1);
  EXPECT_EQ(data.launches[1].ranks, 4);
  const std::map<std::string, double> phases(data.phases.begin(), data.phases.end());
  EXPECT_EQ(phases.at("training steps"), 8);
  EXPECT_EQ(phases.at("steps computed again after a restart"), 4);
  EXPECT_EQ(phases.at("evaluation"), 4);
  EXPECT_EQ(phases.at("between launches"), 11);
  EXPECT_EQ(phases.at("start of the steps"), 3 + 1);
  EXPECT_EQ(data.eval_losses.at("")[0], (std::pair<int64_t, double>(2, 1.25)));
  ASSERT_EQ(data.notes.size(), 2U);  // no configuration, a torn line
}

TEST_F(Report, APipeOrAFolderIsNotWaitedFor) {
  const std::string path = run("run", step_line(1, "3", 2, 105));
  for (const char* name : {"launches.jsonl", "evaluations.jsonl"}) {
    const std::string file = path + "/" + name;
    ASSERT_EQ(::mkfifo(file.c_str(), 0600), 0);
    EXPECT_THROW((void)read_run(path, 1), IoError) << name;
    std::filesystem::remove(file);
    std::filesystem::create_directory(file);
    EXPECT_THROW((void)read_run(path, 1), IoError) << name;
    std::filesystem::remove(file);
    std::ofstream(file) << "{}\nno json";
    try {
      (void)read_run(path, 1);
      ADD_FAILURE() << name;
    } catch (const DataError& error) {
      EXPECT_NE(std::string(error.what()).find(str_cat(name, ":1: is no ")), std::string::npos)
          << error.what();
    }
    std::ofstream(file) << "no line end";
    EXPECT_EQ(read_run(path, 1).steps, 1) << name;
    std::filesystem::remove(file);
  }
}

TEST_F(Report, ThePageHoldsAllAndNothingOfTheRunIsMarkup) {
  const std::string a = run("a", step_line(1, "3", 2, 1)), b = run("b", step_line(1, "4", 2, 1));
  write_file(root() / "b/experiment.textproto", "name: \"</script><b>bold\"\nrun_dir: \"x\"\n");
  const int64_t bytes = write_report({a, b}, out());
  std::ifstream in(out());
  const std::string page{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  EXPECT_EQ(static_cast<int64_t>(page.size()), bytes);
  EXPECT_EQ(page.find("<b>"), std::string::npos);
  EXPECT_EQ(page.find("<!--"), std::string::npos);
  EXPECT_EQ(page.find("://"), std::string::npos) << "an address";
  // The data are one element, which nothing in them ends.
  const std::string begin = "id=\"data\">";
  const size_t at = page.find(begin) + begin.size(), end = page.find("</script>", at);
  const auto data = nlohmann::json::parse(page.substr(at, end - at));
  EXPECT_EQ(data["runs"].size(), 2U);
  EXPECT_EQ(data["runs"][1]["recipe"]["name"], "</script><b>bold");
  EXPECT_EQ(data["runs"][0]["experts"]["slices"][0]["load"], (std::vector<int>{500, 1500}));
  EXPECT_EQ(data["runs"][0]["experts"]["tags"][0]["tag"], "<!--<script>");
}

TEST_F(Report, BadInputIsOneErrorAndLeavesNothing) {
  const std::string good = run("good", step_line(1, "3", 2, 1));
  std::filesystem::create_directories(root() / "empty");
  EXPECT_NE(refusal<UsageError>({(root() / "none").string()}, out()).find("there is no such folder"),
            std::string::npos);
  EXPECT_NE(refusal<UsageError>({good, (root() / "empty").string()}, out()).find("has no metrics.jsonl"),
            std::string::npos);
  EXPECT_NE(refusal<UsageError>({run("begun", R"({"kind":"launch","step":0})"
                                              "\n")},
                                out())
                .find("has no step yet"),
            std::string::npos);
  EXPECT_NE(refusal<UsageError>({good, good + "/"}, out()).find("is given twice"), std::string::npos);
  EXPECT_NE(
      refusal<DataError>({run("damaged", step_line(1, "3", 2, 1) + "{\n" + step_line(2, "3", 2, 1))}, out())
          .find("metrics.jsonl:2: "),
      std::string::npos);
  write_file(root() / "good/launches.jsonl", "[]\n");
  EXPECT_NE(refusal<DataError>({good}, out()).find("launches.jsonl:1: "), std::string::npos);
  std::filesystem::remove(root() / "good/launches.jsonl");
  write_file(root() / "good/evaluations.jsonl", "{\"step\": 1}\n");
  EXPECT_NE(refusal<DataError>({good}, out()).find("evaluations.jsonl:1: "), std::string::npos);
  std::filesystem::remove(root() / "good/evaluations.jsonl");
  EXPECT_FALSE(std::filesystem::exists(out()));
  write_file(out(), "mine");
  EXPECT_NE(refusal<UsageError>({good}, out()).find("is there already, and nothing is overwritten"),
            std::string::npos);
  EXPECT_EQ(std::filesystem::file_size(out()), 4U);
  std::vector<std::string> left;
  for (const auto& entry : std::filesystem::directory_iterator(folder_.path()))
    if (!entry.is_directory()) left.push_back(entry.path().filename());
  EXPECT_EQ(left, std::vector<std::string>{"page.html"});
}

}  // namespace
}  // namespace pesc::testing
