// ranks: 1 4
// What a user can get wrong in the experiment, the model's folder and the rows, refused by all ranks alike:
// every rank throws the same error with the exit code of its kind, one of them is to print it, and it says
// what and where. end_to_end/bad_input_test.py shows for some of these that `pesc` ends so.
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "runtime/job.h"
#include "tests/device.h"

namespace pesc {
namespace {

namespace fs = std::filesystem;

const std::string kBase = PESC_SOURCE_DIR "/configs/quickstart/base";
const std::string kQuickStart = PESC_SOURCE_DIR "/configs/quickstart/tune.textproto";
constexpr int kUsage = 64, kData = 65;

// A folder of all ranks, which rank 0 makes and takes away.
class SharedFolder {
 public:
  explicit SharedFolder(Communicator& world) : world_(world) {
    std::string made;
    if (world.rank() == 0) {
      made = (fs::temp_directory_path() / "pesc_bad_input_XXXXXX").string();
      if (::mkdtemp(made.data()) == nullptr) throw std::runtime_error("mkdtemp");
    }
    path_ = world.host_all_gather(made).front();
  }
  SharedFolder(const SharedFolder&) = delete;
  SharedFolder& operator=(const SharedFolder&) = delete;
  ~SharedFolder() {
    world_.barrier();
    std::error_code ignored;
    if (world_.rank() == 0) fs::remove_all(path_, ignored);
  }
  [[nodiscard]] std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  Communicator& world_;
  std::string path_;
};

std::string read(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}
void write(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}
void replace(const std::string& path, const std::string& what, const std::string& with) {
  std::string text = read(path);
  const size_t at = text.find(what);
  ASSERT_NE(at, std::string::npos) << path << " has no " << what;
  write(path, text.replace(at, what.size(), with));
}

const char* const kGoodRow = R"({"instruction": "", "conversation": [{"input": "a", "output": "b"}]})";

class BadInput : public ::testing::Test {
 protected:
  // The quick start on rows of this test's own, with these fields set.
  ExperimentConfig experiment(const std::vector<std::string>& fields) {
    const bool alone = world_->size() == 1;
    std::vector<std::string> all{"run_dir=" + folder_ / "run",
                                 "model.path=" + kBase,
                                 "data.train[0].path=" + rows_,
                                 "data.eval[0].path=" + rows_,
                                 "data.eval[1].path=" + rows_,
                                 "data.eval[2].path=" + rows_,
                                 "train.max_steps=4",
                                 "train.global_batch_size=8",
                                 alone ? "parallel.tp=1" : "parallel.tp=2",
                                 alone ? "parallel.ep=1" : "parallel.ep=4",
                                 "parallel.num_threads=1"};
    all.insert(all.end(), fields.begin(), fields.end());
    return load_experiment(kQuickStart, all);
  }

  Job open(const std::vector<std::string>& fields, DataUse use) {
    ExperimentConfig config;
    run_collectively(*world_, [&] { config = experiment(fields); });
    HostPlacement here;
    here.local_rank = session_.local_rank();
    return open_job(*world_, here, std::move(config), use);
  }

  // What a run does before its first step.
  void start(const std::vector<std::string>& fields) {
    Job job = open(fields, DataUse::kAll);
    run_collectively(*world_, [&] {
      (void)load_training_data(job);
      (void)load_eval_data(job);
    });
    (void)make_training_decoder(job, 8, job.config.data.max_seq_length);
  }

  void refused(int code, const std::vector<std::string>& words, const std::vector<std::string>& fields) {
    std::string what;
    int got = 0;
    int64_t reports = 0;
    try {
      start(fields);
    } catch (const AgreedError& e) {
      what = e.what();
      got = static_cast<int>(e.code());
      reports = e.reporting ? 1 : 0;
    }
    EXPECT_EQ(got, code) << (fields.empty() ? "" : fields.front()) << ": " << what;
    for (const std::string& word : words)
      EXPECT_NE(what.find(word), std::string::npos) << "no '" << word << "' in: " << what;
    int64_t reporters = 0;
    for (const int64_t s : world_->host_all_gather(std::span(&reports, 1))) reporters += s;
    EXPECT_EQ(reporters, 1) << what;
    for (const std::string& other : world_->host_all_gather(what)) EXPECT_EQ(other, what);
  }

  // A copy of the base, changed on rank 0.
  std::string base(const std::string& name, const std::function<void(const std::string&)>& change) {
    const std::string to = folder_ / name;
    if (world_->rank() == 0) {
      fs::copy(kBase, to);
      change(to);
    }
    world_->barrier();
    return to;
  }
  std::string rows_with(const std::string& name, const std::string& line) {
    const std::string to = folder_ / name;
    if (world_->rank() == 0) write(to, std::string(kGoodRow) + "\n" + line + "\n" + kGoodRow + "\n");
    world_->barrier();
    return to;
  }

  MpiSession session_;
  std::unique_ptr<Communicator> world_ = session_.world();
  SharedFolder folder_{*world_};
  std::string rows_ = rows_with("rows.jsonl", kGoodRow);
};

TEST_F(BadInput, WhatIsRightStarts) {
  start({});
}

TEST_F(BadInput, ABadModelFolderIsRefusedByName) {
  refused(kUsage, {"model.path", "no-such-model"}, {"model.path=" + folder_ / "no-such-model"});
  const std::string empty = folder_ / "empty-model";
  fs::create_directories(empty);
  world_->barrier();
  refused(kData, {"empty-model", "config.json"}, {"model.path=" + empty, "model.tokenizer=" + kBase});
  const std::string none =
      base("no-weights", [](const std::string& f) { fs::remove(f + "/model.safetensors"); });
  refused(kData, {"no-weights", "safetensors"}, {"model.path=" + none});
  for (const auto& [name, size] :
       {std::pair{"cut-data", int64_t{-1000}}, {"cut-header", 100}, {"cut-all", 0}}) {
    const std::string cut = base(name, [size = size](const std::string& f) {
      const std::string file = f + "/model.safetensors";
      const auto bytes = static_cast<int64_t>(fs::file_size(file));
      fs::resize_file(file, static_cast<uintmax_t>(size < 0 ? bytes + size : size));
    });
    refused(kData, {name, "model.safetensors"}, {"model.path=" + cut});
  }
}

TEST_F(BadInput, BadWeightsAreRefusedByName) {
  const std::string shape = base("wrong-shape", [](const std::string& f) {
    const std::string file = f + "/model.safetensors";
    std::string bytes = read(file);
    const size_t at = bytes.find("\"model.layers.2.mlp.up_proj.weight\"");
    ASSERT_NE(at, std::string::npos);
    const size_t size = bytes.find("[352", at);
    ASSERT_LT(size, at + 200);
    const size_t end = bytes.find(']', size);
    const std::string old = bytes.substr(size, end - size);
    std::string swapped =
        "[128" + old.substr(4, old.find("128") - 4) + "352" + old.substr(old.find("128") + 3);
    write(file, bytes.replace(size, old.size(), swapped));
  });
  refused(kData, {"model.safetensors", "model.layers.2.mlp.up_proj.weight", "352", "128"},
          {"model.path=" + shape});
  const std::string missing = base("missing-tensor", [](const std::string& f) {
    replace(f + "/model.safetensors", "model.layers.3.self_attn.k_proj.weight",
            "model.layers.3.self_attn.k_prox.weight");
  });
  refused(kData, {"model.layers.3.self_attn.k_proj.weight"}, {"model.path=" + missing});
}

TEST_F(BadInput, ABadConfigJsonIsRefusedByName) {
  const std::string family = base("architecture", [](const std::string& f) {
    replace(f + "/config.json", "LlamaForCausalLM", "GPTNeoXForCausalLM");
  });
  refused(kData, {"config.json", "GPTNeoXForCausalLM"}, {"model.path=" + family});
  const std::string damaged =
      base("damaged-config", [](const std::string& f) { fs::resize_file(f + "/config.json", 50); });
  refused(kData, {"config.json"}, {"model.path=" + damaged});
  const std::string fifo = base("fifo-config", [](const std::string& f) {
    fs::remove(f + "/config.json");
    ASSERT_EQ(::mkfifo((f + "/config.json").c_str(), 0600), 0);
  });
  refused(kData, {"config.json", "FIFO"}, {"model.path=" + fifo});
}

TEST_F(BadInput, ABadTokenizerIsRefusedByName) {
  const std::string damaged =
      base("damaged-tokenizer", [](const std::string& f) { fs::resize_file(f + "/tokenizer.model", 5000); });
  refused(kData, {"tokenizer.model"}, {"model.path=" + damaged});
  const std::string none =
      base("no-tokenizer", [](const std::string& f) { fs::remove(f + "/tokenizer.model"); });
  refused(kData, {"no-tokenizer", "tokenizer"}, {"model.path=" + none});
}

TEST_F(BadInput, BadRowsAreRefusedWithFileAndLine) {
  const std::string kStart = R"({"instruction": "", "conversation": [{"input": "a)";
  const std::vector<std::tuple<std::string, std::string, std::string>> bad{
      {"no-json.jsonl", kStart + R"(", "output": )", ":2"},
      {"no-output.jsonl", kStart + R"("}]})", "output"},
      {"nul.jsonl", kStart + R"(\u0000b", "output": "c"}]})", "NUL"},
      {"raw-nul.jsonl", kStart + std::string(1, '\0') + R"(b", "output": "c"}]})", ":2"},
      {"latin1.jsonl", kStart + "\xe9" + R"(", "output": "c"}]})", "UTF-8"},
      {"list.jsonl", "[1]", ":2"}};
  for (const auto& [name, line, word] : bad) {
    const std::string path = rows_with(name, line);
    refused(kData, {path + ":2", word}, {"data.train[0].path=" + path});
    refused(kData, {path + ":2", word}, {"data.eval[1].path=" + path});
  }
  const std::string empty = folder_ / "empty.jsonl";
  if (world_->rank() == 0) write(empty, "");
  world_->barrier();
  refused(kData, {"empty.jsonl"}, {"data.train[0].path=" + empty});
  refused(kUsage, {"data.train[0].path", "no-such.jsonl"},
          {"data.train[0].path=" + folder_ / "no-such.jsonl"});
}

TEST_F(BadInput, BadFieldsAreRefusedByName) {
  refused(kUsage, {"train.lerning_rate", "learning_rate"}, {"train.lerning_rate=1"});
  refused(kUsage, {"train.global_batch_size=many", "integer"}, {"train.global_batch_size=many"});
  refused(kUsage, {"train.gradient_accumulation_steps is 5", "global_batch_size = 8"},
          {"train.gradient_accumulation_steps=5"});
  refused(kUsage, {"data.max_seq_length", "300", "256"}, {"data.max_seq_length=300"});
  refused(kUsage, {"parallel.tp"}, {"parallel.tp=8", "parallel.ep=1"});
  refused(kUsage, {"parallel.ep"}, {"parallel.tp=1", "parallel.ep=8"});
}

TEST_F(BadInput, ChunksOfTokensAreRefusedWithWeightsInTrainingAlone) {
  const std::vector<std::string> both{"parallel.expert_exchange=WEIGHTS", "parallel.dispatch_chunks=2"};
  if (world_->size() > 1)  // alone it has all experts
    refused(64, {"--set parallel.dispatch_chunks=2", "parallel.expert_exchange is WEIGHTS"}, both);
  for (const DataUse use : {DataUse::kNone, DataUse::kEval}) (void)open(both, use);
}

TEST_F(BadInput, OneRankHasAnotherError) {
  // Every host has files of its own: what only the last rank sees, all ranks end with.
  const bool last = world_->rank() == world_->size() - 1;
  refused(
      kUsage, {"data.train[0].path", "only-there.jsonl"},
      last ? std::vector{"data.train[0].path=" + folder_ / "only-there.jsonl"} : std::vector<std::string>{});
}

}  // namespace
}  // namespace pesc
