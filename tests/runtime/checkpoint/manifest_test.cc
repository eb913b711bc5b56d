// Hostile manifests: right checksum, wrong content. Each must be refused, quickly and with no memory to speak
// of.
#include "runtime/checkpoint/manifest.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <random>

#include "ops/core/check.h"

namespace pesc {
namespace {

constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();

proto::ManifestPiece piece(int64_t row, int64_t rows, int64_t col, int64_t cols, int64_t offset) {
  proto::ManifestPiece p;
  p.set_row(row);
  p.set_rows(rows);
  p.set_col(col);
  p.set_cols(cols);
  p.set_offset(offset);
  p.set_bytes(rows * cols * 4);
  return p;
}

// Two files; one tensor [4, 6] in four pieces 2x2, one [1, 8] in one piece.
proto::Manifest good() {
  proto::Manifest m;
  m.set_format_version(kManifestVersion);
  m.set_step(7);
  m.mutable_layout()->set_world_size(2);
  for (const int rank : {0, 1}) {
    auto& file = *m.add_files();
    file.set_name(shard_name(rank));
    file.set_size(1000 + rank * kChecksumBlockBytes);
    for (int i = 0; i <= rank; ++i) file.add_block_checksums(5);
  }
  auto& a = *m.add_tensors();
  a.set_name("a");
  a.set_dtype("F32");
  a.set_rows(4);
  a.set_cols(6);
  *a.add_pieces() = piece(0, 2, 0, 3, 100);
  *a.add_pieces() = piece(2, 2, 0, 3, 124);
  *a.add_pieces() = piece(0, 2, 3, 3, 148);
  *a.add_pieces() = piece(2, 2, 3, 3, 172);
  auto& b = *m.add_tensors();
  b.set_name("b");
  b.set_kind(proto::TensorKind::EXP_AVG);
  b.set_dtype("F32");
  b.set_rows(1);
  b.set_cols(8);
  *b.add_pieces() = piece(0, 1, 0, 8, 1000 + kChecksumBlockBytes - 32);
  b.mutable_pieces(0)->set_file(1);
  return m;
}

TEST(ManifestTest, AManifestIsReadAsItWasWritten) {
  const std::string bytes = serialize_manifest(good());
  const proto::Manifest back = parse_manifest(bytes, "m");
  EXPECT_EQ(back.tensors_size(), 2);
  EXPECT_EQ(back.tensors(1).name(), "b");
  EXPECT_EQ(back.files(1).block_checksums_size(), 2);
  // An ordinary protobuf message, checksum included.
  proto::Manifest plain;
  ASSERT_TRUE(plain.ParseFromString(bytes));
  EXPECT_NE(plain.checksum(), 0U);
}

TEST(ManifestTest, HostileOnesAreRefused) {
  using M = proto::Manifest;
  const std::vector<std::pair<const char*, std::function<void(M&)>>> cases = {
      {"format_version is 2", [](M& m) { m.set_format_version(2); }},
      {"step", [](M& m) { m.set_step(-1); }},
      {"consumed_samples", [](M& m) { m.set_consumed_samples(-1); }},
      {"world", [](M& m) { m.mutable_layout()->set_world_size(0); }},
      {"file name", [](M& m) { m.mutable_files(0)->set_name("../shard-00000.safetensors"); }},
      {"file name", [](M& m) { m.mutable_files(0)->set_name("/etc/passwd"); }},
      {"file name", [](M& m) { m.mutable_files(0)->set_name("shard-../00.safetensors"); }},
      {"file name", [](M& m) { m.mutable_files(0)->set_name(std::string("shard-00000\0.safetensors", 24)); }},
      {"file name", [](M& m) { m.mutable_files(0)->set_name(""); }},
      {"twice", [](M& m) { m.mutable_files(1)->set_name(shard_name(0)); }},
      {"block checksums", [](M& m) { m.mutable_files(0)->set_size(kHuge); }},
      {"block checksums", [](M& m) { m.mutable_files(0)->set_size(0); }},
      {"block checksums", [](M& m) { m.mutable_files(0)->set_size(-5); }},
      {"block checksums", [](M& m) { m.mutable_files(0)->add_block_checksums(1); }},
      {"a tensor has no name", [](M& m) { m.mutable_tensors(0)->set_name(""); }},
      {"kind 9", [](M& m) { m.mutable_tensors(0)->set_kind(static_cast<proto::TensorKind::Value>(9)); }},
      {"kind -1", [](M& m) { m.mutable_tensors(0)->set_kind(static_cast<proto::TensorKind::Value>(-1)); }},
      {"dtype", [](M& m) { m.mutable_tensors(0)->set_dtype("F16"); }},
      {"shape", [](M& m) { m.mutable_tensors(0)->set_rows(0); }},
      {"shape", [](M& m) { m.mutable_tensors(0)->set_cols(-6); }},
      {"shape", [](M& m) { m.mutable_tensors(0)->set_rows(kHuge); }},
      {"cover", [](M& m) { m.mutable_tensors(0)->set_rows(int64_t{1} << 40); }},
      {"cover", [](M& m) { m.mutable_tensors(0)->mutable_pieces()->RemoveLast(); }},
      {"cover 0", [](M& m) { m.mutable_tensors(0)->clear_pieces(); }},
      {"overlap", [](M& m) { *m.mutable_tensors(0)->add_pieces() = piece(0, 1, 0, 1, 500); }},
      {"pieces overlap", [](M& m) { m.mutable_tensors(0)->mutable_pieces(1)->set_row(1); }},
      {"pieces overlap", [](M& m) { m.mutable_tensors(0)->mutable_pieces(3)->set_col(2); }},
      {"outside", [](M& m) { m.mutable_tensors(0)->mutable_pieces(1)->set_row(3); }},
      {"outside", [](M& m) { m.mutable_tensors(0)->mutable_pieces(1)->set_row(-1); }},
      {"outside", [](M& m) { m.mutable_tensors(0)->mutable_pieces(1)->set_row(kHuge); }},
      {"outside", [](M& m) { m.mutable_tensors(0)->mutable_pieces(1)->set_rows(kHuge); }},
      {"outside", [](M& m) { m.mutable_tensors(0)->mutable_pieces(1)->set_cols(0); }},
      {"file number", [](M& m) { m.mutable_tensors(0)->mutable_pieces(1)->set_file(2); }},
      {"file number", [](M& m) { m.mutable_tensors(0)->mutable_pieces(1)->set_file(-1); }},
      {"bytes", [](M& m) { m.mutable_tensors(0)->mutable_pieces(1)->set_bytes(25); }},
      {"lie beyond a file", [](M& m) { m.mutable_tensors(0)->mutable_pieces(1)->set_offset(990); }},
      {"lie beyond a file", [](M& m) { m.mutable_tensors(0)->mutable_pieces(1)->set_offset(kHuge); }},
      {"lie beyond a file", [](M& m) { m.mutable_tensors(0)->mutable_pieces(1)->set_offset(-8); }},
      {"byte ranges overlap", [](M& m) { m.mutable_tensors(0)->mutable_pieces(1)->set_offset(110); }},
      {"twice",
       [](M& m) {
         m.mutable_tensors(1)->set_name("a"), m.mutable_tensors(1)->set_kind(m.tensors(0).kind());
       }},
  };
  validate_manifest(good(), "m");
  for (const auto& [reason, change] : cases) {
    proto::Manifest manifest = good();
    change(manifest);
    try {
      (void)parse_manifest(serialize_manifest(manifest), "run/step-7/manifest.pb");
      ADD_FAILURE() << "accepted: " << reason;
    } catch (const DataError& error) {
      const std::string text = error.what();
      EXPECT_NE(text.find(reason), std::string::npos) << text << " should say " << reason;
      EXPECT_NE(text.find("run/step-7/manifest.pb"), std::string::npos) << text;
    }
  }
}

TEST(ManifestTest, CutOrGarbledBytesAreRefused) {
  const std::string bytes = serialize_manifest(good());
  for (size_t n = 0; n < bytes.size(); ++n)
    EXPECT_THROW((void)parse_manifest(bytes.substr(0, n), "m"), DataError);
  EXPECT_THROW((void)parse_manifest(bytes + '\0', "m"), DataError);
  std::mt19937 random(1);
  for (int i = 0; i < 1000; ++i) {
    std::string garbage(random() % 300, '\0');
    for (char& c : garbage) c = static_cast<char>(random());
    EXPECT_THROW((void)parse_manifest(garbage, "m"), DataError);
  }
}

// Random rectangles on a small grid against counting its cells.
TEST(ManifestTest, TheCoverCheckAgreesWithCounting) {
  std::mt19937 random(3);
  int accepted = 0;
  for (int trial = 0; trial < 4000; ++trial) {
    proto::Manifest manifest = good();
    auto& tensor = *manifest.mutable_tensors(0);
    tensor.clear_pieces();
    // A guillotine cut of the 4x6 grid, half of the time with one piece disturbed.
    std::vector<proto::ManifestPiece> pieces{piece(0, 4, 0, 6, 0)};
    for (int cuts = static_cast<int>(random() % 6); cuts > 0; --cuts) {
      auto& p = pieces[random() % pieces.size()];
      auto rest = p;
      if (random() % 2 == 0 && p.rows() > 1) {
        const int64_t at = 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(p.rows() - 1));
        rest.set_row(p.row() + at), rest.set_rows(p.rows() - at), p.set_rows(at);
      } else if (p.cols() > 1) {
        const int64_t at = 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(p.cols() - 1));
        rest.set_col(p.col() + at), rest.set_cols(p.cols() - at), p.set_cols(at);
      } else {
        continue;
      }
      pieces.push_back(rest);
    }
    if (random() % 2 == 0) {
      auto& p = pieces[random() % pieces.size()];
      p.set_row(static_cast<int64_t>(random() % 4));
      p.set_col(static_cast<int64_t>(random() % 6));
    }
    int times[4][6] = {};
    bool inside = true;
    int64_t offset = 0;
    for (auto& p : pieces) {
      p = piece(p.row(), p.rows(), p.col(), p.cols(), offset);
      offset += p.bytes();
      *tensor.add_pieces() = p;
      for (int64_t r = p.row(); r < p.row() + p.rows(); ++r)
        for (int64_t c = p.col(); c < p.col() + p.cols(); ++c)
          r < 4 && c < 6 ? void(++times[r][c]) : void(inside = false);
    }
    bool exact = inside;
    for (const auto& row : times)
      for (const int n : row) exact = exact && n == 1;
    accepted += exact ? 1 : 0;
    if (exact)
      EXPECT_NO_THROW(validate_manifest(manifest, "m"));
    else
      EXPECT_THROW(validate_manifest(manifest, "m"), DataError);
  }
  EXPECT_GT(accepted, 1000);
  EXPECT_LT(accepted, 3900);
}

TEST(ManifestTest, AShardsNameIsRecognisedAndNoOther) {
  EXPECT_EQ(shard_name(3), "shard-00003.safetensors");
  EXPECT_TRUE(is_shard_name(shard_name(123456)));
  for (const char* name :
       {"shard-1.safetensors", "shard-0000a.safetensors", "shard-00001.safetensors.", "shard-00001"})
    EXPECT_FALSE(is_shard_name(name)) << name;
}

}  // namespace
}  // namespace pesc
