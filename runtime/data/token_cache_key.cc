#include "runtime/data/token_cache_key.h"

#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <memory>
#include <span>
#include <vector>

#include "ops/core/check.h"
#include "runtime/data/row_bytes.h"
#include "runtime/data/tags.h"
#include "runtime/filesystem/filesystem.h"
#include "runtime/hf/mapped_file.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

std::string digits_of(XXH128_hash_t digest) {
  char text[40];
  std::snprintf(text, sizeof text, "%016llx%016llx", static_cast<unsigned long long>(digest.high64),
                static_cast<unsigned long long>(digest.low64));
  return text;
}

std::string digest_of_file(const std::string& path) {
  constexpr uint64_t kBlock = uint64_t{1} << 20;
  static_cast<void>(open_row_bytes(path));  // its checks
  const MappedFile file(path);
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(), &XXH3_freeState);
  PESC_CHECK(state != nullptr && XXH3_128bits_reset(state.get()) == XXH_OK, "no state of XXH3");
  std::vector<std::byte> block(kBlock);
  for (uint64_t at = 0; at < file.size(); at += kBlock) {
    const auto part = std::span(block).first(std::min(kBlock, file.size() - at));
    file.read_at(at, part);
    PESC_CHECK(XXH3_128bits_update(state.get(), part.data(), part.size()) == XXH_OK, "XXH3");
  }
  return digits_of(XXH3_128bits_digest(state.get()));
}

template <class T>
std::string digest_of(const std::vector<T>& values) {
  return digits_of(XXH3_128bits(values.data(), values.size() * sizeof(T)));
}

}  // namespace

SourceStamp stamp_of(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) throw io_error("stat", path, errno);
  return {info.st_dev, info.st_ino, static_cast<uint64_t>(info.st_size), info.st_mtim.tv_sec,
          info.st_mtim.tv_nsec};
}

TokenCacheKey token_cache_key(const DatasetFile& file, const DatasetOptions& options) {
  PESC_CHECK(options.cache.has_value());
  const char* compression = "none";
  if (compression_of(file.path) == Compression::kGzip) compression = "gzip";
  if (compression_of(file.path) == Compression::kZstd) compression = "zstd";
  const char* part = "all";
  if (options.split.part == RowPart::kTraining) part = "training";
  if (options.split.part == RowPart::kValidation) part = "validation";
  char fraction[40];
  std::snprintf(fraction, sizeof fraction, "%.17g", options.split.validation_fraction);
  std::string columns;
  for (const auto& [theirs, ours] : file.columns.names) columns += str_cat(" '", theirs, "' as ", ours);

  std::string text =
      str_cat("tokenised rows ", kTokenizingVersion, "\ncontent ", digest_of_file(file.path),
              "\ncompression ", compression, "\ncolumns", columns, "\ntag ", tag_of(file.tag, "", file.path),
              file.tag.empty() ? " unless the row has one" : "", "\nmax_seq_length ", options.max_seq_length,
              "\non_long_row ", options.on_long_row == OnLongRow::kCut ? "cut" : "drop", "\nlong_text ",
              options.long_text == LongText::kSplit ? "split" : "as other rows", "\non_bad_row ",
              options.rows.on_bad_row == OnBadRow::kFail ? "fail" : "skip", "\nrows ",
              options.rows.use == RowUse::kTemplate ? "for a template" : "for the published prompt", " of ",
              options.rows.max_bytes, " bytes, ", options.rows.max_messages, " messages\npart ", part, " ",
              options.split.part == RowPart::kAll ? "" : fraction, "\n", options.cache->encoding, "\n");
  text = printable(text, kUncut, Keep::kLines);
  return {text, str_cat("rows-", digits_of(XXH3_128bits(text.data(), text.size())), ".tokens")};
}

std::string encoding_identity(const RowEncoder& encoder, const Tokenizer& tokenizer,
                              const std::string& tokenizer_digest) {
  // What other files than the tokenizer's own change about it.
  std::vector<uint8_t> kinds;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id)
    kinds.push_back(
        static_cast<uint8_t>((tokenizer.is_control(id) ? 1 : 0) | (tokenizer.is_unknown(id) ? 2 : 0)));
  return str_cat("tokenizer ", tokenizer_digest, ", ", tokenizer.vocab_size(), " ids, begin ",
                 tokenizer.bos_id(), ", end ", tokenizer.eos_id(), ", kinds ", digest_of(kinds), "\nprompt ",
                 encoder.identity());
}

}  // namespace pesc
