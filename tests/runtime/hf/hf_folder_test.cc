// Folders with one file and with shards, slices of every element type, the reference cases against a reader
// of the test's own, and what must be refused.
#include "runtime/hf/hf_folder.h"

#include <sys/stat.h>

#include <cstring>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "runtime/hf/config_json.h"
#include "runtime/hf/dtype_convert.h"
#include "runtime/hf/safetensors_write.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tests/runtime/hf/temp_folder.h"

namespace pesc {
namespace {

namespace fs = std::filesystem;
const std::string kIndex = "model.safetensors.index.json";

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// [4, 6] with value 10 r + c, which all three types hold exactly.
std::vector<float> grid() {
  std::vector<float> values;
  for (int r = 0; r < 4; ++r)
    for (int c = 0; c < 6; ++c) values.push_back(static_cast<float>(10 * r + c));
  return values;
}

SafetensorsWriteEntry entry_of(const std::string& name, DType dtype, std::vector<int64_t> shape,
                               const std::vector<float>& values) {
  std::vector<std::byte> bytes(values.size() * static_cast<size_t>(dtype_bytes(dtype)));
  if (dtype == DType::kF32) {
    std::memcpy(bytes.data(), values.data(), bytes.size());
  } else {
    for (size_t i = 0; i < values.size(); ++i) {
      uint16_t bits = f32_to_bf16(values[i]);
      if (dtype == DType::kF16) {  // small whole numbers: find the half by search
        bits = 0;
        while (f16_to_f32(bits) != values[i]) ++bits;
      }
      std::memcpy(bytes.data() + 2 * i, &bits, 2);
    }
  }
  return {name, dtype, std::move(shape), [bytes](const ByteSink& sink) { sink(bytes); }};
}

void write_tensors(const std::string& path, const std::vector<SafetensorsWriteEntry>& entries) {
  write_safetensors(path, entries, {{"format", "pt"}});
}

TEST(HfFolder, ReadsSlicesOfEveryType) {
  const TempFolder folder;
  write_tensors(
      folder / "model.safetensors",
      {entry_of("f32", DType::kF32, {4, 6}, grid()), entry_of("bf16", DType::kBF16, {4, 6}, grid()),
       entry_of("f16", DType::kF16, {4, 6}, grid()), entry_of("bias", DType::kBF16, {6}, {0, 1, 2, 3, 4, 5}),
       entry_of("row", DType::kF32, {1, 6}, {0, 1, 2, 3, 4, 5})});
  HfFolder hf(folder.path());
  EXPECT_EQ(hf.names(), (std::vector<std::string>{"bf16", "bias", "f16", "f32", "row"}));
  EXPECT_EQ(hf.bytes_read(), 0);
  for (const auto& [name, element] : std::map<std::string, int64_t>{{"f32", 4}, {"bf16", 2}, {"f16", 2}}) {
    SCOPED_TRACE(name);
    const int64_t before = hf.bytes_read();
    std::vector<float> all(24);
    hf.read({name, 4, 6, 0, 4, 0, 6}, all.data());
    EXPECT_EQ(all, grid());
    std::vector<float> block(4, -1.0F);
    hf.read({name, 4, 6, 1, 2, 3, 2}, block.data());
    EXPECT_EQ(block, (std::vector<float>{13, 14, 23, 24}));
    std::vector<float> rows(12, -1.0F);
    hf.read({name, 4, 6, 2, 2, 0, 6}, rows.data());
    EXPECT_EQ(rows[0], 20.0F);
    EXPECT_EQ(rows[11], 35.0F);
    hf.read({name, 4, 6, 4, 0, 6, 0}, nullptr);  // nothing
    EXPECT_EQ(hf.bytes_read() - before, (24 + 4 + 12) * element);
  }
  std::vector<float> part(2);
  for (const char* name : {"bias", "row"}) {
    hf.read({name, 1, 6, 0, 1, 4, 2}, part.data());
    EXPECT_EQ(part, (std::vector<float>{4, 5}));
  }
  EXPECT_THROW(hf.read({"f32", 4, 6, 3, 2, 0, 6}, part.data()), InternalError);
}

TEST(HfFolder, WrongShapeAndMissingTensorAreNamed) {
  const TempFolder folder;
  const std::vector<int64_t> longs = {1, 2};
  write_tensors(folder / "model.safetensors",
                {entry_of("t", DType::kF32, {4, 6}, grid()), entry_of("cube", DType::kF32, {1, 4, 6}, grid()),
                 safetensors_entry("ints", DType::kI64, {2}, std::as_bytes(std::span(longs)))});
  HfFolder hf(folder.path());
  std::vector<float> to(64);
  const std::string shape = data_error([&] { hf.read({"t", 6, 4, 0, 6, 0, 4}, to.data()); });
  EXPECT_TRUE(contains(shape, "'t'") && contains(shape, "[4, 6]") && contains(shape, "[6, 4]") &&
              contains(shape, folder / "model.safetensors"))
      << shape;
  EXPECT_TRUE(contains(data_error([&] { hf.read({"t", 1, 24, 0, 1, 0, 24}, to.data()); }), "[1, 24]"));
  EXPECT_TRUE(contains(data_error([&] { hf.read({"cube", 4, 6, 0, 4, 0, 6}, to.data()); }), "[1, 4, 6]"));
  EXPECT_TRUE(contains(data_error([&] { hf.read({"ints", 1, 2, 0, 1, 0, 2}, to.data()); }), "I64"));
  const std::string missing = data_error([&] { hf.read({"u", 4, 6, 0, 4, 0, 6}, to.data()); });
  EXPECT_TRUE(contains(missing, "'u'") && contains(missing, folder.path()) && contains(missing, "[4, 6]"))
      << missing;
  EXPECT_FALSE(hf.has("u"));
  EXPECT_EQ(hf.bytes_read(), 0);
}

TEST(HfFolder, ShardsAreReadAsTheIndexPlacesThem) {
  const TempFolder folder;
  write_tensors(folder / "model-00001-of-00002.safetensors",
                {entry_of("a", DType::kF32, {4, 6}, grid()), entry_of("b", DType::kF32, {1}, {1.0F})});
  write_tensors(folder / "model-00002-of-00002.safetensors",
                {entry_of("b", DType::kF32, {1}, {2.0F}), entry_of("c", DType::kBF16, {2}, {3.0F, 4.0F})});
  write_file(folder / kIndex,
             R"({"metadata":{"total_size":108},"weight_map":{"a":"model-00001-of-00002.safetensors",
      "b":"model-00002-of-00002.safetensors","c":"model-00002-of-00002.safetensors"}})");
  HfFolder hf(folder.path());
  std::vector<float> value(1);
  hf.read({"a", 4, 6, 3, 1, 5, 1}, value.data());
  EXPECT_EQ(value[0], 35.0F);
  hf.read({"b", 1, 1, 0, 1, 0, 1}, value.data());
  EXPECT_EQ(value[0], 2.0F);  // the index decides
  hf.read({"c", 1, 2, 0, 1, 1, 1}, value.data());
  EXPECT_EQ(value[0], 4.0F);
}

std::string index_of(const std::map<std::string, std::string>& map) {
  return nlohmann::json{{"weight_map", map}}.dump();
}

TEST(HfFolder, TwoSetsOfWeightsAreAmbiguous) {
  const std::string shard = "model-00001-of-00001.safetensors";
  const TempFolder folder;
  write_tensors(folder / "model.safetensors", {entry_of("t", DType::kF32, {1}, {1.0F})});
  write_tensors(folder / shard, {entry_of("t", DType::kF32, {1}, {2.0F})});
  write_file(folder / kIndex, index_of({{"t", shard}}));
  const auto refused = [&] { return data_error([&] { HfFolder hf(folder.path()); }); };
  std::string message = refused();
  for (const std::string& part :
       {folder.path(), std::string("model.safetensors, and"), kIndex, shard, std::string("delete")})
    EXPECT_TRUE(contains(message, part)) << message;
  fs::remove(folder / shard);  // an index that was left behind
  message = refused();
  EXPECT_TRUE(contains(message, "none of which is there") && contains(message, "Delete " + kIndex))
      << message;
  // An index that names the single file is one set.
  write_file(folder / kIndex, index_of({{"t", "model.safetensors"}}));
  std::vector<float> value(1);
  HfFolder hf(folder.path());
  hf.read({"t", 1, 1, 0, 1, 0, 1}, value.data());
  EXPECT_EQ(value[0], 1.0F);
  EXPECT_TRUE(hf.warnings().empty());
  EXPECT_EQ(hf.files_text(), "'model.safetensors'");
}

TEST(HfFolder, FilesThatAreNotReadAreNamed) {
  const TempFolder folder;
  const auto write = [&](const std::string& name) {
    write_tensors(folder / name, {entry_of("t", DType::kF32, {1}, {1.0F})});
  };
  write("model-00001-of-00002.safetensors");
  write("model-00002-of-00002.safetensors");
  const std::string shards = data_error([&] { HfFolder hf(folder.path()); });
  EXPECT_TRUE(contains(shards, "'model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'") &&
              contains(shards, "download " + kIndex))
      << shards;
  write_file(folder / kIndex, index_of({{"t", "model-00001-of-00002.safetensors"}}));
  const HfFolder by_index(folder.path());
  ASSERT_EQ(by_index.warnings().size(), 1U);
  EXPECT_TRUE(contains(by_index.warnings()[0], "not read is 'model-00002-of-00002.safetensors'"))
      << by_index.warnings()[0];
  fs::remove(folder / kIndex);
  write("model.safetensors");
  write("consolidated.safetensors");
  const HfFolder single(folder.path());
  ASSERT_EQ(single.warnings().size(), 1U);
  EXPECT_TRUE(contains(single.warnings()[0], "'model-00001-of-00002.safetensors'")) << single.warnings()[0];
  EXPECT_FALSE(contains(single.warnings()[0], "consolidated")) << single.warnings()[0];
}

TEST(HfFolder, AnIndexThatDoesNotAgreeIsWarnedOf) {
  const TempFolder folder;
  write_tensors(folder / "a.safetensors",
                {entry_of("x", DType::kF32, {2}, {1, 2}), entry_of("y", DType::kF32, {1}, {3})});
  write_tensors(folder / "b.safetensors", {entry_of("x", DType::kF32, {2}, {4, 5})});
  const auto warnings = [&](const std::string& metadata, const std::string& map) {
    write_file(folder / kIndex, R"({"metadata":)" + metadata + R"(,"weight_map":)" + map + "}");
    const HfFolder hf(folder.path());
    return std::pair(hf.warnings(), hf.unlisted());
  };
  const std::string whole = R"({"x":"b.safetensors","y":"a.safetensors"})";
  auto [lines, unlisted] = warnings(R"({"total_size":12})", whole);
  ASSERT_EQ(lines.size(), 1U);
  EXPECT_TRUE(contains(lines[0], "'x of a.safetensors'")) << lines[0];
  EXPECT_TRUE(unlisted.empty());
  std::tie(lines, unlisted) = warnings(R"({"total_size":16})", whole);
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_TRUE(contains(lines[1], "total_size is 16 bytes") && contains(lines[1], "have 12")) << lines[1];
  for (const std::string metadata : {"null", "{}", R"({"total_size":null})", R"({"total_size":"12"})", "[]"})
    EXPECT_EQ(warnings(metadata, whole).first.size(), 1U) << metadata;
  std::tie(lines, unlisted) = warnings("{}", R"({"x":"a.safetensors"})");
  EXPECT_EQ(unlisted, (std::map<std::string, std::string>{{"y", "a.safetensors"}}));
}

TEST(HfFolder, ATypeIsJudgedWhenItsTensorIsRead) {
  const TempFolder folder;
  const std::string header = R"({"good":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                             R"("float8":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[4,8]},)"
                             R"("mask":{"dtype":"BOOL","shape":[2,2],"data_offsets":[8,12]},)"
                             R"("new":{"dtype":"F2_NEW","shape":[16],"data_offsets":[12,16]}})";
  std::string bytes(8, '\0');
  bytes[0] = static_cast<char>(header.size() & 0xFF);
  bytes[1] = static_cast<char>(header.size() >> 8);
  write_file(folder / "model.safetensors", bytes + header + std::string(16, '\0'));
  HfFolder hf(folder.path());
  std::vector<float> to(16);
  EXPECT_NO_THROW(hf.read({"good", 1, 1, 0, 1, 0, 1}, to.data()));
  for (const auto& [name, type, cols] : std::vector<std::tuple<std::string, std::string, int64_t>>{
           {"float8", "F8_E4M3", 4}, {"new", "F2_NEW", 16}}) {
    const std::string message = data_error([&] { hf.read({name, 1, cols, 0, 1, 0, cols}, to.data()); });
    EXPECT_TRUE(contains(message, "'" + name + "'") && contains(message, "'" + type + "'") &&
                contains(message, "BF16"))
        << message;
  }
  EXPECT_TRUE(contains(data_error([&] { hf.read({"mask", 2, 2, 0, 2, 0, 2}, to.data()); }), "'BOOL'"));
}

TEST(HfFolder, ValuesThatAreNotFiniteAreRefusedWithTheirPlace) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  std::vector<float> with_nan = grid(), with_inf = grid();
  with_nan[2 * 6 + 3] = nan;
  with_inf[23] = -inf;
  const TempFolder folder;
  write_tensors(folder / "model.safetensors", {entry_of("nan", DType::kF32, {4, 6}, with_nan),
                                               entry_of("inf", DType::kBF16, {4, 6}, with_inf),
                                               entry_of("norm", DType::kF32, {3}, {1, inf, 1})});
  HfFolder hf(folder.path());
  std::vector<float> to(24);
  std::string message = data_error([&] { hf.read({"nan", 4, 6, 0, 4, 0, 6}, to.data()); });
  EXPECT_TRUE(contains(message, folder / "model.safetensors") &&
              contains(message, "'nan' holds nan at [2, 3]"))
      << message;
  // Each rank names the place in the whole tensor, and finds what lies in its slice only.
  message = data_error([&] { hf.read({"nan", 4, 6, 1, 2, 2, 2}, to.data()); });
  EXPECT_TRUE(contains(message, "at [2, 3]")) << message;
  EXPECT_NO_THROW(hf.read({"nan", 4, 6, 0, 4, 0, 3}, to.data()));
  EXPECT_NO_THROW(hf.read({"nan", 4, 6, 0, 2, 0, 6}, to.data()));
  message = data_error([&] { hf.read({"inf", 4, 6, 3, 1, 0, 6}, to.data()); });
  EXPECT_TRUE(contains(message, "-inf at [3, 5]")) << message;
  message = data_error([&] { hf.read({"norm", 1, 3, 0, 1, 0, 3}, to.data()); });
  EXPECT_TRUE(contains(message, "'norm' holds inf at [1]")) << message;
}

TEST(HfFolder, RefusesHostileIndexes) {
  const TempFolder outer;
  const std::string inner = outer / "model";
  fs::create_directory(inner);
  const std::string good = inner + "/good.safetensors";
  write_tensors(good, {entry_of("t", DType::kF32, {1}, {1.0F})});
  fs::copy_file(good, outer / "secret.safetensors");
  fs::create_symlink("../secret.safetensors", inner + "/link.safetensors");
  fs::create_symlink("good.safetensors", inner + "/inside.safetensors");
  fs::create_symlink("loop.safetensors", inner + "/loop.safetensors");
  fs::create_directory(inner + "/dir.safetensors");
  ASSERT_EQ(::mkfifo((inner + "/fifo.safetensors").c_str(), 0600), 0);
  const auto index_of = [](const std::string& file) {
    return nlohmann::json{{"weight_map", {{"t", file}}}}.dump();
  };
  const std::string nul("good.safetensors\0x", 18);
  const std::vector<std::pair<std::string, std::string>> cases = {
      {index_of("../secret.safetensors"), "plain name"},
      {index_of(outer / "secret.safetensors"), "plain name"},
      {index_of(".."), "plain name"},
      {index_of("."), "plain name"},
      {index_of(""), "plain name"},
      {index_of("./good.safetensors"), "plain name"},
      {index_of(nul), "plain name"},
      {index_of("link.safetensors"), "symbolic link out of"},
      {index_of("loop.safetensors"), "loop.safetensors"},
      {index_of("dir.safetensors"), "a directory"},
      {index_of("fifo.safetensors"), "a FIFO"},
      {index_of("absent.safetensors"), "absent.safetensors"},
      {R"({"weight_map":{"other":"good.safetensors"}})", "'other'"},
      {R"({"weight_map":{"t":3}})", "'t'"},
      {R"({"weight_map":{"t":"good.safetensors","t":"good.safetensors"}})", "twice"},
      {R"({"weight_map":[]})", "weight_map"},
      {R"({"weight_map":{}})", "weight_map"},
      {R"({})", "weight_map"},
      {R"([])", "weight_map"},
      {"{\n\"weight_map\":\n", kIndex + ":"},
      {"{}" + std::string(1, '\0'), "zero byte"},
      {std::string(100'000, '['), "nested deeper"},
  };
  for (const auto& [index, says] : cases) {
    SCOPED_TRACE(index.substr(0, 100));
    write_file(inner + "/" + kIndex, index);
    const std::string message = data_error([&] { HfFolder hf(inner); });
    EXPECT_TRUE(contains(message, says)) << message;
    EXPECT_TRUE(contains(message, inner)) << message;
  }
  write_file(inner + "/" + kIndex, index_of("inside.safetensors"));
  EXPECT_TRUE(HfFolder(inner).has("t"));
}

// Each file that is opened by its own name, as a FIFO without a writer and as a link out of the folder.
TEST(HfFolder, RefusesFilesThatAreNone) {
  const TempFolder outer;
  const std::string secret = outer / "secret";
  write_file(secret, "{}");
  for (const std::string& name :
       {std::string("config.json"), std::string(kIndex), std::string("model.safetensors")}) {
    SCOPED_TRACE(name);
    const std::string inner = outer / ("of-" + name);
    fs::create_directory(inner);
    const std::string path = inner + "/" + name;
    const auto refused = [&] {
      return data_error([&] {
        if (name == "config.json") {
          (void)read_model_config(inner);
        } else {
          HfFolder hf(inner);
        }
      });
    };
    ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
    EXPECT_TRUE(contains(refused(), "a FIFO")) << refused();
    for (const std::string& target : {std::string("../secret"), secret}) {
      fs::remove(path);
      fs::create_symlink(target, path);
      EXPECT_TRUE(contains(refused(), "symbolic link out of")) << refused();
    }
  }
}

TEST(HfFolder, LinksOfTheHubCacheAreFollowed) {
  const TempFolder cache;
  const fs::path model = fs::path(cache.path()) / "models--somebody--small";
  fs::create_directories(model / "blobs");
  fs::create_directories(model / "snapshots/abc");
  write_tensors((model / "blobs/123").string(), {entry_of("t", DType::kF32, {1}, {1.0F})});
  fs::create_symlink("../../blobs/123", model / "snapshots/abc/model.safetensors");
  EXPECT_TRUE(HfFolder((model / "snapshots/abc").string()).has("t"));
  fs::rename(model / "blobs", model / "elsewhere");
  fs::remove(model / "snapshots/abc/model.safetensors");
  fs::create_symlink("../../elsewhere/123", model / "snapshots/abc/model.safetensors");
  EXPECT_TRUE(
      contains(data_error([&] { HfFolder hf((model / "snapshots/abc").string()); }), "symbolic link out of"));
}

// Both sides are resolved: the folder may be reached through a link, and the blobs may be on another disk.
TEST(HfFolder, LinksAreComparedResolved) {
  const TempFolder outer;
  const fs::path root = outer.path();
  const auto opens = [&](const fs::path& folder, Links links = Links::kInside) {
    (void)read_model_config(folder.string(), links);
    return HfFolder(folder.string(), links).has("t");
  };
  const std::string config =
      R"({"model_type":"llama","vocab_size":8,"hidden_size":8,"intermediate_size":8,"num_hidden_layers":1,)"
      R"("num_attention_heads":1})";
  const fs::path model = root / "models--a--b";
  const fs::path snapshot = model / "snapshots/abc";
  fs::create_directories(snapshot);
  fs::create_directories(root / "disk/blobs");
  fs::create_directory_symlink(root / "disk/blobs", model / "blobs");
  write_tensors((model / "blobs/1").string(), {entry_of("t", DType::kF32, {1}, {1.0F})});
  write_file((model / "blobs/2").string(), config);
  fs::create_symlink("../../blobs/1", snapshot / "model.safetensors");
  fs::create_symlink("../../blobs/2", snapshot / "config.json");
  EXPECT_TRUE(opens(snapshot));
  fs::create_directory_symlink(snapshot, root / "short");  // as people name their models
  EXPECT_TRUE(opens(root / "short"));
  fs::create_directory_symlink(root, root / "again");
  EXPECT_TRUE(opens(root / "again/short"));
  EXPECT_TRUE(opens(root / "again/models--a--b/snapshots/abc/../abc/"));
  // One blob that was moved to yet another disk.
  fs::rename(root / "disk/blobs/1", root / "moved");
  fs::create_symlink(root / "moved", root / "disk/blobs/1");
  EXPECT_TRUE(opens(snapshot));
  fs::remove(root / "moved");
  const std::string dangling = data_error([&] { HfFolder hf(snapshot.string()); });
  EXPECT_TRUE(contains(dangling, "dangling symbolic link") && contains(dangling, "../../blobs/1"))
      << dangling;

  // A folder of links into other folders, as on shared clusters.
  fs::create_directories(root / "store");
  fs::create_directories(root / "mine");
  write_tensors((root / "store/w").string(), {entry_of("t", DType::kF32, {1}, {1.0F})});
  write_file((root / "store/c").string(), config);
  fs::create_symlink(root / "store/w", root / "mine/model.safetensors");
  fs::create_symlink(root / "store/c", root / "mine/config.json");
  for (const std::string& message :
       {data_error([&] { HfFolder hf((root / "mine").string()); }),
        data_error([&] { (void)read_model_config((root / "mine").string()); })}) {
    EXPECT_TRUE(contains(message, "symbolic link out of") && contains(message, "model.follow_links"))
        << message;
  }
  EXPECT_TRUE(opens(root / "mine", Links::kFollow));
  write_file((root / "store/t").string(), "no model");
  fs::create_symlink(root / "store/t", root / "mine/tokenizer.model");
  const std::string mine = (root / "mine").string();
  EXPECT_TRUE(contains(data_error([&] { (void)open_tokenizer(mine); }), "symbolic link out of"));
  EXPECT_TRUE(contains(data_error([&] { (void)open_tokenizer(mine, {}, Links::kFollow); }),
                       "no sentencepiece model"));
  fs::remove(root / "store/c");
  EXPECT_TRUE(contains(data_error([&] { (void)read_model_config((root / "mine").string(), Links::kFollow); }),
                       "dangling symbolic link"));
}

TEST(HfFolder, SaysWhereTheModelOfAHubCacheIs) {
  const TempFolder cache;
  const fs::path model = fs::path(cache.path()) / "models--a--b";
  fs::create_directories(model);
  const auto refused = [&] { return data_error([&] { (void)read_model_config(model.string()); }); };
  EXPECT_TRUE(contains(refused(), "holds config.json, *.safetensors and a tokenizer")) << refused();
  fs::create_directories(model / "snapshots");
  EXPECT_TRUE(contains(refused(), "download it, and give the folder " + (model / "snapshots/HASH").string()))
      << refused();
  fs::create_directories(model / "snapshots/0");
  fs::create_directories(model / "snapshots/12ab");
  write_file((model / "snapshots/12ab/config.json").string(), "{}");
  EXPECT_TRUE(contains(refused(), "whose model is the folder " + (model / "snapshots/12ab").string()))
      << refused();
  EXPECT_FALSE(contains(refused(), "another of its")) << refused();
  fs::create_directories(model / "snapshots/34cd");
  write_file((model / "snapshots/34cd/config.json").string(), "{}");
  EXPECT_TRUE(contains(refused(), "snapshots/12ab or another of its 2 snapshots")) << refused();
}

TEST(HfFolder, SaysWhatIsMissing) {
  const TempFolder folder;
  EXPECT_TRUE(contains(data_error([&] { HfFolder hf(folder / "absent"); }), "absent"));
  EXPECT_TRUE(contains(data_error([&] { HfFolder hf(folder.path()); }), kIndex));
  write_file(folder / "pytorch_model.bin", "x");
  EXPECT_TRUE(contains(data_error([&] { HfFolder hf(folder.path()); }), "converted to safetensors"));
  const auto with = [&](const std::string& name) {
    write_tensors(folder / name, {entry_of("t", DType::kF32, {1}, {1.0F})});
    const std::string message = data_error([&] { HfFolder hf(folder.path()); });
    fs::remove(folder / name);
    EXPECT_TRUE(contains(message, name)) << message;
    return message;
  };
  EXPECT_TRUE(contains(with("adapter_model.safetensors"), "merge"));
  EXPECT_TRUE(contains(with("weights.safetensors"), "rename it"));
}

TEST(HfFolder, DigestNamesTheContent) {
  const auto digest = [](const std::string& config, float value, const std::string& shard) {
    const TempFolder folder;
    write_file(folder / "config.json", config);
    write_tensors(folder / shard,
                  {entry_of("t", DType::kF32, {600'000}, std::vector<float>(600'000, value))});
    if (shard != "model.safetensors") {
      write_file(folder / kIndex, nlohmann::json{{"weight_map", {{"t", shard}}}}.dump());
    }
    const HfFolder hf(folder.path());
    std::vector<std::string> parts;
    for (size_t i = 0; i < hf.digest_parts(); ++i) parts.push_back(hf.part_digest(i));
    for (const std::string& part : parts) EXPECT_EQ(part.size(), HfFolder::kDigestLength);
    return HfFolder::content_digest(parts);
  };
  const std::string one = digest("{}", 1.0F, "model.safetensors");
  EXPECT_EQ(one.size(), 32U);
  EXPECT_EQ(one.find_first_not_of("0123456789abcdef"), std::string::npos);
  EXPECT_EQ(digest("{}", 1.0F, "model.safetensors"), one);     // whatever the folder is called
  EXPECT_EQ(digest("{ }\n", 1.0F, "model.safetensors"), one);  // nor how config.json is written
  EXPECT_NE(digest("{\"a\": 1}", 1.0F, "model.safetensors"), one);
  EXPECT_NE(digest("{}", 1.0000001F, "model.safetensors"), one);
  EXPECT_NE(digest("{}", 1.0F, "shard.safetensors"), one);
}

// Only a changed value of config.json changes the digest; the one of older checkpoints goes by its bytes.
TEST(HfFolder, DigestOfTheConfigurationIsOfItsValues) {
  const TempFolder folder;
  write_tensors(folder / "model.safetensors", {entry_of("t", DType::kF32, {1}, {1.0F})});
  write_file(folder / "config.json", "{}");
  const HfFolder hf(folder.path());
  const auto of = [&](const std::string& text) {
    write_file(folder / "config.json", text);
    return std::pair(hf.part_digest(0), hf.raw_config_digest());
  };
  const auto [values, raw] =
      of(R"({"hidden_size": 32, "rope_theta": 10000.0, "scaling": {"a": 0.5, "b": null}})");
  EXPECT_EQ(values.size(), HfFolder::kDigestLength);
  EXPECT_EQ(raw.size(), HfFolder::kDigestLength);
  for (const char* same :
       {"{\"hidden_size\": 32, \"rope_theta\": 10000.0, \"scaling\": {\"a\": 0.5, \"b\": null}}\n",
        "{\n  \"scaling\": {\"b\": null, \"a\": 5e-1},\r\n\t\"rope_theta\": 1e4, \"hidden_size\": 32}",
        R"({"hidden\u005fsize": 32, "rope_theta": 10000, "scaling": {"a": 0.50, "b": null}})"}) {
    EXPECT_EQ(of(same).first, values) << same;
    EXPECT_NE(of(same).second, raw) << same;
  }
  for (const char* other :
       {R"({"hidden_size": 33, "rope_theta": 10000.0, "scaling": {"a": 0.5, "b": null}})",
        R"({"hidden_size": 32, "rope_theta": 10000.5, "scaling": {"a": 0.5, "b": null}})",
        R"({"hidden_size": "32", "rope_theta": 10000.0, "scaling": {"a": 0.5, "b": null}})",
        R"({"hidden_size": 32, "rope_theta": 10000.0, "scaling": {"a": 0.5}})",
        R"({"hidden_size": 32, "rope_theta": 10000.0, "scaling": {"a": 0.5, "b": false}})"})
    EXPECT_NE(of(other).first, values) << other;
}

// An independent reading of a whole F32 tensor: header through a JSON document, offset by hand.
std::vector<float> plain_read(const std::string& path, const std::string& name) {
  const std::string bytes = read_file(path);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  const auto entry = nlohmann::json::parse(bytes.substr(8, length)).at(name);
  EXPECT_EQ(entry.at("dtype"), "F32");
  const auto offsets = entry.at("data_offsets").get<std::vector<size_t>>();
  std::vector<float> out((offsets[1] - offsets[0]) / 4);
  std::memcpy(out.data(), bytes.data() + 8 + length + offsets[0], offsets[1] - offsets[0]);
  return out;
}

TEST(HfFolder, ReadsTheReferenceCases) {
  const std::string goldens = std::string(PESC_SOURCE_DIR) + "/tests/goldens/";
  for (const std::string name : {"llama-gqa", "mistral-top1", "qwen2-bias-tied"}) {
    SCOPED_TRACE(name);
    HfFolder hf(goldens + name);
    EXPECT_EQ(hf.has("lm_head.weight"), name != "qwen2-bias-tied");
    EXPECT_EQ(hf.has("model.layers.1.self_attn.q_proj.bias"), name == "qwen2-bias-tied");
    const std::string gate = "model.layers.1.mlp.gate_proj.weight";  // [112, 64]
    const std::vector<float> want = plain_read(goldens + name + "/model.safetensors", gate);
    std::vector<float> got(want.size());
    hf.read({gate, 112, 64, 0, 112, 0, 64}, got.data());
    EXPECT_EQ(got, want);
    std::vector<float> slice(28 * 16);
    hf.read({gate, 112, 64, 56, 28, 16, 16}, slice.data());
    for (size_t i = 0; i < slice.size(); ++i) ASSERT_EQ(slice[i], want[(56 + i / 16) * 64 + 16 + i % 16]);
    std::vector<float> norm(64);
    hf.read({"model.norm.weight", 1, 64, 0, 1, 0, 64}, norm.data());
    EXPECT_EQ(norm, plain_read(goldens + name + "/model.safetensors", "model.norm.weight"));
    EXPECT_NO_THROW(SafetensorsFile file(goldens + name + "/expected.safetensors"));
    EXPECT_NO_THROW(SafetensorsFile file(goldens + name + "/pesc_params.safetensors"));
  }
}

TEST(HfFolder, ReadsFromSeveralThreads) {
  HfFolder hf(std::string(PESC_SOURCE_DIR) + "/tests/goldens/llama-gqa");
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&hf] {
      std::vector<float> to(96 * 64);
      for (int i = 0; i < 50; ++i) hf.read({"lm_head.weight", 96, 64, 0, 96, 0, 64}, to.data());
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(hf.bytes_read(), int64_t{4} * 50 * 96 * 64 * 4);
}

}  // namespace
}  // namespace pesc
