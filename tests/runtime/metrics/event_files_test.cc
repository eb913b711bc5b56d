// TensorBoard's files: the bytes by a reading of our own, what a resumed launch leaves of them, and torn records.
#include "runtime/metrics/event_files.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>

#include "configs/schema/tensorboard.pb.h"
#include "ops/core/check.h"
#include "runtime/metrics/crc32c.h"
#include "tests/runtime/hf/temp_folder.h"

namespace pesc::testing {
namespace {

using Events = std::vector<proto::tensorboard::Event>;

TEST(Crc32c, TheValuesOfRfc3720) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283U);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aaU);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43U);
  EXPECT_EQ(crc32c(""), 0U);
  EXPECT_EQ(masked_crc32c(""), 0xa282ead8U);
}

std::string bytes_of(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// Reads whole records up to the first that is not, as TensorBoard does.
Events parsed(const std::string& bytes) {
  Events events;
  for (size_t at = 0; at + 12 <= bytes.size();) {
    uint64_t length = 0;
    uint32_t of_length = 0, of_data = 0;
    std::memcpy(&length, bytes.data() + at, 8);
    std::memcpy(&of_length, bytes.data() + at + 8, 4);
    EXPECT_EQ(of_length, masked_crc32c(std::string_view(bytes).substr(at, 8)));
    if (at + 12 + length + 4 > bytes.size()) break;
    const std::string_view data = std::string_view(bytes).substr(at + 12, length);
    std::memcpy(&of_data, bytes.data() + at + 12 + length, 4);
    EXPECT_EQ(of_data, masked_crc32c(data));
    proto::tensorboard::Event event;
    EXPECT_TRUE(event.ParseFromString(std::string(data)));
    events.push_back(event);
    at += 16 + length;
  }
  return events;
}

std::string step_line(int64_t step, double loss) {
  return str_cat(
      R"({"aux_loss":1.5,"expert_share":[[0.25,0.75],[0.5,0.5]],"grad_norm":null,"kind":"step","launch":1,"loss":)",
      loss, R"(,"lr":0.125,"memory_bytes":1024,"step":)", step,
      R"(,"tag_expert_share":{"code":[1.0,0.0]},"time":100.5,"tokens_per_second":64.0})", "\n");
}
std::string launch_line(int64_t step) {
  return str_cat(R"({"kind":"launch","launch":2,"step":)", step, "}\n");
}

class EventFiles : public ::testing::Test {
 protected:
  [[nodiscard]] std::filesystem::path only_file(const char* part) const {
    std::vector<std::filesystem::path> found;
    for (const auto& entry : std::filesystem::directory_iterator(root() / "tensorboard" / part))
      found.push_back(entry.path());
    EXPECT_EQ(found.size(), 1U);
    EXPECT_EQ(found.at(0).filename().string().find("events.out.tfevents."), 0U);
    return found.at(0);
  }
  // Step -> loss. A step that stands there twice is an error.
  static std::map<int64_t, float> losses(const Events& events) {
    std::map<int64_t, float> out;
    for (const auto& event : events) {
      for (const auto& value : event.summary().value()) {
        if (value.tag() != "loss") continue;
        const bool first = out.emplace(event.step(), value.simple_value()).second;
        EXPECT_TRUE(first) << "step " << event.step();
      }
    }
    return out;
  }
  [[nodiscard]] std::filesystem::path root() const { return folder_.path(); }
  TempFolder folder_;
};

TEST_F(EventFiles, AStepHasItsScalarsAndTheLoadOfExpertsAsHistograms) {
  write_file(root() / "metrics.jsonl", "");
  {
    TrainEvents events(folder_.path(), 0, 10);
    events.add(step_line(1, 2.5));
    std::string on_a_gpu = step_line(2, 2.25);
    events.add(on_a_gpu.insert(1, R"("mfu":0.5,)"));
    events.add("{\"launch\":1,\"saved_step\":2,\"step\":2}\n");
    events.add(R"({"eval_loss":{"code":2.0},"eval_loss_total":3.0,"kind":"eval","step":2,"time":101.5})"
               "\n");
  }
  const Events all = parsed(bytes_of(only_file("train")));
  ASSERT_EQ(all.size(), 5U);
  EXPECT_EQ(all[0].file_version(), "brain.Event:2");
  EXPECT_EQ(all[1].session_log().status(), proto::tensorboard::SessionLog::START);
  EXPECT_EQ(all[2].step(), 1);
  EXPECT_EQ(all[2].wall_time(), 100.5);
  std::map<std::string, proto::tensorboard::Summary::Value> values;
  for (const auto& v : all[2].summary().value()) values[v.tag()] = v;
  EXPECT_EQ(values.at("loss").simple_value(), 2.5F);
  EXPECT_EQ(values.at("aux_loss").simple_value(), 1.5F);
  EXPECT_TRUE(std::isnan(values.at("grad_norm").simple_value()));
  EXPECT_EQ(values.at("learning_rate").simple_value(), 0.125F);
  EXPECT_EQ(values.at("speed/tokens_per_second").simple_value(), 64.0F);
  EXPECT_EQ(values.at("memory/bytes").simple_value(), 1024.0F);
  EXPECT_FALSE(values.contains("speed/mfu"));
  const auto& load = values.at("experts/layer_0").histo();
  EXPECT_EQ(std::vector<double>(load.bucket().begin(), load.bucket().end()), (std::vector<double>{25, 75}));
  EXPECT_EQ(std::vector<double>(load.bucket_limit().begin(), load.bucket_limit().end()),
            (std::vector<double>{0.5, 1.5}));
  EXPECT_EQ(load.min(), -0.5);
  EXPECT_EQ(load.max(), 1.5);
  EXPECT_EQ(load.num(), 100);
  EXPECT_EQ(load.sum(), 75);
  EXPECT_TRUE(values.contains("experts/layer_1"));
  EXPECT_EQ(values.at("experts/dataset/code").histo().bucket(0), 100);
  values.clear();
  for (const auto& v : all[3].summary().value()) {
    EXPECT_FALSE(v.has_histo()) << "step 2 is not a tenth one";
    values[v.tag()] = v;
  }
  EXPECT_EQ(values.at("speed/mfu").simple_value(), 0.5F);
  EXPECT_EQ(all[4].summary().value(0).tag(), "eval/loss");
  EXPECT_EQ(all[4].summary().value(1).tag(), "eval/loss/code");
}

TEST_F(EventFiles, AfterAResumeNoStepStandsThereTwice) {
  std::string metrics = launch_line(0);
  {
    write_file(root() / "metrics.jsonl", metrics);
    TrainEvents events(folder_.path(), 0, 10);
    for (int64_t step = 1; step <= 7; ++step) {
      metrics += step_line(step, 1);
      events.add(step_line(step, 1));
    }
  }
  const std::filesystem::path first = only_file("train");
  // Killed in a write: half of a record, half of a line.
  std::filesystem::resize_file(first, std::filesystem::file_size(first) - 11);
  EXPECT_EQ(losses(parsed(bytes_of(first))).size(), 6U) << "the torn record takes no other with it";
  write_file(root() / "tensorboard/train/mine.txt", "another's file");
  write_file(root() / "tensorboard/train/new-events.tmp.1", "left by a launch that was killed");
  metrics += launch_line(4);
  write_file(root() / "metrics.jsonl", metrics);
  {
    TrainEvents events(folder_.path(), 4, 10);
    for (int64_t step = 5; step <= 9; ++step) events.add(step_line(step, 2));
  }
  EXPECT_TRUE(std::filesystem::remove(root() / "tensorboard/train/mine.txt"));
  const std::filesystem::path second = only_file("train");
  EXPECT_GT(second.filename(), first.filename())
      << "a TensorBoard that is running goes on to later names only";
  const auto found = losses(parsed(bytes_of(second)));
  ASSERT_EQ(found.size(), 9U);
  for (const auto& [step, loss] : found) EXPECT_EQ(loss, step <= 4 ? 1 : 2) << step;
}

// The launch's record may wait for room on the disk: its step is known all the same.
TEST_F(EventFiles, StepsBehindTheCheckpointAreLeftOutWithoutALaunchRecordToo) {
  write_file(root() / "metrics.jsonl",
             step_line(1, 1) + step_line(2, 1) + step_line(3, 1) + R"({"kind":"step","st)");
  { const TrainEvents events(folder_.path(), 2, 10); }
  EXPECT_EQ(losses(parsed(bytes_of(only_file("train")))).size(), 2U);
}

TEST_F(EventFiles, AFullDiskLeavesWholeRecordsAndTrainingGoesOn) {
  write_file(root() / "metrics.jsonl", "");
  TrainEvents events(folder_.path(), 0, 10);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  const rlimit small{1500, old.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  for (int64_t step = 1; step <= 20; ++step) events.add(step_line(step, 1));
  const std::string full = bytes_of(only_file("train"));
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_LE(full.size(), 1500U);
  size_t whole = 0;
  for (const auto& event : parsed(full)) whole += 16 + event.ByteSizeLong();
  EXPECT_EQ(whole, full.size());
  events.add(step_line(21, 1));
  const auto found = losses(parsed(bytes_of(only_file("train"))));
  EXPECT_GT(found.size(), 1U);
  EXPECT_LT(found.size(), 20U);
  EXPECT_TRUE(found.contains(21));
}

TEST_F(EventFiles, DamagedMetricsAreNamedAndTheFileBeforeStays) {
  write_file(root() / "metrics.jsonl", step_line(1, 1));
  { const TrainEvents events(folder_.path(), 1, 10); }
  const auto before = only_file("train");
  write_file(root() / "metrics.jsonl", step_line(1, 1) + "not JSON\n" + step_line(2, 1));
  try {
    const TrainEvents events(folder_.path(), 2, 10);
    FAIL() << "nothing was refused";
  } catch (const DataError& e) {
    EXPECT_NE(std::string(e.what()).find("metrics.jsonl:2: is no JSON object"), std::string::npos)
        << e.what();
  }
  EXPECT_EQ(only_file("train"), before);
}

TEST_F(EventFiles, AnswersOfAnEvaluationAreTextsAndAStepIsEvaluatedOnce) {
  const auto report = [](int64_t step, double loss, const char* answer) {
    return nlohmann::json{
        {"step", step},
        {"total", {{"eval_loss", loss}, {"rows", 2}, {"exact_match", 0.5}}},
        {"datasets", {{"code", {{"eval_loss", loss}, {"expert_share", {0.5, 0.5}}}}}},
        {"samples", {{{"dataset", "code"}, {"question", "q\nr"}, {"expected", "e"}, {"answer", answer}}}}};
  };
  record_evaluation(folder_.path(), report(0, 4, "before"));
  record_evaluation(folder_.path(), report(8, 3, "no"));
  std::ofstream(root() / "evaluations.jsonl", std::ios::app) << R"({"step": 9, "tot)";  // killed
  record_evaluation(folder_.path(), report(8, 2, "<yes>"));
  write_evaluation_events(folder_.path());
  const Events all = parsed(bytes_of(only_file("eval")));
  ASSERT_EQ(all.size(), 4U);
  EXPECT_EQ(all[2].step(), 0);
  EXPECT_EQ(all[3].step(), 8);
  std::map<std::string, proto::tensorboard::Summary::Value> values;
  for (const auto& v : all[3].summary().value()) values[v.tag()] = v;
  EXPECT_EQ(values.at("eval/loss").simple_value(), 2.0F);
  EXPECT_EQ(values.at("eval/loss/code").simple_value(), 2.0F);
  EXPECT_EQ(values.at("eval/exact_match").simple_value(), 0.5F);
  EXPECT_TRUE(values.at("eval/experts/code").has_histo());
  const auto& text = values.at("answers/code");
  EXPECT_EQ(text.metadata().plugin_data().plugin_name(), "text");
  EXPECT_EQ(text.tensor().dtype(), 7);
  EXPECT_EQ(text.tensor().tensor_shape().dim(0).size(), 1);
  EXPECT_NE(text.tensor().string_val(0).find("    q\n    r"), std::string::npos);
  EXPECT_NE(text.tensor().string_val(0).find("<yes>"), std::string::npos);
  EXPECT_EQ(read_evaluations(folder_.path()).size(), 2U);
}

}  // namespace
}  // namespace pesc::testing
