// Output that cannot be written is an error in words: each case in a child process, whose descriptors are its
// own.
#include "launcher/standard_output.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>

#include "ops/core/check.h"
#include "runtime/filesystem/filesystem.h"

namespace pesc {
namespace {

class StandardOutputTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "pesc-output-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  // The exit status of `body` in another process, or minus the signal that ended it.
  static int in_child(const std::function<int()>& body) {
    std::fflush(nullptr);
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
  static void write_to(const char* path) { ::dup2(::open(path, O_WRONLY), STDOUT_FILENO); }
  std::string root_;
};

TEST_F(StandardOutputTest, AFullDiskIsAnError) {
  const auto print = [](size_t bytes, int code) {
    return in_child([&] {
      write_to("/dev/full");
      const std::string text(bytes, 'x');
      std::fwrite(text.data(), 1, text.size(), stdout);
      return check_standard_output(code);
    });
  };
  EXPECT_EQ(print(1, 0), 74);
  EXPECT_EQ(print(1 << 20, 0), 74);  // failed before the end, too
  EXPECT_EQ(print(1, 1), 74);        // the result of inspect
  EXPECT_EQ(print(1, 65), 65);       // the first error counts
  EXPECT_EQ(print(0, 0), 0);         // nothing was to be written
}

TEST_F(StandardOutputTest, OutputThatArrivesIsNoError) {
  EXPECT_EQ(in_child([] {
              write_to("/dev/null");
              std::printf("text");
              return check_standard_output(0);
            }),
            0);
}

TEST_F(StandardOutputTest, APipeThatNobodyReadsIsAnErrorAndNoSignal) {
  EXPECT_EQ(in_child([] {
              ignore_write_signals();
              int ends[2];
              if (::pipe(ends) != 0) return 1;
              ::dup2(ends[1], STDOUT_FILENO);
              ::close(ends[0]);
              std::printf("text");
              return check_standard_output(0);
            }),
            74);
}

TEST_F(StandardOutputTest, ALimitOnFileSizesIsAnErrorThatNamesTheFile) {
  const std::string path = join_path(root_, "file");
  EXPECT_EQ(in_child([&] {
              ignore_write_signals();
              const rlimit limit{1000, 1000};
              ::setrlimit(RLIMIT_FSIZE, &limit);
              const std::string text(3000, 'x');
              try {
                posix_filesystem().create_file(path)->append(std::as_bytes(std::span(text)));
              } catch (const IoError& error) {
                return error.number == EFBIG && std::string(error.what()).find(path) != std::string::npos ? 74
                                                                                                          : 2;
              }
              return 1;
            }),
            74);
  EXPECT_EQ(std::filesystem::file_size(path), 1000U);
}

TEST_F(StandardOutputTest, AnotherProgramGetsTheSignalsAsItExpectsThem) {
  EXPECT_EQ(in_child([] {
              ignore_write_signals();
              default_write_signals();
              return ::raise(SIGXFSZ);
            }),
            -SIGXFSZ);
}

TEST_F(StandardOutputTest, OutIsCheckedBeforeTheWork) {
  const std::string file = join_path(root_, "report.json");
  check_out_file(file);
  EXPECT_TRUE(std::filesystem::is_empty(root_)) << "the check leaves nothing";
  std::ofstream(file) << "kept";
  check_out_file(file);
  std::string text;
  std::ifstream(file) >> text;
  EXPECT_EQ(text, "kept");
  EXPECT_THROW(check_out_file(join_path(root_, "none/report.json")), IoError);
  EXPECT_THROW(check_out_file(join_path(file, "report.json")), IoError);
  EXPECT_THROW(check_out_file(root_), UsageError);
  EXPECT_THROW(check_out_file("/dev/null"), UsageError);
  ASSERT_EQ(::mkfifo(join_path(root_, "fifo").c_str(), 0600), 0);
  EXPECT_THROW(check_out_file(join_path(root_, "fifo")), UsageError);
  check_out_folder(join_path(root_, "new/folder"));
  check_out_folder(root_);
  EXPECT_FALSE(std::filesystem::exists(join_path(root_, "new")));
  EXPECT_THROW(check_out_folder(join_path(file, "folder")), UsageError);
}

}  // namespace
}  // namespace pesc
