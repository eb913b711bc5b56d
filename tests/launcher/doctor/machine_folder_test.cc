// A folder that is looked at: what it can do, and the trouble with one that cannot be used. Nothing stays in it.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "launcher/doctor/machine.h"

namespace pesc {
namespace {

class DoctorFolder : public testing::Test {
 protected:
  DoctorFolder() : path_(testing::TempDir() + "/pesc-folder-XXXXXX") {
    if (::mkdtemp(path_.data()) == nullptr) std::abort();
  }
  ~DoctorFolder() override { std::filesystem::remove_all(path_); }
  std::string path_;
};

TEST_F(DoctorFolder, IsWrittenLockedAndLeftEmpty) {
  const FolderFacts f = look_at_folder(path_);
  EXPECT_EQ(f.trouble, "");
  EXPECT_EQ(f.path, std::filesystem::path(path_).lexically_normal().string());
  EXPECT_FALSE(f.filesystem.empty());
  EXPECT_GT(f.bytes, 0);
  EXPECT_GE(f.bytes, f.free_bytes);
  EXPECT_TRUE(f.flock);
  EXPECT_TRUE(f.fcntl);
  EXPECT_GT(f.sync_seconds, 0);
  EXPECT_LT(std::abs(f.clock_ahead), 60);
  EXPECT_TRUE(std::filesystem::is_empty(path_));
}

TEST_F(DoctorFolder, TroubleIsNamed) {
  EXPECT_NE(look_at_folder(path_ + "/none").trouble.find("No such file"), std::string::npos);
  EXPECT_NE(look_at_folder("/dev/null").trouble.find("no folder"), std::string::npos);
  EXPECT_NE(look_at_folder("/proc").trouble.find("cannot be written"), std::string::npos);
}

}  // namespace
}  // namespace pesc
