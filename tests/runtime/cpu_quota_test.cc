// The CPU quota of control groups, versions 1 and 2, as /proc and /sys of several machines show it.
#include "runtime/cpu_quota.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "ops/core/check.h"

namespace pesc {
namespace {

class CpuQuota : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = std::filesystem::temp_directory_path() / str_cat("pesc-quota-", ::getpid());
    std::filesystem::create_directories(root_);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  [[nodiscard]] double quota() const { return cpu_quota(root_.string()); }
  std::filesystem::path root_;
};

constexpr const char* kVersion2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
constexpr const char* kVersion1 =
    "30 23 0:26 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "31 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n";

TEST_F(CpuQuota, NothingThatCanBeReadIsNoBound) {
  EXPECT_EQ(quota(), 0);
  write("proc/self/cgroup", "0::/\n");
  EXPECT_EQ(quota(), 0);
  write("proc/self/mountinfo", kVersion2);
  EXPECT_EQ(quota(), 0);  // the root group has no cpu.max
  write("sys/fs/cgroup/cpu.max", "max 100000\n");
  EXPECT_EQ(quota(), 0);
}

TEST_F(CpuQuota, InAContainerTheGroupIsTheRoot) {
  write("proc/self/cgroup", "0::/\n");
  write("proc/self/mountinfo", kVersion2);
  write("sys/fs/cgroup/cpu.max", "150000 100000\n");
  EXPECT_EQ(quota(), 1.5);
}

TEST_F(CpuQuota, TheLeastOfAllGroupsAboveCounts) {
  write("proc/self/cgroup", "0::/job.slice/step/task\n");
  write("proc/self/mountinfo", kVersion2);
  write("sys/fs/cgroup/job.slice/cpu.max", "400000 100000\n");
  write("sys/fs/cgroup/job.slice/step/cpu.max", "200000 100000\n");
  write("sys/fs/cgroup/job.slice/step/task/cpu.max", "max 100000\n");
  write("sys/fs/cgroup/other/cpu.max", "100000 100000\n");
  EXPECT_EQ(quota(), 2);
}

TEST_F(CpuQuota, Version1HasTwoFiles) {
  write("proc/self/cgroup", "5:cpuset:/other\n4:cpu,cpuacct:/docker/abc\n0::/\n");
  write("proc/self/mountinfo", kVersion1);
  write("sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us", "300000\n");
  write("sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us", "100000\n");
  write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
  write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(quota(), 3);
}

TEST_F(CpuQuota, AMountMayShowTheGroupItself) {
  write("proc/self/cgroup", "4:cpu,cpuacct:/docker/abc/inner\n");
  write("proc/self/mountinfo",
        "31 23 0:27 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n");
  write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000\n");
  write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(quota(), 0.5);
}

TEST_F(CpuQuota, OfBothVersionsTheSmaller) {
  write("proc/self/cgroup", "4:cpu:/\n0::/\n");
  write("proc/self/mountinfo",
        "31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
        "32 23 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
  write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "400000\n");
  write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(quota(), 4);
  write("sys/fs/cgroup/unified/cpu.max", "100000 50000\n");
  EXPECT_EQ(quota(), 2);
}

}  // namespace
}  // namespace pesc
