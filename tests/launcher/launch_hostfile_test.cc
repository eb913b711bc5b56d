// Hostfiles: what is understood as mpirun does, and what is refused with file, line and what to write
// instead.
#include "launcher/launch_hostfile.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "ops/core/check.h"
#include "runtime/recovery/rank_files.h"

namespace pesc {
namespace {

class Hostfile : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / str_cat("pesc-hostfile-", ::getpid());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  [[nodiscard]] std::string path() const { return (folder_ / "hosts").string(); }
  std::vector<Host> read(const std::string& text) {
    std::ofstream(path(), std::ios::binary) << text;
    return read_hostfile(path());
  }
  // The complaint; "" where it is read.
  std::string refusal(const std::string& text) {
    try {
      static_cast<void>(read(text));
    } catch (const UsageError& e) {
      return e.what();
    }
    return "";
  }
  // What mpirun is given.
  std::string canonical(const std::string& text) { return hostfile_text(read(text)); }
  std::filesystem::path folder_;
};

TEST_F(Hostfile, IsUnderstoodAsMpirunDoes) {
  EXPECT_EQ(canonical("# two\na slots=4 max_slots=8\n\n  b # none\nc\tslots=2\n"),
            "a slots=4 max_slots=8\nb\nc slots=2\n");
  EXPECT_EQ(canonical("a slots = 2"), "a slots=2\n");  // no newline at the end
  EXPECT_EQ(canonical("a slots= 2   max-slots =3 \n"), "a slots=2 max_slots=3\n");
  EXPECT_EQ(canonical("a cpu=2\nb count=3\nc slots_max=4\n"), "a slots=2\nb slots=3\nc max_slots=4\n");
  EXPECT_EQ(canonical("a\nb\na\na\n"), "a slots=3\nb\n");  // a slot for each line
  EXPECT_EQ(canonical("node-1.cluster_a.org slots=1\n10.0.0.1 slots=1\n"),
            "node-1.cluster_a.org slots=1\n10.0.0.1 slots=1\n");
}

TEST_F(Hostfile, KnowsThisHostByItsNamesAndAddresses) {
  for (const std::string name :
       {"localhost", "LOCALHOST", "localhost.localdomain", "127.0.0.1", "127.0.1.1"}) {
    EXPECT_EQ(canonical(name + " slots=2\n"), "localhost slots=2\n") << name;
    EXPECT_TRUE(is_this_host(read(name + "\n")[0].name)) << name;
  }
  EXPECT_EQ(read(host_name() + " slots=2\n")[0].name, host_name());
  EXPECT_EQ(read(host_name() + ".cluster slots=2\n")[0].name, host_name());
  EXPECT_FALSE(is_this_host(read("192.0.2.7 slots=2\n")[0].name));
}

TEST_F(Hostfile, RefusesTheRestWithFileLineAndWhatToWrite) {
  struct Case {
    std::string text;
    int line;
    std::string says;
  };
  const std::string self = host_name();
  const std::vector<Case> cases = {
      {"a slots=1\na slots=1\n", 2, "write it once, with slots=2"},
      {"a slots=3\n# c\n\na\n", 4, "'a' on line 1"},
      {"a\na slots=2\n", 2, "the same host"},
      {"a.one slots=1\na.two slots=1\n", 2, "the same host as 'a.one'"},
      {"A slots=1\na slots=1\n", 2, "the same host"},
      {self + " slots=1\nlocalhost slots=1\n", 2, "the same host as '" + self + "'"},
      {"localhost slots=1\n127.0.0.5 slots=1\n", 2, "the same host"},
      {"a slots=2\r\n", 1, "sed -i"},
      {"b\na slots=2\r\n", 2, "Windows"},
      {"\xef\xbb\xbf"
       "a slots=2\n",
       1, "byte order mark"},
      {std::string("\xff\xfe"
                   "a\0\n\0",
                   6),
       1, "UTF-16"},
      {"a slot=2\n", 1, "keyword 'slot'"},
      {"a SLOTS=2\n", 1, "write 'a slots=N'"},
      {"a Max_Slots=2\n", 1, "keyword 'Max_Slots'"},
      {"a slots:2\n", 1, "write 'a slots=N'"},
      {"a:2\n", 1, "write 'a slots=2'"},
      {"a 2\n", 1, "write 'a slots=2'"},
      {"a slots 2\n", 1, "write 'a slots=N'"},
      {"a b c\n", 1, "'b' is no keyword"},
      {"a,b\n", 1, "one host stands on a line"},
      {"a slots=2, b slots=2\n", 1, "'slots=2,' is no number"},
      {"root@a slots=2\n", 1, "write 'a' alone"},
      {"::1 slots=2\n", 1, "IPv6"},
      {"fe80::1%eth0\n", 1, "IPv6"},
      {"node[1-2] slots=2\n", 1, "ranges of hosts"},
      {"^a\n", 1, "not excluded"},
      {"+n0\n", 1, "not excluded or counted"},
      {"rank 0=a slot=0\n", 1, "keyword '0' is not known"},
      {"slots=2\n", 1, "begins with the name of a host"},
      {"// comment\n", 1, "comments begin with #"},
      {"--host slots=2\n", 1, "no host name"},
      {"n\xc3\xb6"
       "de slots=2\n",
       1,
       "'n\xc3\xb6"
       "de' is no host name"},
      {"a slots=0\n", 1, "no number of slots"},
      {"a slots=-1\n", 1, "no number of slots"},
      {"a slots=2.5\n", 1, "no number of slots"},
      {"a slots=99999999999\n", 1, "no number of slots"},
      {"a slots=\n", 1, "no number of slots"},
      {"a slots=many\n", 1, "no number of slots"},
      {"a slots=1 slots=2\n", 1, "given twice"},
      {"a slots=4 max_slots=2\n", 1, "max_slots=2 is below slots=4"},
      {"# nobody\n", 1, "names no host"},
      {"", 1, "names no host"},
  };
  for (const Case& c : cases) {
    const std::string what = refusal(c.text);
    EXPECT_NE(what.find(str_cat(path(), ":", c.line, ": ")), std::string::npos) << c.text << '\n' << what;
    EXPECT_NE(what.find(c.says), std::string::npos) << c.text << '\n' << what;
  }
}

TEST_F(Hostfile, OfAFileThatIsNotThereOrHasNoEnd) {
  const auto refused = [&](const char* name) {
    try {
      (void)read_hostfile((folder_ / name).string());
    } catch (const UsageError& e) {
      return std::string(e.what());
    }
    return std::string("read");
  };
  EXPECT_NE(refused("none").find("none cannot be read: No such file or directory"), std::string::npos);
  ASSERT_EQ(::mkfifo((folder_ / "fifo").c_str(), 0600), 0);
  EXPECT_NE(refused("fifo").find("fifo is not a regular file"), std::string::npos);
  EXPECT_NE(refusal(std::string(5 << 20, '\n')).find("too long"), std::string::npos);
}

TEST_F(Hostfile, WhatIsNoHostfileIsCalledByItsName) {
  using namespace std::string_literals;
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"\x1F\x8B\x08\x00\x00\x00\x00\x00"s, "is compressed with gzip"},
      {"PK\x03\x04\x14\x00"s, "is a zip archive"},
      {"\x7F"
       "ELF\x02\x01"s,
       "is a program"},
      {"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"},
      {"<!DOCTYPE html>\n<html>", "is a web page"},
      {"a\0 slots=2\0\n\0\0"s, "is binary"},
      {"a\0 \0s\0"s, "is text in UTF-16"},
  };
  for (const auto& [bytes, says] : cases) {
    const std::string what = refusal(bytes);
    EXPECT_NE(what.find(path() + ":1: the file " + says), std::string::npos) << what;
  }
  try {
    (void)read_hostfile(folder_.string());
    ADD_FAILURE() << "a folder was read";
  } catch (const UsageError& e) {
    EXPECT_NE(std::string(e.what()).find("is a folder; name a file with one host a line"), std::string::npos)
        << e.what();
  }
}

TEST_F(Hostfile, TooFewSlotsAreRefused) {
  const auto refused = [&](const std::string& text, int ranks) {
    try {
      check_slots(path(), read(text), ranks);
    } catch (const UsageError& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_NE(refused("a slots=2\nb slots=1\n", 4)
                .find("hosts:2: the hostfile has 3 slots on 2 hosts, too few for -n 4"),
            std::string::npos);
  EXPECT_NE(refused("a max_slots=1\n", 2).find("hosts:1: "), std::string::npos);
  EXPECT_NE(refused("a slots=1 max_slots=9\n", 2), "");
  EXPECT_NE(refused("a\na\n", 3), "");
  EXPECT_EQ(refused("a slots=2\nb slots=2\n", 4), "");
  EXPECT_EQ(refused("a slots=2\nb\n", 4), "");  // nobody has said how many
}

}  // namespace
}  // namespace pesc
