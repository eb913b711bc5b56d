#include "runtime/data/token_cache.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "runtime/data/cache_lock.h"
#include "runtime/data/dataset.h"
#include "runtime/data/token_cache_key.h"
#include "tests/runtime/data/test_tokenizers.h"

namespace pesc {
namespace {

namespace fs = std::filesystem;

// Counts how often it is asked.
class CountingTokenizer : public ByteTokenizer {
 public:
  [[nodiscard]] std::vector<int32_t> encode(std::string_view text) const override {
    ++calls;
    return ByteTokenizer::encode(text);
  }
  mutable std::atomic<int> calls = 0;
};

std::string row_json(const std::string& question, const std::string& answer, const std::string& tag) {
  return R"({"instruction": ")" + question + R"(", "output": ")" + answer + R"(", "dataset": ")" + tag +
         "\"}\n";
}

// 1000 rows, some too long, some empty, some malformed, some of plain text, of several tags.
std::string many_rows() {
  std::string text;
  for (int i = 0; i < 1000; ++i) {
    const std::string number = std::to_string(i);
    if (i % 97 == 5) {
      text += "{\"instruction\": 3}\n";
    } else if (i % 89 == 7) {
      text += row_json("q" + number, "", "e");
    } else if (i % 31 == 4) {
      text += R"({"corpus": ")" + std::string(static_cast<size_t>(i % 300 + 1), 'c') + "\"}\n";
    } else {
      text += row_json("question " + number, std::string(static_cast<size_t>(i % 60 + 1), 'a'),
                       "t" + std::to_string(i % 4));
    }
  }
  return text;
}

class TokenCaches : public ::testing::Test {
 protected:
  TokenCaches() {
    options_.max_seq_length = 90;
    options_.rows.on_bad_row = OnBadRow::kSkip;
  }
  [[nodiscard]] DatasetOptions cached(int threads = 1) const {
    DatasetOptions options = options_;
    options.threads = threads;
    options.cache = {folder_ / "cache", encoding_identity(RowEncoder(tokenizer_), tokenizer_, "digest"), 60};
    return options;
  }
  [[nodiscard]] Dataset data(const DatasetOptions& options) const { return {files_, tokenizer_, options}; }
  // Names in the folder that begin with "rows-".
  [[nodiscard]] std::vector<std::string> in_cache() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_ / "cache"))
      if (entry.path().filename().string().starts_with("rows-")) names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
  }
  static std::string message_of(const auto& call) {
    try {
      call();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  TokenizerFolder folder_;
  CountingTokenizer tokenizer_;
  DatasetOptions options_;
  std::vector<DatasetFile> files_{{folder_.write("a.jsonl", many_rows()), "", 1.5},
                                  {folder_.write("b.jsonl", row_json("q", "from b", "")), "", 2}};
};

void expect_same(const Dataset& a, const Dataset& b) {
  ASSERT_EQ(a.rows(), b.rows());
  EXPECT_EQ(to_string(a.report()), to_string(b.report()));
  EXPECT_EQ(a.report().warnings, b.report().warnings);
  EXPECT_EQ(a.tags(), b.tags());
  EXPECT_EQ(a.epoch_size(), b.epoch_size());
  EXPECT_EQ(a.longest_row(), b.longest_row());
  for (size_t i = 0; i < a.content().size(); ++i) {
    EXPECT_EQ(a.content()[i].digest, b.content()[i].digest);
    EXPECT_EQ(a.content()[i].path, b.content()[i].path);
    EXPECT_EQ(a.content()[i].rows, b.content()[i].rows);
  }
  for (int64_t row = 0; row < a.rows(); ++row) {
    EXPECT_EQ(a.read(row), b.read(row));
    EXPECT_EQ(a.length(row), b.length(row));
    EXPECT_EQ(a.tag(row), b.tag(row));
  }
  for (int64_t entry = 0; entry < a.epoch_size(); ++entry)
    EXPECT_EQ(a.entry_row(entry, 3, 7), b.entry_row(entry, 3, 7));
}

TEST_F(TokenCaches, TheRowsAreThoseOfARunWithout) {
  const auto with = [this](auto change) {
    DatasetOptions options = options_;
    change(options);
    return options;
  };
  const std::vector<DatasetOptions> all = {
      options_, with([](DatasetOptions& o) { o.on_long_row = OnLongRow::kDrop; }),
      with([](DatasetOptions& o) { o.long_text = LongText::kSplit; }), with([](DatasetOptions& o) {
        o.split = {0.2, RowPart::kTraining};
      }),
      with([](DatasetOptions& o) {
        o.split = {0.2, RowPart::kValidation};
      })};
  std::set<std::string> reports;
  for (const DatasetOptions& options : all) {
    options_ = options;
    const Dataset plain = data(options);
    EXPECT_GT(plain.report().truncated + plain.report().too_long, 0);
    expect_same(plain, data(cached(1)));
    expect_same(plain, data(cached(4)));  // read
    fs::remove_all(folder_ / "cache");
    expect_same(plain, data(cached(4)));  // made by several threads
    fs::remove_all(folder_ / "cache");
    options_.threads = 3;
    expect_same(plain, data(options_));
    reports.insert(to_string(plain.report()));
  }
  EXPECT_EQ(reports.size(), all.size());
}

TEST_F(TokenCaches, RowsAreTokenisedOnce) {
  const Dataset first = data(cached());
  const std::vector<std::string> names = in_cache();
  EXPECT_EQ(names.size(), 2U);
  for (const std::string& name : names) EXPECT_TRUE(name.ends_with(".tokens")) << name;
  const DatasetOptions again = cached();  // whose key encodes some rows
  tokenizer_.calls = 0;
  expect_same(first, data(again));
  EXPECT_EQ(tokenizer_.calls, 0);
  // The rows of one file are there whatever the others are, their weights and their paths.
  fs::rename(folder_ / "a.jsonl", folder_ / "moved.jsonl");
  files_ = {{folder_ / "moved.jsonl", "", 0.25}};
  fs::rename(folder_ / "moved.jsonl", folder_ / "a.jsonl");
  files_[0].path = folder_ / "./a.jsonl";
  const Dataset moved = data(again);
  EXPECT_EQ(tokenizer_.calls, 0);
  EXPECT_EQ(moved.content()[0].digest, first.content()[0].digest);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, files_[0].path + ":6: ", moved.report().messages.at(0));
  EXPECT_EQ(in_cache(), names);
}

TEST_F(TokenCaches, TheKeyHasAllThatTheTokensDependOn) {
  std::set<std::string> names;
  const auto key = [&](auto change) {
    DatasetFile file = files_[0];
    DatasetOptions options = cached();
    change(file, options);
    return token_cache_key(file, options).name;
  };
  const auto nothing = [](DatasetFile&, DatasetOptions&) {};
  names.insert(key(nothing));
  EXPECT_EQ(key(nothing), *names.begin());
  EXPECT_EQ(key([](DatasetFile& f, DatasetOptions& o) {
              f.weight = 3;
              o.threads = 5;
            }),
            *names.begin());
  const auto add = [&](auto change) { EXPECT_TRUE(names.insert(key(change)).second) << names.size(); };
  add([](DatasetFile& f, DatasetOptions&) { f.tag = "tag"; });
  add([](DatasetFile& f, DatasetOptions&) { f.columns.names = {{"text", "corpus"}}; });
  add([](DatasetFile&, DatasetOptions& o) { o.max_seq_length = 91; });
  add([](DatasetFile&, DatasetOptions& o) { o.on_long_row = OnLongRow::kDrop; });
  add([](DatasetFile&, DatasetOptions& o) { o.long_text = LongText::kSplit; });
  add([](DatasetFile&, DatasetOptions& o) { o.rows.on_bad_row = OnBadRow::kFail; });
  add([](DatasetFile&, DatasetOptions& o) { o.rows.use = RowUse::kTemplate; });
  add([](DatasetFile&, DatasetOptions& o) { o.split = {0.1, RowPart::kTraining}; });
  add([](DatasetFile&, DatasetOptions& o) { o.split = {0.1, RowPart::kValidation}; });
  add([](DatasetFile&, DatasetOptions& o) { o.split = {0.11, RowPart::kValidation}; });
  add([](DatasetFile&, DatasetOptions& o) { o.cache->encoding = "another"; });
  folder_.write("a.jsonl", many_rows() + " ");
  add(nothing);
}

TEST_F(TokenCaches, TheEncodingHasTokenizerPromptAndWhatIsTrainedOn) {
  const RowEncoder all(tokenizer_);
  const std::string text = encoding_identity(all, tokenizer_, "digest");
  EXPECT_EQ(encoding_identity(RowEncoder(tokenizer_), tokenizer_, "digest"), text);
  const RowEncoder last(tokenizer_, std::nullopt, TrainOn::kLast);
  EXPECT_NE(encoding_identity(last, tokenizer_, "digest"), text);
  EXPECT_NE(encoding_identity(all, tokenizer_, "other"), text);
  const ByteTokenizer no_begin(-1, 2);
  EXPECT_NE(encoding_identity(RowEncoder(no_begin), no_begin, "digest"), text);
}

TEST_F(TokenCaches, DamagedFilesAreMadeAnew) {
  const Dataset plain = data(options_);
  (void)data(cached());
  for (const std::string& name : in_cache()) {
    const std::string path = folder_ / "cache" + "/" + name;
    fs::resize_file(path, fs::file_size(path) - 1);
  }
  expect_same(plain, data(cached()));
  EXPECT_EQ(std::ranges::count_if(in_cache(), [](const std::string& n) { return n.ends_with(".damaged"); }),
            2);
  tokenizer_.calls = 0;
  const DatasetOptions again = cached();
  tokenizer_.calls = 0;
  expect_same(plain, data(again));
  EXPECT_EQ(tokenizer_.calls, 0);
}

TEST_F(TokenCaches, ADamagedRowEndsTheRunAndTheNextStartMakesTheFileAnew) {
  files_.resize(1);
  const Dataset plain = data(options_);
  const Dataset run = data(cached());
  const std::string path = folder_ / "cache" + "/" + in_cache().at(0);
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(16 + 8);
    file.put('\xEE');
  }
  const Dataset opened = data(cached());  // its end is whole
  EXPECT_EQ(opened.read(1), plain.read(1));
  for (const Dataset* one : {&run, &opened}) {
    const std::string message = message_of([&] { (void)one->read(0); });
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "row 0 (byte 16) is damaged; it has been put aside", message);
  }
  EXPECT_FALSE(fs::exists(path));
  expect_same(plain, data(cached()));
  // Which those that have the old one open leave in its place.
  EXPECT_THROW((void)run.read(0), IoError);
  EXPECT_TRUE(fs::exists(path));
}

TEST_F(TokenCaches, WhatIsReadAndThrownIsTheSameForAnyNumberOfThreads) {
  files_.resize(1);
  options_.rows.on_bad_row = OnBadRow::kFail;
  options_.rows.policy_field = "data.on_bad_row";
  const std::string message = message_of([&] { (void)data(options_); });
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "a.jsonl:6: ", message);
  for (const int threads : {1, 4}) {
    EXPECT_EQ(message_of([&] { (void)data(cached(threads)); }), message);
    EXPECT_TRUE(in_cache().empty());
  }
}

TEST_F(TokenCaches, StartsAtOnceTokeniseOnce) {
  files_.resize(1);
  const DatasetOptions options = cached(2);
  tokenizer_.calls = 0;
  (void)data(options);
  const int once = tokenizer_.calls;
  fs::remove_all(folder_ / "cache");
  tokenizer_.calls = 0;
  std::vector<std::thread> threads;
  std::atomic<int64_t> rows = 0;
  threads.reserve(5);
  for (int i = 0; i < 5; ++i) threads.emplace_back([&] { rows += data(options).rows(); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(tokenizer_.calls, once);
  EXPECT_EQ(rows, 5 * data(options).rows());
}

TEST_F(TokenCaches, WhoWaitsFailsWithTheOneThatWrote) {
  files_.resize(1);
  fs::create_directories(folder_ / "cache");
  std::string why;
  auto lock = CacheLock::try_acquire(folder_ / "cache", why);
  ASSERT_NE(lock, nullptr);
  lock->write("pid 1 on host other: 20 %\n");
  const DatasetOptions options = cached();
  std::string message;
  std::thread waiting([&] { message = message_of([&] { (void)data(options); }); });
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_TRUE(in_cache().empty());
  lock->write("failed " + token_cache_key(files_[0], options).name + " 65\nrow 7 is bad\nvery");
  lock.reset();
  waiting.join();
  EXPECT_EQ(message, "row 7 is bad\nvery");
  // A start that has not waited tries by itself.
  EXPECT_GT(data(options).rows(), 0);
}

TEST_F(TokenCaches, AProcessWithoutProgressIsNotWaitedForForEver) {
  fs::create_directories(folder_ / "cache");
  std::string why;
  const auto lock = CacheLock::try_acquire(folder_ / "cache", why);
  lock->write("pid 1 on host other: 20 %\n");
  DatasetOptions options = cached();
  options.cache->patience_seconds = 0.3;
  const std::string message = message_of([&] { (void)data(options); });
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "without progress (pid 1 on host other: 20 %", message);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "data.cache_dir", message);
}

TEST_F(TokenCaches, ProgressOfTheOtherProcessLengthensTheWait) {
  fs::create_directories(folder_ / "cache");
  std::string why;
  auto lock = CacheLock::try_acquire(folder_ / "cache", why);
  DatasetOptions options = cached();
  options.cache->patience_seconds = 1.5;
  std::atomic<int> alive = 0;
  options.alive = [&alive] { ++alive; };
  int64_t rows = 0;
  std::thread waiting([&] { rows = data(options).rows(); });
  for (int i = 0; i < 5; ++i) {
    lock->write("pid 1 on host other: " + std::to_string(i) + " %\n");
    std::this_thread::sleep_for(std::chrono::milliseconds(600));
  }
  lock.reset();
  waiting.join();
  EXPECT_GT(rows, 0);
  EXPECT_GE(alive, 3);
}

TEST_F(TokenCaches, AProcessThatIsKilledHoldsNothingUp) {
  const Dataset plain = data(options_);
  fs::create_directories(folder_ / "cache");
  const DatasetOptions options = cached();
  const pid_t child = ::fork();
  if (child == 0) {
    DatasetOptions slow = options;
    slow.progress = [](const TokenizingProgress&) { ::raise(SIGKILL); };
    (void)data(slow);
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(std::ranges::count_if(in_cache(),
                                  [](const std::string& n) { return n.find(".tmp.") != std::string::npos; }),
            1);
  expect_same(plain, data(options));
  EXPECT_EQ(in_cache().size(), 2U);  // what it left is gone
}

TEST_F(TokenCaches, ASourceThatChangesWhileItIsReadIsRefused) {
  files_.resize(1);
  DatasetOptions options = cached();
  options.progress = [this](const TokenizingProgress&) {
    std::ofstream(files_[0].path, std::ios::app) << row_json("q", "one more", "");
  };
  const std::string message = message_of([&] { (void)data(options); });
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "a.jsonl: has been changed while it was read", message);
  EXPECT_TRUE(in_cache().empty());
}

TEST_F(TokenCaches, AFolderThatCannotBeMadeIsNamed) {
  folder_.write("cache", "a file");
  const std::string message = message_of([this] { (void)data(cached()); });
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, folder_ / "cache", message);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "data.cache_dir", message);
}

TEST_F(TokenCaches, RowsThatAreWantedThemselvesAreReadAnew) {
  DatasetOptions options = cached();
  int64_t rows = 0;
  options.on_row = [&rows](const Row&) { ++rows; };
  const Dataset all = data(options);
  EXPECT_GT(rows, 0);
  EXPECT_FALSE(fs::exists(folder_ / "cache"));
}

TEST(CacheLocks, OneAtATime) {
  const TokenizerFolder folder;
  std::string why;
  auto first = CacheLock::try_acquire(folder.path(), why);
  ASSERT_NE(first, nullptr);
  first->write("a long text about the one that has it");
  first->write(this_process_name());
  EXPECT_EQ(CacheLock::try_acquire(folder.path(), why), nullptr);
  EXPECT_EQ(why, this_process_name());
  first.reset();
  const auto second = CacheLock::try_acquire(folder.path(), why);
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(second->text_before(), this_process_name());
}

TEST(CacheLocks, WithoutFlockByFcntlAndWithoutThatByAFile) {
  LockCalls calls = system_lock_calls();
  calls.flock = [](int) { return ENOLCK; };
  const LockCalls none{[](int) { return ENOLCK; }, [](int) { return ENOLCK; }};
  for (const LockCalls& these : {calls, none}) {
    const TokenizerFolder folder;
    std::string why;
    auto first = CacheLock::try_acquire(folder.path(), why, these);
    ASSERT_NE(first, nullptr);
    EXPECT_EQ(CacheLock::try_acquire(folder.path(), why, these), nullptr);
    first.reset();
    EXPECT_NE(CacheLock::try_acquire(folder.path(), why, these), nullptr);
  }
}

}  // namespace
}  // namespace pesc
