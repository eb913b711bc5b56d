// Files of other kinds are called by their names, by the look-up itself and by every reader.
#include "runtime/filesystem/file_kind.h"

#include "runtime/checkpoint/manifest.h"
#include "runtime/config/experiment.h"
#include "runtime/data/row_file.h"
#include "runtime/hf/config_json.h"
#include "runtime/hf/hf_folder.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tests/runtime/hf/temp_folder.h"

namespace pesc {
namespace {

using namespace std::string_literals;

constexpr FileUse kUses[] = {FileUse::kJson,          FileUse::kRows,     FileUse::kSafetensors,
                             FileUse::kSentencePiece, FileUse::kManifest, FileUse::kText,
                             FileUse::kTemplate,      FileUse::kHostfile};

struct Other {
  std::string bytes;
  std::vector<std::string> says;
};
std::vector<Other> others() {
  return {
      {"", {"empty (0 bytes)"}},
      {"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 5\n",
       {"Git LFS pointer", "git lfs pull"}},
      {"<!DOCTYPE html>\n<html><body>Log in</body></html>", {"web page (HTML)", "download"}},
      {"\xEF\xBB\xBF\n  <HTML lang='en'>", {"web page (HTML)"}},
      {"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", {"XML"}},
      {"PK\x03\x04\x00\x00\x00\x00rest"s, {"zip archive"}},
      {"\x80\x02}q\x00(X\x05"s, {"pickle"}},
      {"\x80\x02\x8A\x0Al\xFC\x9C\x46\xF9\x20\x6A\xA8\x50\x19"s, {"pickle"}},
      {"\x80\x04\x95\x10\x00\x00\x00\x00"s, {"pickle"}},
      {"\x1F\x8B\x08\x00\x00\x00\x00\x00\x00\x03..."s, {"gzip", "decompress"}},
      {"\x28\xB5\x2F\xFD\x24\x05\x29\x00"s, {"zstd", "decompress"}},
      {"BZh91AY&SY", {"bzip2", "decompress"}},
      {"\xFD"s + "7zXZ\x00\x00"s, {"xz", "decompress"}},
      {"PAR1\x15\x04\x15\x20"s, {"Parquet"}},
      {"ARROW1\x00\x00"s, {"Arrow"}},
      {"\xFF\xFF\xFF\xFF\x10\x02\x00\x00"s, {"Arrow"}},
      {"GGUF\x03\x00\x00\x00"s, {"GGUF"}},
      {"\xFF\xFE{\x00\"\x00"s, {"UTF-16", "UTF-8"}},
      {"\xFE\xFF\x00{\x00\""s, {"UTF-16", "UTF-8"}},
      {"\xFF\xFE\x00\x00{\x00\x00\x00"s, {"UTF-32", "UTF-8"}},
      {std::string(4096, '\0'), {"zero bytes", "copy it again"}},
      {"../../blobs/0123456789abcdef", {"symbolic link"}},
  };
}

void expect_says(const std::string& message, const Other& other) {
  for (const std::string& part : other.says) EXPECT_PRED_FORMAT2(::testing::IsSubstring, part, message);
}

TEST(FileKind, OtherKindsAreNamedWhateverIsNeeded) {
  for (const Other& other : others()) {
    for (const FileUse use : kUses) {
      const std::string kind = other_kind(std::string_view(other.bytes).substr(0, kFirstBytes), use);
      SCOPED_TRACE(kind);
      expect_says(kind, other);
    }
  }
}

TEST(FileKind, KindsThatOnlySomeReadersMistake) {
  for (const FileUse use : {FileUse::kJson, FileUse::kRows, FileUse::kText}) {
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "UTF-16", other_kind("{\0\"\0a\0"s, use));
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "UTF-16", other_kind("\0{\0\"\0a"s, use));
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "a safetensors file",
                        other_kind("\x40\0\0\0\0\0\0\0{\"t\":"s, use));
  }
  for (const FileUse use : {FileUse::kSafetensors, FileUse::kSentencePiece}) {
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "is JSON", other_kind("\n{\"error\": \"no\"}", use));
  }
  // The vocabulary of tiktoken, under the name of sentencepiece's.
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "text that begins 'IQ== 0', and tokenizer.model must be",
                      other_kind("IQ== 0\nIg== 1\nIw== 2\n", FileUse::kSentencePiece));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "text that begins 'Access to model x is restricted.'",
                      other_kind("Access to model x is restricted.\nLog in.", FileUse::kSafetensors));
}

TEST(FileKind, RowsOfOtherFilesAreToldHowTheyAreRead) {
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "a name that ends in .gz",
                      other_kind("\x1F\x8B\x08", FileUse::kRows));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "a name that ends in .zst",
                      other_kind("\x28\xB5\x2F\xFD", FileUse::kRows));
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "python3 -c 'import json, sys, pyarrow.parquet",
                      other_kind("PAR1\x15\x04\x15\x20", FileUse::kRows));
  EXPECT_EQ(other_kind("PAR1\x15\x04", FileUse::kJson).find("python3"), std::string::npos);
}

TEST(FileKind, RightFilesAreNotMistaken) {
  for (const FileUse use : {FileUse::kJson, FileUse::kRows}) {
    for (const std::string& text :
         {"{\"a\": 1}"s, "\xEF\xBB\xBF[1]"s, "\n"s, "  { }"s, "{"s, "no JSON"s, "{\"a\": \"<html>\"}"s})
      EXPECT_EQ(other_kind(text, use), "") << text;
  }
  EXPECT_EQ(other_kind("# PK\nname: \"x\"", FileUse::kText), "");
  EXPECT_EQ(other_kind("\n\x0E\n\x05<unk>\x15"s, FileUse::kSentencePiece), "");
  // A length that is damaged is for the parser to name.
  EXPECT_EQ(other_kind(std::string(8, '\xFF') + "{\"t\":{", FileUse::kSafetensors), "");
  // The length of a header may begin as any magic number does.
  for (const std::string& magic : {"\x1F\x8B\x08\x00"s, "\x80\x02\x00\x00"s, "\xFF\xFE\x00\x00"s, "BZh\x00"s})
    EXPECT_EQ(other_kind(magic + std::string(4, '\0') + "{\"t\":{", FileUse::kSafetensors), "");
}

TEST(FileKind, EveryReaderLooks) {
  for (const Other& other : others()) {
    SCOPED_TRACE(other.says.front());
    const TempFolder folder;
    const auto refused = [&](const std::string& name, const auto& read) {
      SCOPED_TRACE(name);
      const std::string path = folder / name;
      write_file(path, other.bytes);
      const std::string message = data_error([&] { read(path); });
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, path + ": ", message);
      expect_says(message, other);
      std::filesystem::remove(path);
    };
    refused("config.json", [&](const std::string&) { (void)read_model_config(folder.path()); });
    refused("model.safetensors.index.json", [&](const std::string&) { HfFolder hf(folder.path()); });
    refused("model.safetensors", [&](const std::string&) { HfFolder hf(folder.path()); });
    refused("tokenizer.json", [&](const std::string&) { (void)open_tokenizer(folder.path()); });
    refused("tokenizer.model", [&](const std::string&) { (void)open_tokenizer(folder.path()); });
    const std::string manifest = data_error([&] { (void)parse_manifest(other.bytes, "step-1/MANIFEST"); });
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "step-1/MANIFEST: ", manifest);
    expect_says(manifest, other);
    refused("rows.jsonl", [&](const std::string& path) { (void)read_rows(path, {}, nullptr); });
    const std::string experiment = folder / "experiment.textproto";
    write_file(experiment, other.bytes);
    try {
      (void)load_experiment(experiment, {});
      ADD_FAILURE() << "no error";
    } catch (const UsageError& error) {
      EXPECT_PRED_FORMAT2(::testing::IsSubstring, experiment + ": ", error.what());
      expect_says(error.what(), other);
    }
  }
}

TEST(FileKind, AByteOrderMarkOfUtf8IsPassedOver) {
  const TempFolder folder;
  write_file(folder / "rows.jsonl", "\xEF\xBB\xBF{\"corpus\": \"text\"}\n");
  EXPECT_EQ(read_rows(folder / "rows.jsonl", {}, nullptr).size(), 1U);
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "model_type",
                      data_error([&] { (void)parse_model_config("\xEF\xBB\xBF{}", "F"); }));
  write_file(folder / "experiment.textproto",
             "\xEF\xBB\xBF"
             "train { max_steps: 1 global_batch_size: 1 learning_rate: 1 } data { max_seq_length: 8 }\n"
             "model { shape { vocab_size: 8 hidden_size: 8 intermediate_size: 8 num_hidden_layers: 1 "
             "num_attention_heads: 1 num_key_value_heads: 1 max_position_embeddings: 8 } }\n");
  EXPECT_EQ(load_experiment(folder / "experiment.textproto", {}, ExperimentUse::kBench).train.max_steps, 1);
}

}  // namespace
}  // namespace pesc
