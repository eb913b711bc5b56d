#include "runtime/weight_cache/weight_cache.h"

#include <glog/logging.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <thread>
#include <vector>

#include "model/quantized_weights.h"
#include "tests/runtime/filesystem/faulty_filesystem.h"
#include "tests/runtime/hf/temp_folder.h"

namespace pesc {
namespace {

namespace fs = std::filesystem;
using testing::FaultyFileSystem;

const std::string kBaseA = "0123456789abcdef0123456789abcdef";
const std::string kBaseB = "ffffffffffffffffffffffffffffffff";

ShardSpec weight_of(const std::string& name, int64_t rows, int64_t cols) {
  return {name, rows, cols, 0, rows, 0, cols};
}
// The first has two blocks of codes in FP8.
const std::vector<ShardSpec> kWeights{weight_of("large.weight", 2100, 2051), weight_of("odd.weight", 90, 301),
                                      weight_of("small.weight", 3, 16)};
const std::vector<ShardSpec> kFew{kWeights[1], kWeights[2]};

// Values are a function of the name and the place. Counts what is read of it.
class Base : public WeightSource {
 public:
  [[nodiscard]] int64_t bytes_read() const override { return 4 * values_read; }
  [[nodiscard]] bool has(const std::string&) const override { return true; }
  void read(const ShardSpec& piece, float* to) override {
    if (before_read) before_read(piece);
    values_read += piece.size();
    const auto seed = static_cast<int64_t>(piece.name[0]);
    for (int64_t r = piece.row; r < piece.row + piece.rows; ++r)
      for (int64_t c = piece.col; c < piece.col + piece.cols; ++c)
        *to++ = static_cast<float>((r * 7919 + c * 104729 + seed * 31) % 1009 - 500) *
                (r % 11 == 3 ? 0.0F : 1e-3F) * factor;
  }
  std::atomic<int64_t> values_read = 0;
  std::function<void(const ShardSpec&)> before_read;
  float factor = 1;
};

struct Piece {
  Arena memory;
  FrozenLinear linear;
  Piece(const FrozenType& type, const ShardSpec& spec)
      : memory("weight", Device{}, bytes(type, spec)),
        linear(FrozenLinear::allocate(memory, type, spec.rows, spec.cols, 0)) {}
  [[nodiscard]] std::string text() const {
    std::string all;
    for (Tensor t : {linear.weight, linear.scales, linear.nf4.codes, linear.nf4.absmax, linear.nf4.nested,
                     linear.nf4.first}) {
      if (t.data == nullptr) continue;
      all.append(static_cast<const char*>(t.data), static_cast<size_t>(t.rows * t.ld * dtype_bytes(t.dtype)));
    }
    return all;
  }

 private:
  static int64_t bytes(const FrozenType& type, const ShardSpec& spec) {
    Arena plan = Arena::planning("weight");
    (void)FrozenLinear::allocate(plan, type, spec.rows, spec.cols, 0);
    return plan.used();
  }
};

class WeightCaches : public ::testing::Test {
 protected:
  [[nodiscard]] WeightCacheOptions options(FrozenFormat format = FrozenFormat::kNF4) const {
    WeightCacheOptions o;
    o.directory = folder_ / "cache";
    o.base_digest = kBaseA;
    o.format = format;
    o.threads = 2;
    o.patience_seconds = 60;
    return o;
  }
  [[nodiscard]] static std::string piece_of(WeightSource& source, const FrozenType& type,
                                            const ShardSpec& spec) {
    Stream stream((Device()));
    const Piece piece(type, spec);
    EXPECT_TRUE(source.write_quantized(stream, spec, piece.linear));
    return piece.text();
  }
  [[nodiscard]] std::string right_piece(const FrozenType& type, const ShardSpec& spec) {
    Stream stream((Device()));
    const Piece piece(type, spec);
    write_quantized(
        stream, spec,
        [&](int64_t row, int64_t rows, float* to) {
          base_.read({spec.name, spec.global_rows, spec.global_cols, row, rows, 0, spec.global_cols}, to);
        },
        piece.linear);
    return piece.text();
  }
  void expect_right(WeightSource& cache, FrozenFormat format, const std::vector<ShardSpec>& weights) {
    for (const ShardSpec& w : weights)
      EXPECT_EQ(piece_of(cache, format, w), right_piece(format, w)) << w.name;
  }
  // Names below the cache that have this in them.
  [[nodiscard]] int64_t count(const std::string& part) const {
    return std::ranges::count_if(fs::recursive_directory_iterator(folder_ / "cache"), [&](const auto& entry) {
      return entry.path().filename().string().find(part) != std::string::npos;
    });
  }
  static std::string message_of(const auto& call) {
    try {
      call();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  TempFolder folder_;
  Base base_;
};

TEST_F(WeightCaches, GivesTheBytesThatALoadWithoutItMakes) {
  for (const FrozenFormat format : {FrozenFormat::kFP8, FrozenFormat::kNF4}) {
    WeightCache cache(base_, options(format));
    cache.fill(kWeights);
    EXPECT_EQ(count(".tmp."), 0);
    EXPECT_EQ(count(".lock"), 0);
    for (const FrozenType& type : {FrozenType(format), FrozenType(format, DType::kF32, FrozenGemm::kFP8)}) {
      for (const ShardSpec& w : kWeights) {
        const int64_t r = w.global_rows, c = w.global_cols;
        for (ShardSpec piece : {w, ShardSpec{w.name, r, c, r / 3, r - r / 3, 0, c},
                                ShardSpec{w.name, r, c, 0, r, c / 3, c - c / 3 - 1}}) {
          const std::string right = right_piece(type, piece);
          const int64_t before = base_.values_read;
          EXPECT_TRUE(piece_of(cache, type, piece) == right)
              << w.name << " from " << piece.row << ", " << piece.col;
          EXPECT_EQ(base_.values_read, before);
        }
      }
    }
    // A later start reads nothing of the base.
    const int64_t before = base_.values_read;
    WeightCache(base_, options(format)).fill(kWeights);
    EXPECT_EQ(base_.values_read, before);
  }
  // A plain weight is not its business.
  Stream stream((Device()));
  const Piece plain(FrozenFormat::kF32, kWeights[1]);
  EXPECT_FALSE(WeightCache(base_, options()).write_quantized(stream, kWeights[1], plain.linear));
}

TEST_F(WeightCaches, AnotherBaseOrFormatHasFilesOfItsOwn) {
  WeightCache(base_, options()).fill(kFew);
  WeightCacheOptions other = options();
  other.base_digest = kBaseB;
  base_.factor = 2;
  WeightCache of_b(base_, other);
  of_b.fill(kFew);
  expect_right(of_b, FrozenFormat::kNF4, kFew);
  WeightCache fp8(base_, options(FrozenFormat::kFP8));
  fp8.fill(kFew);
  expect_right(fp8, FrozenFormat::kFP8, kFew);
  base_.factor = 1;
  WeightCache of_a(base_, options());
  of_a.fill(kFew);
  expect_right(of_a, FrozenFormat::kNF4, kFew);
  // A file that somebody has moved is not taken for what its name says.
  const std::string name = kFew[0].name;
  fs::copy_file(of_b.folder() + "/" + name, of_a.folder() + "/" + name, fs::copy_options::overwrite_existing);
  of_a.fill(kFew);
  EXPECT_EQ(count(".damaged"), 1);
  expect_right(of_a, FrozenFormat::kNF4, kFew);
}

// A cut and a flipped bit anywhere: never other bytes of a weight.
TEST_F(WeightCaches, DamagedFilesArePutAsideAndMadeAnew) {
  const auto level = FLAGS_minloglevel;  // hundreds of warnings
  FLAGS_minloglevel = google::GLOG_ERROR;
  for (const FrozenFormat format : {FrozenFormat::kFP8, FrozenFormat::kNF4}) {
    WeightCache cache(base_, options(format));
    cache.fill(kFew);
    const std::string path = cache.folder() + "/" + kFew[1].name;
    std::string whole;
    {
      std::ifstream in(path, std::ios::binary);
      whole.assign(std::istreambuf_iterator<char>(in), {});
    }
    const std::string right = right_piece(format, kFew[1]);
    const auto expect_made_anew = [&](const std::string& damaged, size_t at, bool at_start) {
      SCOPED_TRACE(str_cat(frozen_format_name(format), ", byte ", at, " of ", whole.size()));
      std::ofstream(path, std::ios::binary) << damaged;
      WeightCache again(base_, options(format));
      if (at_start) again.fill(kFew);
      EXPECT_TRUE(piece_of(again, format, kFew[1]) == right);
      EXPECT_TRUE(fs::exists(path + ".damaged"));
      fs::remove(path + ".damaged");
      EXPECT_EQ(fs::file_size(path), whole.size());
    };
    for (size_t at = 0; at < whole.size(); ++at) {
      std::string damaged = whole;
      damaged[at] = static_cast<char>(damaged[at] ^ 1 << at % 8);
      expect_made_anew(damaged, at, at % 2 == 0);
      if (at % 16 == 5) expect_made_anew(whole.substr(0, at), at, at % 3 == 0);
    }
    expect_made_anew(whole + "x", whole.size(), true);
    // One that is gone is made too.
    fs::remove(path);
    EXPECT_TRUE(piece_of(cache, format, kFew[1]) == right);
  }
  FLAGS_minloglevel = level;
}

TEST_F(WeightCaches, RanksAndRunsAtOnceQuantiseOnce) {
  WeightCache(base_, options()).fill(kWeights);
  const int64_t once = base_.values_read;
  for (const int ranks : {2, 5}) {
    fs::remove_all(folder_ / "cache");
    base_.values_read = 0;
    std::vector<std::thread> threads;
    std::atomic<int> right = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      threads.emplace_back([&, rank] {
        WeightCacheOptions o = options();
        o.rank = rank;
        o.ranks = ranks;
        WeightCache cache(base_, o);
        cache.fill(kWeights);
        Stream stream((Device()));
        const Piece piece(FrozenFormat::kNF4, kWeights[0]);
        if (cache.write_quantized(stream, kWeights[0], piece.linear)) ++right;
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(base_.values_read, once);
    EXPECT_EQ(right, ranks);
    EXPECT_EQ(count(".tmp."), 0);
  }
}

// At every operation that changes a file or a folder.
TEST_F(WeightCaches, WhoeverDiesWhileItWritesLeavesNothingThatCounts) {
  for (int64_t k = 0;; ++k) {
    fs::remove_all(folder_ / "cache");
    FaultyFileSystem dying(posix_filesystem());
    WeightCache killed(base_, options(), dying);
    dying.stop_at(k);
    const std::string message = message_of([&] { killed.fill(kFew); });
    if (message.empty()) {
      EXPECT_GT(k, 10);
      break;
    }
    WeightCache next(base_, options());
    next.fill(kFew);
    expect_right(next, FrozenFormat::kNF4, kFew);
    EXPECT_EQ(count(".tmp."), 0) << k;
    EXPECT_EQ(count(".damaged"), 0) << k;
  }
}

TEST_F(WeightCaches, AProcessThatIsKilledLetsGoOfItsLock) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    int reads = 0;  // in the second pass over the first weight, when its file is begun
    base_.before_read = [&](const ShardSpec&) {
      if (++reads == 2) ::raise(SIGKILL);
    };
    WeightCacheOptions alone = options();
    alone.threads = 1;  // OpenMP does not live through a fork
    WeightCache(base_, alone).fill(kFew);
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(count(".tmp."), 1);
  EXPECT_EQ(count(".lock"), 1);
  WeightCache next(base_, options());
  next.fill(kFew);
  expect_right(next, FrozenFormat::kNF4, kFew);
  EXPECT_EQ(count(".tmp."), 0);
  EXPECT_EQ(count(".lock"), 0);
}

TEST_F(WeightCaches, ErrorsNameTheFieldAndWhatToDo) {
  FaultyFileSystem full(posix_filesystem());
  full.limit_bytes(1000);
  const std::string no_room = message_of([&] { WeightCache(base_, options(), full).fill(kFew); });
  for (const char* part :
       {"No space left on device", "model.cache_dir", "quantise the weights at every start"})
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, part, no_room);
  EXPECT_EQ(count(".tmp."), 0);
  std::ofstream(folder_ / "file") << "x";
  WeightCacheOptions in_a_file = options();
  in_a_file.directory = folder_ / "file";
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "model.cache_dir",
                      message_of([&] { WeightCache(base_, in_a_file).fill(kFew); }));
  // Nothing is written where nothing is missing.
  WeightCache(base_, options()).fill(kFew);
  FaultyFileSystem read_only(posix_filesystem());
  read_only.fail_at(0, EROFS);
  WeightCache reader(base_, options(), read_only);
  reader.fill(kFew);
  expect_right(reader, FrozenFormat::kNF4, kFew);
}

TEST_F(WeightCaches, AWeightThatIsNotFiniteIsRefusedAndNotKept) {
  base_.factor = std::numeric_limits<float>::infinity();
  for (const FrozenFormat format : {FrozenFormat::kFP8, FrozenFormat::kNF4}) {
    const std::string message = message_of([&] { WeightCache(base_, options(format)).fill(kFew); });
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "tensor 'odd.weight'", message);
    EXPECT_EQ(count(".tmp."), 0);
    EXPECT_FALSE(fs::exists(WeightCache(base_, options(format)).folder() + "/odd.weight"));
  }
}

TEST_F(WeightCaches, AnEndThatIsAskedForComesWhileAWeightIsQuantisedAndLeavesNothing) {
  WeightCacheOptions o = options();
  int64_t asked = 0;
  o.still_wanted = [&asked] {
    if (++asked == 2) throw UsageError("stopped");  // before the first rows of the first weight
  };
  EXPECT_EQ(message_of([&] { WeightCache(base_, o).fill(kFew); }), "stopped");
  EXPECT_EQ(base_.values_read, 0);
  EXPECT_EQ(count(".tmp."), 0);
  WeightCache cache(base_, options());
  cache.fill(kFew);
  expect_right(cache, FrozenFormat::kNF4, kFew);
}

TEST_F(WeightCaches, WhoWaitsIsPatientWhileThereIsProgress) {
  WeightCacheOptions o = options();
  o.patience_seconds = 0.5;
  WeightCache cache(base_, o);
  fs::create_directories(cache.folder());
  std::string why;
  auto lock = CacheLock::try_acquire(CacheLockFile{cache.folder() + "/odd.weight.lock", "weight"}, why);
  ASSERT_NE(lock, nullptr);
  lock->write("pid 1 on host other");
  const std::string message = message_of([&] { cache.fill(kFew); });
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "lock of odd.weight", message);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "pid 1 on host other", message);
  std::thread waiting([&] { cache.fill(kFew); });
  for (int i = 0; i < 6; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    lock->write(str_cat("row ", i));
  }
  lock.reset();
  waiting.join();
  expect_right(cache, FrozenFormat::kNF4, kFew);
}

}  // namespace
}  // namespace pesc
