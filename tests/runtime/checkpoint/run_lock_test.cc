// The run directory's lock, held by real processes.
#include "runtime/checkpoint/run_lock.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>

#include "ops/core/check.h"

namespace pesc {
namespace {

class RunLockTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "pesc-lock-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  // The exit status of `body` in another process.
  static int in_child(const std::function<int()>& body) {
    const pid_t child = ::fork();
    if (child == 0) {
      int status = 99;
      try {
        status = body();
      } catch (const std::exception&) {
      }
      ::_exit(status);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  // In another process, with these words.
  static bool is_refused(const std::string& dir, const LockCalls& calls, const std::string& words) {
    return in_child([&] {
             try {
               (void)RunLock::acquire(dir, calls);
             } catch (const UsageError& error) {
               return std::string(error.what()).find(words) != std::string::npos ? 0 : 2;
             }
             return 1;
           }) == 0;
  }
  std::string root_;
};

TEST_F(RunLockTest, ALinkToNothingIsRefused) {
  std::filesystem::create_symlink("gone", root_ + "/run");
  std::filesystem::create_symlink("loop", root_ + "/loop");
  EXPECT_TRUE(is_refused(root_ + "/run", system_lock_calls(),
                         "is a dangling symbolic link, to gone, where nothing is"));
  EXPECT_TRUE(is_refused(root_ + "/loop", system_lock_calls(), "to loop, that leads back to itself"));
}

TEST_F(RunLockTest, TheSecondHolderIsRefusedAndNamesTheFirst) {
  const std::string dir = root_ + "/runs/a";
  const RunLock lock = RunLock::acquire(dir);
  EXPECT_EQ(lock.launch_id(), 1U);
  EXPECT_TRUE(lock.still_ours());
  const std::string holder = str_cat("pid ", ::getpid(), " on host ");
  const int status = in_child([&] {
    try {
      (void)RunLock::acquire(dir);
    } catch (const UsageError& error) {
      return std::string(error.what()).find(holder) != std::string::npos ? 0 : 2;
    }
    return 1;
  });
  EXPECT_EQ(status, 0);
  EXPECT_EQ(RunLock::current_launch_id(dir), 1U);
  EXPECT_TRUE(lock.still_ours());
}

// A file system without flock: what else there is locks, by whatever errno it says so.
TEST_F(RunLockTest, WithoutFlockFcntlLocks) {
  for (const int error : {ENOSYS, ENOLCK, EBADF, EOPNOTSUPP, EINVAL, 524}) {
    SCOPED_TRACE(error);
    LockCalls calls = system_lock_calls();
    calls.flock = [error](int) { return error; };
    const std::string dir = str_cat(root_, "/fcntl-", error);
    {
      const RunLock lock = RunLock::acquire(dir, calls);
      EXPECT_TRUE(lock.still_ours());
      EXPECT_FALSE(std::filesystem::exists(dir + "/pesc.lock.held"));
      EXPECT_TRUE(is_refused(dir, calls, str_cat("pid ", ::getpid(), " on host ")));
    }
    EXPECT_EQ(RunLock::acquire(dir, calls).launch_id(), 2U);
  }
}

TEST_F(RunLockTest, WithoutAnyLockAFileIsHeld) {
  const LockCalls none{[](int) { return ENOLCK; }, [](int) { return ENOLCK; }};
  const std::string dir = root_ + "/a", held = dir + "/pesc.lock.held";
  {
    const RunLock lock = RunLock::acquire(dir, none);
    EXPECT_TRUE(std::filesystem::exists(held));
    EXPECT_TRUE(is_refused(dir, none, str_cat("pid ", ::getpid(), " on host ")));
    EXPECT_TRUE(is_refused(dir, none, held));
    const RunLock moved(RunLock::acquire(root_ + "/b", none));
    EXPECT_TRUE(moved.still_ours());
  }
  EXPECT_FALSE(std::filesystem::exists(held));
  EXPECT_FALSE(std::filesystem::exists(root_ + "/b/pesc.lock.held"));
  // One that was killed holds nothing.
  const int status = in_child([&] {
    const RunLock lock = RunLock::acquire(dir, none);
    ::raise(SIGKILL);
    return 0;
  });
  EXPECT_EQ(status, -SIGKILL);
  EXPECT_TRUE(std::filesystem::exists(held));
  EXPECT_EQ(RunLock::acquire(dir, none).launch_id(), 3U);
}

// Nobody here can know whether they are gone.
TEST_F(RunLockTest, AHeldFileOfAnotherHostOrOfNobodyIsRefusedWithAWayOut) {
  const LockCalls none{[](int) { return ENOLCK; }, [](int) { return ENOLCK; }};
  const std::string dir = root_ + "/a", held = dir + "/pesc.lock.held";
  (void)RunLock::acquire(dir, none);
  for (const char* text : {"pid 1 on host elsewhere boot x pids y start 0\n", "", "nonsense\n"}) {
    std::ofstream(held) << text;
    EXPECT_TRUE(is_refused(dir, none, "remove '" + held + "'")) << text;
  }
  std::filesystem::remove(held);
  EXPECT_EQ(RunLock::acquire(dir, none).launch_id(), 2U);
}

TEST_F(RunLockTest, EachLaunchHasAHigherId) {
  const std::string dir = root_ + "/a";
  EXPECT_EQ(RunLock::current_launch_id(dir), 0U);
  for (uint64_t n = 1; n <= 3; ++n) {
    const RunLock lock = RunLock::acquire(dir);
    EXPECT_EQ(lock.launch_id(), n);
    EXPECT_EQ(RunLock::current_launch_id(dir), n);
  }
}

TEST_F(RunLockTest, AHolderThatIsKilledHoldsNothing) {
  const std::string dir = root_ + "/a";
  const int status = in_child([&] {
    const RunLock lock = RunLock::acquire(dir);
    ::raise(SIGKILL);
    return 0;
  });
  EXPECT_EQ(status, -SIGKILL);
  EXPECT_EQ(RunLock::acquire(dir).launch_id(), 2U);
}

TEST_F(RunLockTest, AChildOfTheHolderDoesNotKeepIt) {
  const std::string dir = root_ + "/a";
  pid_t child = -1;
  {
    const RunLock lock = RunLock::acquire(dir);
    child = ::fork();
    if (child == 0) {
      ::execl("/bin/sleep", "sleep", "30", nullptr);
      ::_exit(1);
    }
    // The lock's descriptor closes on exec; wait for that.
    const std::string exe = str_cat("/proc/", child, "/comm");
    for (int i = 0; i < 500; ++i) {
      std::string name;
      std::ifstream(exe) >> name;
      if (name == "sleep") break;
      ::usleep(10000);
    }
  }
  EXPECT_EQ(RunLock::acquire(dir).launch_id(), 2U);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

TEST_F(RunLockTest, AnOlderLaunchSeesThatItIsOver) {
  const std::string dir = root_ + "/a";
  const RunLock lock = RunLock::acquire(dir);
  // Somebody removed the lock by hand and another launch began.
  std::filesystem::remove(dir + "/pesc.lock");
  EXPECT_FALSE(lock.still_ours());
  const RunLock newer = RunLock::acquire(dir);
  EXPECT_FALSE(lock.still_ours());
  EXPECT_TRUE(newer.still_ours());
  EXPECT_EQ(newer.launch_id(), 2U);
}

TEST_F(RunLockTest, AStrangersDirectoryIsRefused) {
  std::ofstream(root_ + "/thesis.tex") << "x";
  try {
    (void)RunLock::acquire(root_);
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("thesis.tex"), std::string::npos) << error.what();
  }
  EXPECT_FALSE(std::filesystem::exists(root_ + "/pesc.lock"));
  // With a checkpoint in it, it is a run directory, whatever else lies there.
  std::filesystem::create_directory(root_ + "/step-5");
  EXPECT_EQ(RunLock::acquire(root_).launch_id(), 1U);
}

TEST_F(RunLockTest, ARunDirectoryOfThePescWithTheOldFieldNamesIsRefusedByName) {
  const std::string dir = root_ + "/old";
  std::filesystem::create_directories(dir + "/step-5");
  std::ofstream(dir + "/pesc.lock") << "pid 7 on host a\n";
  std::ofstream(dir + "/pesc.generation") << "3\n";
  try {
    (void)RunLock::acquire(dir);
    FAIL() << "the directory was taken";
  } catch (const UsageError& error) {
    const std::string said = error.what();
    for (const char* words : {"/old' is of a pesc with the old field names", "it has 'pesc.generation'",
                              "use the pesc that wrote it, or another run_dir"})
      EXPECT_NE(said.find(words), std::string::npos) << said;
  }
  EXPECT_FALSE(std::filesystem::exists(dir + "/pesc.launch_id"));
  std::string lock;
  std::getline(std::ifstream(dir + "/pesc.lock"), lock);
  EXPECT_EQ(lock, "pid 7 on host a");
  // A directory that a pesc with today's names has taken since is its.
  std::ofstream(dir + "/pesc.launch_id") << "4\n";
  EXPECT_EQ(RunLock::acquire(dir).launch_id(), 5U);
}

// The names and bytes of all files below a folder, and its folders.
std::map<std::string, std::string> contents(const std::string& folder) {
  std::map<std::string, std::string> all;
  if (!std::filesystem::exists(folder)) return all;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    std::ifstream in(entry.path(), std::ios::binary);
    all[entry.path()] = entry.is_directory()
                            ? "folder"
                            : std::string(std::istreambuf_iterator<char>(in), {}) +
                                  str_cat(entry.last_write_time().time_since_epoch().count());
  }
  return all;
}

void write_lines(const std::string& path, const std::string& text) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path, std::ios::app) << text;
}

TEST_F(RunLockTest, ARefusedStartLeavesTheDirectoryAsItWas) {
  const std::string dir = root_ + "/a";
  { const RunLock first = RunLock::acquire(dir); }
  write_lines(dir + "/heartbeats/rank-0", "launch 1");
  write_lines(dir + "/deaths/launch-1-rank-0", "{}");
  write_lines(dir + "/launches.jsonl", "{\"launch\": 1}\n");
  write_lines(dir + "/step-5/manifest.pb", "x");
  write_lines(dir + "/pesc.lock", "of another process\n");
  const auto before = contents(root_);
  {
    RunLock refused = RunLock::acquire(dir);
    EXPECT_EQ(refused.launch_id(), 2U);
    EXPECT_TRUE(refused.was_in_use());
    write_lines(dir + "/heartbeats/rank-0", "launch 2");
    write_lines(dir + "/heartbeats/rank-1", "launch 2");
    write_lines(dir + "/deaths/launch-2-rank-1", "{}");
    write_lines(dir + "/launches.jsonl", "{\"launch\": 2}\n");
    EXPECT_NE(contents(root_), before);
    EXPECT_TRUE(refused.take_back().empty());
    EXPECT_TRUE(refused.take_back().empty());  // once
  }
  EXPECT_EQ(contents(root_), before);
  EXPECT_EQ(RunLock::acquire(dir).launch_id(), 2U);
}

TEST_F(RunLockTest, ARefusedStartInANewDirectoryLeavesNone) {
  {
    RunLock refused = RunLock::acquire(root_ + "/runs/a");
    EXPECT_FALSE(refused.was_in_use());
    write_lines(root_ + "/runs/a/heartbeats/rank-0", "launch 1");
    EXPECT_TRUE(refused.take_back().empty());
  }
  EXPECT_TRUE(std::filesystem::is_empty(root_));
  // What is not a launch's stays, and its folder with it.
  {
    RunLock refused = RunLock::acquire(root_ + "/runs/b");
    write_lines(root_ + "/runs/b/notes", "mine");
    EXPECT_TRUE(refused.take_back().empty());
  }
  EXPECT_TRUE(std::filesystem::exists(root_ + "/runs/b/notes"));
  EXPECT_FALSE(std::filesystem::exists(root_ + "/runs/b/pesc.lock"));
}

// Another launch has the directory by now: what is there is its.
TEST_F(RunLockTest, ATakenDirectoryIsNotPutBack) {
  const std::string dir = root_ + "/a";
  { const RunLock first = RunLock::acquire(dir); }
  RunLock refused = RunLock::acquire(dir);
  std::filesystem::remove(dir + "/pesc.lock");
  const RunLock newer = RunLock::acquire(dir);
  const auto before = contents(root_);
  EXPECT_TRUE(refused.take_back().empty());
  EXPECT_EQ(contents(root_), before);
  EXPECT_TRUE(newer.still_ours());
}

TEST_F(RunLockTest, ADamagedLaunchIdLeavesTheLockAsItWas) {
  const std::string dir = root_ + "/a";
  { const RunLock first = RunLock::acquire(dir); }
  std::ofstream(dir + "/pesc.launch_id") << "x";
  write_lines(dir + "/pesc.lock", "of another process\n");
  const auto before = contents(root_);
  EXPECT_THROW((void)RunLock::acquire(dir), DataError);
  EXPECT_EQ(contents(root_), before);
}

TEST_F(RunLockTest, UnusableDirectoriesAndDamagedLaunchIds) {
  std::ofstream(root_ + "/file") << "x";
  EXPECT_THROW((void)RunLock::acquire(root_ + "/file/run"), IoError);
  const std::string dir = root_ + "/a";
  (void)RunLock::acquire(dir);
  for (const char* text : {"", "x", "-3", "99999999999999999999"}) {
    std::ofstream(dir + "/pesc.launch_id") << text;
    EXPECT_THROW((void)RunLock::acquire(dir), DataError) << text;
  }
  std::ofstream(dir + "/pesc.launch_id") << "41\n";
  EXPECT_EQ(RunLock::acquire(dir).launch_id(), 42U);
}

}  // namespace
}  // namespace pesc
