// Well-formed files made by hand and by the writer, and a table of hostile ones with what their message must
// say.
#include "runtime/hf/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "runtime/hf/safetensors_types.h"
#include "runtime/hf/safetensors_write.h"
#include "tests/runtime/hf/temp_folder.h"

namespace pesc {
namespace {

namespace fs = std::filesystem;

std::string length_prefix(uint64_t length) {
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  return out;
}

std::string file_of(const std::string& header, size_t data_bytes) {
  return length_prefix(header.size()) + header + std::string(data_bytes, 'x');
}

SafetensorsHeader parse(const std::string& bytes) {
  return parse_safetensors(std::as_bytes(std::span(bytes.data(), bytes.size())), "the/file");
}

// `item` n times, its leading "" replaced by a key of its own.
std::string crowd(std::string text, const std::string& item, size_t n, const std::string& end) {
  for (size_t i = 0; i < n; ++i) text += (i == 0 ? "\"" : ",\"") + std::to_string(i) + item.substr(1);
  return text + end;
}

TEST(Safetensors, ReadsWhatTheFormatSays) {
  const SafetensorsHeader header =
      parse(file_of(R"({"__metadata__":{"format":"pt","é":"\n"},)"
                    R"("b":{"dtype":"F32","shape":[2,3],"data_offsets":[4,28]},)"
                    R"("none":{"shape":[0,7],"data_offsets":[4,4],"dtype":"BF16"},)"
                    R"("a":{"data_offsets":[0,4],"dtype":"I32","shape":[]}}   )",
                    28));
  ASSERT_EQ(header.tensors.size(), 3U);
  EXPECT_EQ(header.tensors[0].name, "a");
  EXPECT_TRUE(header.tensors[0].shape.empty());
  EXPECT_EQ(header.tensors[1].name, "none");
  const SafetensorsEntry* b = header.find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->dtype, DType::kF32);
  EXPECT_EQ(b->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(b->begin, 4U);
  EXPECT_EQ(b->bytes(), 24U);
  EXPECT_EQ(header.find("c"), nullptr);
  EXPECT_EQ(header.find(""), nullptr);
  EXPECT_EQ(header.metadata.at("format"), "pt");
  EXPECT_EQ(header.metadata.at("é"), "\n");
  EXPECT_TRUE(parse(file_of("{}", 0)).tensors.empty());
}

TEST(Safetensors, RefusesHostileFiles) {
  const std::string good = R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  struct Case {
    std::string bytes;
    std::vector<std::string> says;
  };
  const std::vector<Case> cases = {
      {"", {"0 bytes"}},
      {"1234567", {"7 bytes"}},
      {length_prefix(0) + good, {"length is given as 0 "}},
      {length_prefix(1) + "{", {"length is given as 1 "}},
      {length_prefix(good.size() + 9) + good + "12345678", {"length is given as"}},
      {length_prefix(100'000'001) + good, {"100000001", "limit"}},
      {length_prefix(uint64_t{1} << 63) + good, {"9223372036854775808", "limit"}},
      {length_prefix(~uint64_t{0}) + good, {"limit"}},
      {file_of(" " + good, 8), {"'{'"}},
      {file_of("[1]", 0), {"'{'"}},
      {file_of(good + std::string("\0 []", 4), 8), {"zero byte"}},
      {file_of(good + "{}", 8), {"not valid JSON"}},
      {file_of(good.substr(0, good.size() - 1), 8), {"not valid JSON"}},
      {file_of("{\"\xff\":1}", 8), {"not valid JSON"}},
      {file_of(good, 7), {"'t'", "beyond the 7 bytes"}},
      {file_of(good, 9), {"'t'", "1 bytes follow"}},
      {file_of("{}", 1), {"1 bytes follow"}},
      {file_of(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})", 9), {"'t'", "gap"}},
      {file_of(R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
               R"("u":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})",
               12),
       {"'u'", "gap"}},
      {file_of(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
               R"("u":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
               12),
       {"'u'", "overlaps tensor 't'"}},
      {file_of(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
               R"("u":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
               8),
       {"overlaps"}},
      {file_of(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8), {"'t'", "end before"}},
      {file_of(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615]}})", 8),
       {"'t'", "needs 8"}},
      {file_of(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551616]}})", 8),
       {"'t'", "data_offsets"}},
      {file_of(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[-1,8]}})", 8),
       {"'t'", "data_offsets", "-1"}},
      {file_of(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}})", 8), {"'t'", "two numbers"}},
      {file_of(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", 8), {"'t'", "two numbers"}},
      {file_of(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":8}})", 8), {"'t'", "data_offsets"}},
      {file_of(R"({"t":{"dtype":"BF16","shape":[2],"data_offsets":[0,8]}})", 8), {"'t'", "BF16 needs 4"}},
      {file_of(R"({"t":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0),
       {"'t'", "larger than any file"}},
      {file_of(R"({"t":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,0]}})", 0),
       {"'t'", "too large"}},
      {file_of(R"({"t":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}})", 0),
       {"'t'", "larger than any file"}},
      {file_of(R"({"t":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8), {"'t'", "shape", "-2"}},
      {file_of(R"({"t":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", 8), {"'t'", "shape"}},
      {file_of(R"({"t":{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}})", 8), {"'t'", "shape"}},
      {file_of(R"({"t":{"dtype":"F32","shape":"2","data_offsets":[0,8]}})", 8), {"'t'", "shape"}},
      {file_of(R"({"t":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]}})",
               8),
       {"'t'", "dimensions"}},
      {file_of(R"({"t":{"dtype":"BOOL","shape":[2],"data_offsets":[0,8]}})", 8), {"'t'", "BOOL needs 2 "}},
      {file_of(R"({"t":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,8]}})", 8),
       {"'t'", "F8_E4M3 needs 2 "}},
      {file_of(R"({"t":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}})", 1), {"'t'", "1 and a part"}},
      {file_of(R"({"t":{"dtype":"Q4","shape":[2],"data_offsets":[0,9]}})", 8), {"'t'", "beyond the 8 bytes"}},
      {file_of(R"({"t":{"dtype":4,"shape":[2],"data_offsets":[0,8]}})", 8),
       {"'t'", "dtype must be a string"}},
      {file_of(R"({"t":{"shape":[2],"data_offsets":[0,8]}})", 8), {"'t'", "dtype is missing"}},
      {file_of(R"({"t":{"dtype":"F32","data_offsets":[0,8]}})", 8), {"'t'", "shape is missing"}},
      {file_of(R"({"t":{"dtype":"F32","shape":[2]}})", 8), {"'t'", "data_offsets is missing"}},
      {file_of(R"({"t":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}})", 8),
       {"'t'", "shape", "twice"}},
      {file_of(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})", 8), {"'t'", "'x'"}},
      {file_of(R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
               R"("t":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
               8),
       {"'t'", "twice"}},
      {file_of(R"({"t":null})", 0), {"'t'", "null"}},
      {file_of(R"({"t":[]})", 0), {"'t'", "array"}},
      {file_of(R"({"__metadata__":{"a":1}})", 0), {"__metadata__"}},
      {file_of(R"({"__metadata__":{"a":{}}})", 0), {"__metadata__"}},
      {file_of(R"({"__metadata__":"a"})", 0), {"__metadata__"}},
      {file_of(R"({"__metadata__":{"a":"1","a":"2"}})", 0), {"__metadata__", "twice"}},
      {file_of(R"({"__metadata__":{},"__metadata__":{}})", 0), {"__metadata__", "twice"}},
      {file_of("{\"t\":" + std::string(1'000'000, '['), 0), {"'t'", "array"}},
      {file_of(R"({"t":{"shape":[)" + std::string(2'000'000, '1') + "]}}", 0), {"endless number"}},
      {file_of(crowd(R"({"__metadata__":{)", R"("":"")", kMaxSafetensorsMetadata + 1, "}}"), 0),
       {"__metadata__", "more than 100000"}},
      {file_of(crowd("{", R"("":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})", kMaxSafetensorsTensors + 1,
                     "}"),
               0),
       {"more than 250000"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.bytes.substr(0, 160));
    const std::string message = data_error([&] { (void)parse(c.bytes); });
    EXPECT_NE(message.find("the/file: "), std::string::npos) << message;
    for (const std::string& part : c.says) EXPECT_NE(message.find(part), std::string::npos) << message;
    EXPECT_LT(message.size(), 600U);
  }
  EXPECT_NO_THROW((void)parse(file_of(good, 8)));
}

TEST(Safetensors, EveryTypeOfTheFormatIsParsed) {
  std::string header = R"({"__metadata__":null)";
  uint64_t end = 0;
  for (const SafetensorsType& type : kSafetensorsTypes) {
    const std::string name(type.name);
    const uint64_t begin = end;
    end += type.bits;  // 8 elements
    header += ",\"" + name + R"(":{"dtype":")" + name + R"(","shape":[2,4],"data_offsets":[)" +
              std::to_string(begin) + "," + std::to_string(end) + "]}";
  }
  // A type of the future: its size is not known, and taken as it is.
  header += R"(,"new":{"dtype":"F2_NEW","shape":[7,3],"data_offsets":[)" + std::to_string(end) + "," +
            std::to_string(end + 5) + "]}}";
  const SafetensorsHeader parsed = parse(file_of(header, end + 5));
  EXPECT_TRUE(parsed.metadata.empty());
  ASSERT_EQ(parsed.tensors.size(), kSafetensorsTypes.size() + 1);
  for (const SafetensorsEntry& t : parsed.tensors) EXPECT_EQ(t.type, t.name == "new" ? "F2_NEW" : t.name);
  EXPECT_EQ(parsed.find("BF16")->dtype, DType::kBF16);
  EXPECT_EQ(parsed.find("F8_E4M3")->dtype, std::nullopt);
  EXPECT_EQ(parsed.find("new")->dtype, std::nullopt);
}

TEST(Safetensors, EveryCutOfAGoodFileIsRefused) {
  const std::string whole = file_of(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8);
  for (size_t n = 0; n < whole.size(); ++n) EXPECT_THROW((void)parse(whole.substr(0, n)), DataError) << n;
}

TEST(Safetensors, AShapeIsWrittenInBrackets) {
  EXPECT_EQ(shape_text(std::vector<int64_t>{2, 3}), "[2, 3]");
}

TEST(SafetensorsFile, OpensRegularFilesOnly) {
  const TempFolder folder;
  EXPECT_NE(data_error([&] { SafetensorsFile file(folder / "absent"); }).find("absent"), std::string::npos);
  EXPECT_NE(data_error([&] { SafetensorsFile file(folder.path()); }).find("a directory"), std::string::npos);
  ASSERT_EQ(::mkfifo((folder / "fifo").c_str(), 0600), 0);
  EXPECT_NE(data_error([&] { SafetensorsFile file(folder / "fifo"); }).find("a FIFO"), std::string::npos);
  EXPECT_NE(data_error([&] { SafetensorsFile file("/dev/zero"); }).find("a device"), std::string::npos);
  write_file(folder / "empty", "");
  EXPECT_NE(data_error([&] { SafetensorsFile file(folder / "empty"); }).find("0 bytes"), std::string::npos);
}

std::span<const std::byte> raw(const auto& values) {
  return std::as_bytes(std::span(values));
}

TEST(SafetensorsWrite, RoundTripIsDeterministicAndAligned) {
  const TempFolder folder;
  const std::vector<float> floats = {1.5F, -2.0F, 3.0F, 0.0F, 5.0F, 6.0F};
  const std::vector<uint16_t> halves = {1, 2, 3};
  const std::vector<int64_t> longs = {-7};
  const std::vector<uint8_t> small = {9, 8, 7, 6, 5};
  std::vector<SafetensorsWriteEntry> entries;
  entries.push_back(safetensors_entry("z.half", DType::kBF16, {3}, raw(halves)));
  entries.push_back(safetensors_entry("tiny", DType::kU8, {5}, raw(small)));
  entries.push_back({"b \"quoted\" é", DType::kF32, {2, 3}, [&](const ByteSink& sink) {  // in pieces
                       sink(raw(floats).first(5));
                       sink({});
                       sink(raw(floats).subspan(5));
                     }});
  entries.push_back(safetensors_entry("a.empty", DType::kF32, {0, 4}, {}));
  entries.push_back(safetensors_entry("long", DType::kI64, {}, raw(longs)));
  const int64_t bytes = write_safetensors(folder / "one", entries, {{"format", "pt"}, {"made by", "a test"}});
  EXPECT_EQ(bytes, static_cast<int64_t>(fs::file_size(folder / "one")));

  const SafetensorsFile file(folder / "one");
  EXPECT_EQ(file.header().data_begin % 8, 0U);
  EXPECT_EQ(file.header().metadata.at("made by"), "a test");
  std::vector<std::string> order;
  for (const SafetensorsEntry& t : file.header().tensors) {
    order.push_back(t.name);
    EXPECT_EQ(t.begin % static_cast<uint64_t>(dtype_bytes(t.dtype.value())), 0U) << t.name;
  }
  EXPECT_EQ(order, (std::vector<std::string>{"long", "a.empty", "b \"quoted\" é", "z.half", "tiny"}));
  const auto same = [&](const std::string& name, std::span<const std::byte> want) {
    const std::span<const std::byte> got = file.bytes(file.at(name));
    return got.size() == want.size() && std::equal(got.begin(), got.end(), want.begin());
  };
  EXPECT_TRUE(same("b \"quoted\" é", raw(floats)));
  EXPECT_TRUE(same("z.half", raw(halves)));
  EXPECT_TRUE(same("tiny", raw(small)));
  EXPECT_TRUE(same("long", raw(longs)));
  EXPECT_NE(data_error([&] { (void)file.at("no such"); }).find("'no such'"), std::string::npos);

  std::reverse(entries.begin(), entries.end());
  write_safetensors(folder / "two", entries, {{"made by", "a test"}, {"format", "pt"}});
  EXPECT_EQ(read_file(folder / "one"), read_file(folder / "two"));
}

TEST(SafetensorsWrite, FailureLeavesTheOldFileAndNoOther) {
  const TempFolder folder;
  const std::vector<float> values = {1.0F, 2.0F};
  write_safetensors(folder / "f", {safetensors_entry("t", DType::kF32, {2}, raw(values))}, {});
  const std::string before = read_file(folder / "f");
  using Entries = std::vector<SafetensorsWriteEntry>;
  const std::vector<Entries> wrong = {
      {safetensors_entry("t", DType::kF32, {3}, raw(values))},
      {safetensors_entry("t", DType::kF32, {1}, raw(values))},
      {safetensors_entry("t", DType::kF32, {-2}, raw(values))},
      {safetensors_entry("t", DType::kF32, {2}, raw(values)),
       safetensors_entry("t", DType::kF32, {2}, raw(values))},
      {safetensors_entry("__metadata__", DType::kF32, {2}, raw(values))},
  };
  for (const Entries& entries : wrong)
    EXPECT_THROW(write_safetensors(folder / "f", entries, {}), InternalError);
  EXPECT_EQ(read_file(folder / "f"), before);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator{}), 1);

  EXPECT_THROW(write_safetensors(folder / "absent/f", wrong[0], {}), IoError);
  fs::create_directory(folder / "d");
  EXPECT_THROW(write_safetensors(folder / "d", {safetensors_entry("t", DType::kF32, {2}, raw(values))}, {}),
               IoError);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator{}), 2);
}

}  // namespace
}  // namespace pesc
