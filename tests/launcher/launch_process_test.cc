#include "launcher/launch_process.h"

#include <gtest/gtest.h>

namespace pesc {
namespace {

using Lines = std::deque<std::string>;

TEST(TagFilter, PartsLinesByRank) {
  TagFilter f;
  EXPECT_EQ(f.take("[1,0]<stderr>:a\n[1,12]<stderr>:b\nmpirun noticed\n[1,0]<stdout>:c\n"),
            "a\nb\nmpirun noticed\nc\n");
  EXPECT_EQ(f.last_lines().at(0), (Lines{"a", "c"}));
  EXPECT_EQ(f.last_lines().at(12), Lines{"b"});
  EXPECT_EQ(f.last_lines().at(kMpirunItself), Lines{"mpirun noticed"});
}

TEST(TagFilter, ATagMayComeInPieces) {
  const std::string text = "[1,3]<stderr>:one\n[1,4]<stderr>:two\n[1,3]<stderr>:[1,2] is no tag\n[9]\n";
  for (size_t piece = 1; piece < text.size(); ++piece) {
    TagFilter f;
    std::string out;
    for (size_t at = 0; at < text.size(); at += piece) out += f.take(text.substr(at, piece));
    EXPECT_EQ(out + f.flush(), "one\ntwo\n[1,2] is no tag\n[9]\n") << piece;
    EXPECT_EQ(f.last_lines().at(3), (Lines{"one", "[1,2] is no tag"})) << piece;
    EXPECT_EQ(f.last_lines().at(4), Lines{"two"}) << piece;
    EXPECT_EQ(f.last_lines().at(kMpirunItself), Lines{"[9]"}) << piece;
  }
}

TEST(TagFilter, AProgressLineStaysOne) {
  TagFilter f;
  EXPECT_EQ(f.take("[1,0]<stderr>:\rstep 1[1,0]<stderr>:\rstep 2[1,1]<stderr>:oh\n[1,0]<stderr>:\n"),
            "\rstep 1\rstep 2oh\n\n");
  EXPECT_EQ(f.last_lines().at(0), Lines{"step 2"});
  EXPECT_EQ(f.last_lines().at(1), Lines{"oh"});
}

TEST(TagFilter, TheEndMayComeWithoutANewline) {
  TagFilter f;
  EXPECT_EQ(f.take("[1,0]<stderr>:half a line [1,"), "half a line ");
  EXPECT_EQ(f.flush(), "[1,");
  EXPECT_EQ(f.last_lines().at(0), Lines{"half a line [1,"});
}

TEST(TagFilter, KeepsTheLastTwenty) {
  TagFilter f;
  for (int i = 0; i < 50; ++i) f.take("[1,0]<stderr>:" + std::to_string(i) + "\n");
  EXPECT_EQ(f.last_lines().at(0).size(), 20u);
  EXPECT_EQ(f.last_lines().at(0).back(), "49");
}

}  // namespace
}  // namespace pesc
