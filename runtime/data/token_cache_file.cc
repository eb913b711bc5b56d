#include "runtime/data/token_cache_file.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>

namespace pesc {
namespace {

static_assert(std::endian::native == std::endian::little, "the file's numbers are little-endian");

constexpr uint64_t kBeginMagic = 0x31534E454B4F5450;  // "PTOKENS1"
constexpr uint64_t kEndMagic = 0x31444E4554534550;    // "PESTEND1"
constexpr uint64_t kVersion = 1;
constexpr size_t kHeaderBytes = 16;
constexpr size_t kBufferBytes = size_t{1} << 20;
// Beyond any report: its lists are bounded, but for the tags.
constexpr uint64_t kMostMetaBytes = uint64_t{1} << 30;

uint64_t learned_bytes(uint64_t tokens) {
  return (tokens + 7) / 8;
}
uint64_t record_bytes(uint64_t tokens) {
  return sizeof(uint64_t) + tokens * sizeof(int32_t) + learned_bytes(tokens);
}

}  // namespace

struct TokenCacheEnd {
  uint64_t rows = 0;
  uint64_t index_offset = 0;  // 8 bytes a row
  uint64_t index_digest = 0;
  uint64_t meta_offset = 0;
  uint64_t meta_bytes = 0;
  uint64_t meta_digest = 0;
  uint64_t digest = 0;  // of all above
  uint64_t magic = kEndMagic;
  [[nodiscard]] uint64_t right_digest() const {
    return XXH3_64bits_withSeed(this, offsetof(TokenCacheEnd, digest), kVersion);
  }
};

// --- written

TokenCacheWriter::TokenCacheWriter(FileSystem& files, const std::string& path, std::string key)
    : file_(files.create_file(path)), key_(std::move(key)) {
  buffer_.reserve(2 * kBufferBytes);
  const uint64_t header[] = {kBeginMagic, kVersion};
  append(header, sizeof header);
}

TokenCacheWriter::~TokenCacheWriter() = default;

void TokenCacheWriter::append(const void* data, size_t size) {
  const auto* bytes = static_cast<const std::byte*>(data);
  buffer_.insert(buffer_.end(), bytes, bytes + size);
  offset_ += size;
  if (buffer_.size() >= kBufferBytes) flush();
}

void TokenCacheWriter::flush() {
  file_->append(buffer_);
  buffer_.clear();
}

void TokenCacheWriter::add(const TokenRow& row, int32_t tag) {
  PESC_CHECK(row.tokens.size() == row.supervised.size() && row.tokens.size() <= INT32_MAX && tag >= 0,
             row.tokens.size(), " tokens, ", row.supervised.size(), " marks, tag ", tag);
  const size_t tokens_bytes = row.tokens.size() * sizeof(int32_t);
  std::vector<std::byte> payload(tokens_bytes + learned_bytes(row.tokens.size()));
  if (tokens_bytes > 0) std::memcpy(payload.data(), row.tokens.data(), tokens_bytes);
  for (size_t t = 0; t < row.supervised.size(); ++t) {
    if (row.supervised[t] != 0) payload[tokens_bytes + t / 8] |= std::byte{1} << (t % 8);
  }
  const uint64_t digest = XXH3_64bits_withSeed(payload.data(), payload.size(), lengths_.size());
  append(&digest, sizeof digest);
  append(payload.data(), payload.size());
  lengths_.push_back(static_cast<uint32_t>(row.tokens.size()));
  tags_.push_back(static_cast<uint32_t>(tag));
}

void TokenCacheWriter::finish(FileReport report) {
  PESC_CHECK(report.rows == std::ssize(lengths_), report.rows, " rows, of which ", lengths_.size(),
             " are written");
  TokenCacheEnd end;
  end.rows = lengths_.size();
  end.index_offset = offset_;
  std::vector<uint32_t> index(lengths_);
  index.insert(index.end(), tags_.begin(), tags_.end());
  const size_t index_bytes = index.size() * sizeof(uint32_t);
  end.index_digest = XXH3_64bits(index.data(), index_bytes);
  append(index.data(), index_bytes);
  const std::string meta = to_json(report, key_);
  end.meta_offset = offset_;
  end.meta_bytes = meta.size();
  end.meta_digest = XXH3_64bits(meta.data(), meta.size());
  append(meta.data(), meta.size());
  end.digest = end.right_digest();
  append(&end, sizeof end);
  flush();
  file_->sync();
  file_->close();
}

// --- read

TokenCacheFile::TokenCacheFile(FileSystem& files, std::string path, const std::string& key)
    : path_(std::move(path)), file_(files.open(path_)) {
  const TokenCacheEnd end = read_end();
  read_index(end);
  read_meta(end, key);
}

void TokenCacheFile::damaged(const std::string& what) const {
  throw DamagedCache(str_cat("token cache '", path_, "': ", what));
}

TokenCacheEnd TokenCacheFile::read_end() const {
  const auto size = static_cast<uint64_t>(file_->size());
  TokenCacheEnd end;
  if (size < kHeaderBytes + sizeof end) damaged(str_cat("it has ", size, " bytes, and no end"));
  uint64_t header[2] = {};
  file_->read(0, std::as_writable_bytes(std::span(header)));
  file_->read(static_cast<int64_t>(size - sizeof end), std::as_writable_bytes(std::span(&end, 1)));
  if (header[0] != kBeginMagic || header[1] != kVersion) damaged("it does not begin as one of this version");
  if (end.magic != kEndMagic || end.digest != end.right_digest())
    damaged("it does not end as one; it is cut off or damaged");
  const uint64_t end_offset = size - sizeof end;
  const bool fits = end.index_offset >= kHeaderBytes && end.index_offset <= size && end.rows <= size / 8 &&
                    end.meta_offset == end.index_offset + 8 * end.rows && end.meta_bytes <= kMostMetaBytes &&
                    end.meta_offset + end.meta_bytes == end_offset;
  if (!fits) damaged(str_cat("its parts do not make its ", size, " bytes"));
  return end;
}

void TokenCacheFile::read_index(const TokenCacheEnd& end) {
  const auto rows = static_cast<size_t>(end.rows);
  std::vector<uint32_t> index(2 * rows);
  file_->read(static_cast<int64_t>(end.index_offset), std::as_writable_bytes(std::span(index)));
  if (XXH3_64bits(index.data(), index.size() * sizeof(uint32_t)) != end.index_digest)
    damaged("its index is damaged");
  const std::span tags = std::span(index).subspan(rows);
  if (std::ranges::any_of(tags, [](uint32_t tag) { return tag != 0; }))
    tags_.assign(tags.begin(), tags.end());
  index.resize(rows);
  index.shrink_to_fit();
  lengths_ = std::move(index);
  uint64_t offset = kHeaderBytes;
  for (size_t row = 0; row < rows; ++row) {
    if (row % kGroup == 0) offsets_.push_back(offset);
    offset += record_bytes(lengths_[row]);
  }
  if (offset != end.index_offset) damaged("its rows do not make its bytes");
}

void TokenCacheFile::read_meta(const TokenCacheEnd& end, const std::string& key) {
  std::string meta(static_cast<size_t>(end.meta_bytes), '\0');
  file_->read(static_cast<int64_t>(end.meta_offset), std::as_writable_bytes(std::span(meta)));
  if (XXH3_64bits(meta.data(), meta.size()) != end.meta_digest) damaged("its report is damaged");
  std::string written_key;
  try {
    report_ = report_from_json(meta, written_key);
  } catch (const DataError& error) {
    damaged(error.what());
  }
  if (written_key != key) damaged("it holds rows of other settings than its name says");
  const auto known = [this](uint32_t tag) { return tag < report_.tags.size(); };
  if (report_.rows != std::ssize(lengths_) || !std::ranges::all_of(tags_, known) ||
      (report_.rows > 0 && report_.tags.empty()))
    damaged("its report is of other rows than its index");
}

int64_t TokenCacheFile::length(int64_t row) const {
  PESC_CHECK(row >= 0 && row < report_.rows, "row ", row, " of ", report_.rows);
  return lengths_[static_cast<size_t>(row)];
}

int32_t TokenCacheFile::tag(int64_t row) const {
  PESC_CHECK(row >= 0 && row < report_.rows, "row ", row, " of ", report_.rows);
  return tags_.empty() ? 0 : static_cast<int32_t>(tags_[static_cast<size_t>(row)]);
}

void TokenCacheFile::read(int64_t row, TokenRow& out) const {
  const auto tokens = static_cast<size_t>(length(row));
  uint64_t offset = offsets_[static_cast<size_t>(row / kGroup)];
  for (auto before = static_cast<size_t>(row / kGroup * kGroup); before < static_cast<size_t>(row); ++before)
    offset += record_bytes(lengths_[before]);
  std::vector<std::byte> record(record_bytes(tokens));
  try {
    file_->read(static_cast<int64_t>(offset), record);
  } catch (const IoError& error) {
    if (error.number == 0) damaged(str_cat("row ", row, " is cut off: ", error.what()));
    throw;
  }
  uint64_t digest = 0;
  std::memcpy(&digest, record.data(), sizeof digest);
  const std::span payload = std::span(record).subspan(sizeof digest);
  if (XXH3_64bits_withSeed(payload.data(), payload.size(), static_cast<uint64_t>(row)) != digest)
    damaged(str_cat("row ", row, " (byte ", offset, ") is damaged"));
  const size_t tokens_bytes = tokens * sizeof(int32_t);
  out.tokens.resize(tokens);
  if (tokens_bytes > 0) std::memcpy(out.tokens.data(), payload.data(), tokens_bytes);
  out.supervised.resize(tokens);
  for (size_t t = 0; t < tokens; ++t)
    out.supervised[t] = static_cast<uint8_t>(payload[tokens_bytes + t / 8] >> (t % 8) & std::byte{1});
}

// --- the report

namespace {

using ReportJson = nlohmann::json;

// Calls visit(name, member) for each member.
template <class Report, class Visit>
void visit_members(Report& r, const Visit& visit) {
  visit("path", r.path);
  visit("rows", r.rows);
  visit("bad", r.bad);
  visit("dropped", r.dropped);
  visit("truncated", r.truncated);
  visit("cut_inside", r.cut_inside);
  visit("too_long", r.too_long);
  visit("split", r.split);
  visit("split_rows", r.split_rows);
  visit("tokens", r.tokens);
  visit("supervised", r.supervised);
  visit("longest", r.longest);
  visit("digest", r.digest);
  visit("tags", r.tags);
  visit("messages", r.messages);
  visit("warnings", r.warnings);
  visit("optional", r.optional);
}

}  // namespace

std::string to_json(const FileReport& report, const std::string& key) {
  ReportJson json = {{"key", key}};
  visit_members(report, [&](const char* name, const auto& value) { json[name] = value; });
  return json.dump(1, ' ', false, ReportJson::error_handler_t::replace);
}

FileReport report_from_json(const std::string& text, std::string& key) {
  FileReport report;
  try {
    const ReportJson json = ReportJson::parse(text);
    key = json.at("key").get<std::string>();
    visit_members(report, [&](const char* name, auto& value) { json.at(name).get_to(value); });
  } catch (const ReportJson::exception& error) {
    throw DataError(str_cat("its report cannot be read: ", error.what()));
  }
  return report;
}

}  // namespace pesc
