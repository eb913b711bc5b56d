// The posix file system on real files, and the test doubles' own behaviour.
#include "runtime/filesystem/filesystem.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "tests/runtime/filesystem/faulty_filesystem.h"

namespace pesc {
namespace {

using testing::FaultyFileSystem;
using testing::MemoryFileSystem;

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

void put(FileSystem& files, const std::string& path, const std::string& text) {
  const auto file = files.create_file(path);
  file->append(bytes_of(text));
  file->sync();
  file->close();
}

template <class Call>
std::string error_of(Call call) {
  try {
    call();
  } catch (const IoError& error) {
    return error.what();
  }
  return "no error";
}

class PosixTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "pesc-fs-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  std::string at(const std::string& name) const { return join_path(root_, name); }
  std::string root_;
  FileSystem& files_ = posix_filesystem();
};

TEST_F(PosixTest, WritesReadsListsRenamesRemoves) {
  files_.create_directory(at("d"));
  files_.create_directory(at("d"));
  put(files_, at("d/b"), "0123456789");
  put(files_, at("d/a"), "");
  files_.sync_directory(at("d"));
  EXPECT_EQ(files_.list(at("d")), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(files_.size(at("d/b")), 10);
  std::string middle(4, '?');
  files_.open(at("d/b"))->read(3, std::as_writable_bytes(std::span(middle)));
  EXPECT_EQ(middle, "3456");
  put(files_, at("d/b"), "new");
  EXPECT_EQ(files_.read_all(at("d/b"), 3), "new");
  files_.rename(at("d"), at("e"));
  EXPECT_EQ(files_.kind(at("d")), FileKind::kNone);
  EXPECT_EQ(files_.kind(at("e")), FileKind::kDirectory);
  EXPECT_EQ(files_.kind(at("e/a")), FileKind::kFile);
  files_.remove_all(at("e"));
  files_.remove_all(at("e"));
  EXPECT_FALSE(files_.exists(at("e")));
}

// "Cannot do this here" is no failure; "has failed" is.
TEST_F(PosixTest, ADirectoryOrFileThatCannotBeSyncedHereIsAccepted) {
  int error = 0;
  const auto files = posix_filesystem_with([&](int) {
    errno = error;
    return error == 0 ? 0 : -1;
  });
  for (const int code : {EINVAL, ENOSYS, EOPNOTSUPP, EBADF, EISDIR, 524}) {
    error = code;
    EXPECT_EQ(error_of([&] { files->sync_directory(root_); }), "no error") << code;
  }
  for (const int code : {EINVAL, ENOSYS, EOPNOTSUPP, 524}) {
    error = code;
    EXPECT_EQ(error_of([&] { put(*files, at("f"), "x"); }), "no error") << code;
  }
  for (const int code : {EIO, ENOSPC, EDQUOT, EROFS}) {
    error = code;
    EXPECT_NE(error_of([&] { files->sync_directory(root_); }).find("sync directory"), std::string::npos)
        << code;
    EXPECT_NE(error_of([&] { put(*files, at("f"), "x"); }).find("sync"), std::string::npos) << code;
  }
  error = EBADF;  // of a file it would be our mistake
  EXPECT_NE(error_of([&] { put(*files, at("f"), "x"); }), "no error");
}

TEST_F(PosixTest, ErrorsNameOperationPathAndReason) {
  const std::string missing = error_of([&] { (void)files_.open(at("none")); });
  EXPECT_NE(missing.find("open"), std::string::npos) << missing;
  EXPECT_NE(missing.find(at("none")), std::string::npos) << missing;
  EXPECT_NE(missing.find("No such file"), std::string::npos) << missing;
  put(files_, at("f"), "12345");
  std::string six(6, '?');
  EXPECT_NE(error_of([&] {
              files_.open(at("f"))->read(0, std::as_writable_bytes(std::span(six)));
            }).find("ends at byte 5"),
            std::string::npos);
  EXPECT_NE(error_of([&] { (void)files_.read_all(at("f"), 4); }).find("more than 4"), std::string::npos);
  EXPECT_THROW(files_.create_directory(at("f")), IoError);
  EXPECT_THROW(files_.create_directory(at("none/d")), IoError);
  EXPECT_THROW((void)files_.list(at("f")), IoError);
  EXPECT_THROW(files_.remove(at("none")), IoError);
  EXPECT_THROW(files_.sync_directory(at("none")), IoError);
}

TEST_F(PosixTest, FullDiskIsAnError) {
  const auto file = files_.create_file("/dev/full");
  const std::string text = error_of([&] { file->append(bytes_of("x")); });
  EXPECT_NE(text.find("No space left on device"), std::string::npos) << text;
}

TEST_F(PosixTest, RenameNeverReplacesAFullDirectory) {
  for (const char* name : {"a", "b"}) {
    files_.create_directory(at(name));
    put(files_, at(name) + "/x", name);
  }
  EXPECT_THROW(files_.rename(at("a"), at("b")), IoError);
  EXPECT_EQ(files_.read_all(at("b/x"), 10), "b");
}

TEST_F(PosixTest, LinksAndFifosAreNotOpened) {
  put(files_, at("secret"), "s");
  ASSERT_EQ(::symlink(at("secret").c_str(), at("link").c_str()), 0);
  ASSERT_EQ(::mkfifo(at("fifo").c_str(), 0600), 0);
  EXPECT_NE(error_of([&] { (void)files_.open(at("link")); }).find("symbolic link"), std::string::npos);
  EXPECT_NE(error_of([&] { (void)files_.open(at("fifo")); }).find("not a regular file"), std::string::npos);
  EXPECT_THROW((void)files_.open(root_), IoError);
  EXPECT_EQ(files_.kind(at("link")), FileKind::kOther);
}

TEST_F(PosixTest, RemoveAllDoesNotFollowLinks) {
  files_.create_directory(at("keep"));
  put(files_, at("keep/x"), "x");
  files_.create_directory(at("drop"));
  ASSERT_EQ(::symlink(at("keep").c_str(), at("drop/link").c_str()), 0);
  files_.remove_all(at("drop"));
  EXPECT_FALSE(files_.exists(at("drop")));
  EXPECT_EQ(files_.read_all(at("keep/x"), 9), "x");
}

TEST(MemoryFileSystemTest, ACrashKeepsExactlyWhatWasSynced) {
  MemoryFileSystem files;
  files.create_directory("d");
  files.sync_directory("");
  put(files, "d/synced", "old");
  put(files, "d/unlisted", "x");
  files.remove("d/unlisted");
  files.sync_directory("d");
  put(files, "d/unlisted", "x");
  const auto file = files.create_file("d/synced");
  file->append(bytes_of("newer"));
  EXPECT_EQ(files.read_all("d/synced", 9), "newer");
  files.crash();
  EXPECT_EQ(files.list("d"), std::vector<std::string>{"synced"});
  EXPECT_EQ(files.read_all("d/synced", 9), "old");
}

TEST(MemoryFileSystemTest, ASeededCrashDrawsEveryOutcome) {
  std::set<std::string> seen;
  for (uint64_t seed = 0; seed < 64; ++seed) {
    MemoryFileSystem files;
    put(files, "f", "");
    files.sync_directory("");
    const auto file = files.create_file("f");
    file->append(bytes_of("abcd"));
    files.crash(seed);
    seen.insert(files.read_all("f", 9));
  }
  EXPECT_EQ(seen, (std::set<std::string>{"", "ab", "abcd"}));
}

TEST(FaultyFileSystemTest, FailsTheKthStopsOrFillsUp) {
  MemoryFileSystem memory;
  FaultyFileSystem files(memory);
  files.fail_at(1, EIO);
  const auto file = files.create_file("f");
  EXPECT_THROW(file->append(bytes_of("abc")), IoError);
  file->append(bytes_of("abc"));
  files.stop_at(1);
  file->append(bytes_of("d"));
  EXPECT_THROW(file->sync(), IoError);
  EXPECT_THROW((void)files.list(""), IoError);
  files.heal();
  files.limit_bytes(2);
  EXPECT_NE(error_of([&] { file->append(bytes_of("efg")); }).find("No space"), std::string::npos);
  EXPECT_EQ(files.read_all("f", 9), "abcdef");
}

}  // namespace
}  // namespace pesc
