#include "runtime/filesystem/file_kind.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <filesystem>
#include <system_error>

#include "ops/core/check.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

using namespace std::string_view_literals;

constexpr std::string_view kUtf8Mark = "\xEF\xBB\xBF"sv;
constexpr std::string_view kSpaces = " \t\r\n"sv;

struct Magic {
  std::string_view bytes;
  const char* what;
};
// In this order: UTF-32 begins as UTF-16 does.
constexpr std::array<Magic, 23> kMagics = {{
    {"PK\x03\x04"sv, "a zip archive"},
    {"PK\x05\x06"sv, "a zip archive"},
    {"\x1F\x8B"sv, "compressed with gzip"},
    {"\x28\xB5\x2F\xFD"sv, "compressed with zstd"},
    {"BZh"sv, "compressed with bzip2"},
    {"\xFD"
     "7zXZ"sv,
     "compressed with xz"},
    {"\x04\x22\x4D\x18"sv, "compressed with lz4"},
    {"7z\xBC\xAF\x27\x1C"sv, "a 7z archive"},
    {"Rar!"sv, "a RAR archive"},
    {"PAR1"sv, "a Parquet file"},
    {"ARROW1"sv, "an Arrow file"},
    {"ORC"sv, "an ORC file"},
    {"Obj\x01"sv, "an Avro file"},
    {"GGUF"sv, "a GGUF file"},
    {"\x89HDF"sv, "an HDF5 file"},
    {"\x93NUMPY"sv, "a NumPy file"},
    {"SQLite format 3"sv, "an SQLite database"},
    {"%PDF"sv, "a PDF document"},
    {"\xFF\xFE\x00\x00"sv, "text in UTF-32"},
    {"\x00\x00\xFE\xFF"sv, "text in UTF-32"},
    {"\xFF\xFE"sv, "text in UTF-16"},
    {"\xFE\xFF"sv, "text in UTF-16"},
    {"\x7F"
     "ELF"sv,
     "a program"},
}};

std::string_view after_spaces(std::string_view text) {
  return text.substr(std::min(text.find_first_not_of(kSpaces), text.size()));
}

bool begins_like(std::string_view text, std::string_view lower) {
  return text.size() >= lower.size() &&
         std::equal(lower.begin(), lower.end(), text.begin(),
                    [](char l, char c) { return l == std::tolower(static_cast<unsigned char>(c)); });
}

bool is_safetensors(std::string_view first) {
  return first.size() > 8 && first.substr(4, 4) == "\0\0\0\0"sv && first[8] == '{';
}

// A marker, then the length of the first message, which is far below 2^24.
bool is_arrow_stream(std::string_view first) {
  return first.size() >= 8 && first.starts_with("\xFF\xFF\xFF\xFF"sv) && first[7] == 0;
}

// A pickle of protocol 2 to 5, as torch.save wrote before it wrote zip archives.
bool is_pickle(std::string_view first) {
  return first.size() > 2 && first[0] == '\x80' && first[1] >= 2 && first[1] <= 5 &&
         "\x95\x8A}]()cCXKGNq"sv.find(first[2]) != std::string_view::npos;
}

// A character of ASCII in each second byte and zero in the others.
bool is_utf16_without_mark(std::string_view first) {
  if (first.size() < 4) return false;
  const auto ascii = [](char c) {
    return (c >= ' ' && c <= '~') || kSpaces.find(c) != std::string_view::npos;
  };
  const bool little = ascii(first[0]) && first[1] == 0 && ascii(first[2]) && first[3] == 0;
  const bool big = first[0] == 0 && ascii(first[1]) && first[2] == 0 && ascii(first[3]);
  return little || big;
}

// No control characters, and no byte that UTF-8 never has.
bool is_text(std::string_view first) {
  return std::all_of(first.begin(), first.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte == 0x7F || byte == 0xC0 || byte == 0xC1 || byte >= 0xF5) return false;
    return byte >= ' ' || kSpaces.find(c) != std::string_view::npos;
  });
}

const char* needed(FileUse use) {
  switch (use) {
    case FileUse::kJson:
      return "JSON is needed here";
    case FileUse::kRows:
      return "rows must be JSON Lines or a JSON array";
    case FileUse::kSafetensors:
      return "weights must be safetensors";
    case FileUse::kSentencePiece:
      return "tokenizer.model must be a sentencepiece model";
    case FileUse::kManifest:
      return "a checkpoint's manifest is needed here";
    case FileUse::kText:
      return "protobuf text is needed here";
    case FileUse::kTemplate:
      return "a chat template is text, in Jinja";
    case FileUse::kHostfile:
      return "a hostfile is text with one host a line";
  }
  return "";
}

bool is_binary(FileUse use) {
  return use == FileUse::kSafetensors || use == FileUse::kSentencePiece || use == FileUse::kManifest;
}

std::string advice(std::string_view what, FileUse use) {
  if (use == FileUse::kRows && what == "compressed with gzip")
    return "give it a name that ends in .gz, or decompress it first";
  if (use == FileUse::kRows && what == "compressed with zstd")
    return "give it a name that ends in .zst, or decompress it first";
  if (what.starts_with("compressed")) return "decompress it first";
  if (use == FileUse::kRows && what == "a Parquet file") return kParquetToRows;
  if (what.starts_with("text in UTF")) return "save it as UTF-8 (for instance with iconv -t UTF-8)";
  if (use == FileUse::kRows) return "convert it to JSON Lines first (datasets: Dataset.to_json)";
  if (use == FileUse::kSafetensors && what == "a zip archive")
    return "convert it if it is a PyTorch checkpoint (torch.save writes zip archives), or unpack it";
  return "give the right file";
}

}  // namespace

std::string other_kind(std::string_view first, FileUse use) {
  if (first.empty()) {
    return str_cat("is empty (0 bytes); ", needed(use),
                   use == FileUse::kText || use == FileUse::kTemplate || use == FileUse::kRows ||
                           use == FileUse::kHostfile
                       ? ""
                       : ", so copy or download it again");
  }
  // First, since the length that a safetensors file begins with may look like anything.
  if (is_safetensors(first)) {
    if (use == FileUse::kSafetensors) return "";
    return str_cat("is a safetensors file, and ", needed(use), "; give the right file");
  }
  if (first.starts_with("version https://git-lfs") || first.starts_with("version http://git-media")) {
    return "is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, or download it "
           "again";
  }
  if (first.starts_with("../") && first.find("/blobs/") < first.find('\n')) {
    return "holds the text of a symbolic link, not the file itself; copy the folder again with its links "
           "followed (cp -rL, rsync -L)";
  }
  for (const Magic& magic : kMagics) {
    if (!first.starts_with(magic.bytes)) continue;
    return str_cat("is ", magic.what, ", and ", needed(use), "; ", advice(magic.what, use));
  }
  if (is_arrow_stream(first)) return str_cat("is an Arrow stream, and ", needed(use), "; ", advice("", use));
  if (is_pickle(first)) {
    return str_cat("is a Python pickle (torch.save wrote such files), and ", needed(use), "; ",
                   use == FileUse::kSafetensors ? "convert it to safetensors first" : advice("", use));
  }
  if (first.find_first_not_of('\0') == std::string_view::npos && first.size() >= 16) {
    return str_cat("begins with ", first.size(), " zero bytes: a copy or download that was not finished; ",
                   "copy it again");
  }
  if (!is_binary(use) && is_utf16_without_mark(first)) {
    return str_cat("is text in UTF-16, and ", needed(use), "; ", advice("text in UTF-16", use));
  }
  constexpr size_t kTar = 257;
  if (first.size() > kTar + 5 && first.substr(kTar, 5) == "ustar") {
    return str_cat("is a tar archive, and ", needed(use), "; unpack it first");
  }
  const std::string_view text = after_spaces(without_byte_order_mark(first));
  for (const std::string_view tag : {"<!doctype html"sv, "<html"sv, "<head"sv, "<body"sv}) {
    if (begins_like(text, tag)) {
      return "is a web page (HTML), not the file itself: the download answered with a page, such as one that "
             "asks to log in; download the file again";
    }
  }
  if (begins_like(text, "<?xml") || begins_like(text, "<!--")) {
    return str_cat("is XML or a web page, and ", needed(use), "; download the file again");
  }
  if (is_binary(use) && (text.starts_with('{') || text.starts_with('['))) {
    return str_cat("is JSON, and ", needed(use), "; give the right file");
  }
  constexpr size_t kSurelyText = 16;
  if (is_binary(use) && first.size() >= kSurelyText && is_text(first)) {
    const std::string_view line = first.substr(0, first.find_first_of("\r\n"));
    return str_cat("is text that begins ", in_quotes(line, 60), ", and ", needed(use),
                   "; download the file again");
  }
  return "";
}

void check_first_bytes(std::string_view first, const std::string& path, FileUse use) {
  const std::string kind = other_kind(first, use);
  if (!kind.empty()) throw DataError(str_cat(path, ": ", kind));
}

std::string dead_link(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (!fs::is_symlink(path, error)) return "";
  const std::string target = fs::read_symlink(path, error).string();
  (void)fs::status(path, error);
  if (error == std::errc::too_many_symbolic_link_levels)
    return str_cat("is a symbolic link, to ", target, ", that leads back to itself");
  const bool nothing = error == std::errc::no_such_file_or_directory || error == std::errc::not_a_directory;
  return nothing ? str_cat("is a dangling symbolic link, to ", target, ", where nothing is") : "";
}

std::string_view without_byte_order_mark(std::string_view text) {
  if (text.starts_with(kUtf8Mark)) text.remove_prefix(kUtf8Mark.size());
  return text;
}

}  // namespace pesc
