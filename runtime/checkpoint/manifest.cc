#include "runtime/checkpoint/manifest.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "ops/core/check.h"
#include "runtime/filesystem/file_kind.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

// The encoding of field 15, fixed64: one byte of tag, eight of value, little-endian.
constexpr char kChecksumTag = static_cast<char>((15 << 3) | 1);
constexpr size_t kChecksumField = 9;

class Validator {
 public:
  Validator(const proto::Manifest& manifest, const std::string& where) : manifest_(manifest), where_(where) {}

  void run() {
    require(manifest_.format_version() == kManifestVersion, "format_version is ", manifest_.format_version(),
            ", and this program reads ", kManifestVersion, "; use the pesc that wrote it");
    require(manifest_.step() >= 0, "step is ", manifest_.step());
    require(manifest_.consumed_samples() >= 0, "consumed_samples is ", manifest_.consumed_samples());
    if (manifest_.has_best()) {
      const auto& best = manifest_.best();
      require(best.step() >= 0 && best.step() <= manifest_.step(), "best.step is ", best.step());
      require(std::isfinite(best.eval_loss()), "best.eval_loss is ", best.eval_loss());
    }
    require(manifest_.layout().world_size() > 0, "layout.world_size is ", manifest_.layout().world_size());
    check_files();
    std::set<std::pair<std::string_view, int>> seen;
    for (const auto& tensor : manifest_.tensors()) {
      check_tensor(tensor);
      require(seen.emplace(tensor.name(), tensor.kind()).second, label(tensor), " stands there twice");
    }
    check_byte_ranges();
  }

 private:
  template <class... Parts>
  void require(bool holds, const Parts&... parts) const {
    if (!holds) throw DataError(str_cat(where_, ": ", parts...));
  }
  static std::string label(const proto::ManifestTensor& tensor) {
    return str_cat("tensor ", in_quotes(tensor.name()), " (", kind_name(tensor.kind()), ")");
  }

  void check_files() const {
    std::set<std::string_view> seen;
    for (const auto& file : manifest_.files()) {
      require(is_shard_name(file.name()), "a file name is not shard-RRRRR.safetensors");
      require(seen.insert(file.name()).second, "file ", file.name(), " stands there twice");
      require(file.size() > 0 && checksum_blocks(file.size()) == file.block_checksums_size(), "file ",
              file.name(), " of size ", file.size(), " has ", file.block_checksums_size(),
              " block checksums");
    }
  }

  void check_tensor(const proto::ManifestTensor& t) const {
    constexpr int64_t kMost = int64_t{1}
                              << 48;  // elements; far beyond any model, and no product below overflows
    require(!t.name().empty(), "a tensor has no name");
    require(t.kind() >= 0 && t.kind() <= proto::TensorKind::EXP_AVG_SQ, label(t), " has the unknown kind ",
            static_cast<int>(t.kind()));
    require(t.dtype() == "F32", label(t), " has another dtype than F32");
    require(t.rows() > 0 && t.cols() > 0 && t.rows() <= kMost / t.cols(), label(t),
            " has the impossible shape [", t.rows(), ", ", t.cols(), "]");
    int64_t covered = 0;
    for (const auto& p : t.pieces()) {
      require(p.rows() > 0 && p.cols() > 0 && p.row() >= 0 && p.col() >= 0 &&
                  p.rows() <= t.rows() - p.row() && p.cols() <= t.cols() - p.col(),
              label(t), ": the piece [", p.row(), "+", p.rows(), ", ", p.col(), "+", p.cols(),
              "] lies outside of [", t.rows(), ", ", t.cols(), "]");
      require(p.file() >= 0 && p.file() < manifest_.files_size(), label(t), " names file number ", p.file(),
              ", which is not listed");
      const int64_t size = manifest_.files(p.file()).size();
      require(p.bytes() == p.rows() * p.cols() * 4, label(t), " has ", p.bytes(), " bytes for a piece of ",
              p.rows(), "x", p.cols());
      require(p.offset() >= 0 && p.bytes() <= size && p.offset() <= size - p.bytes(), label(t),
              ": its bytes ", p.offset(), "+", p.bytes(), " lie beyond a file of ", size);
      require(p.rows() * p.cols() <= t.rows() * t.cols() - covered, label(t), ": pieces overlap");
      covered += p.rows() * p.cols();
    }
    require(covered == t.rows() * t.cols(), label(t), ": pieces cover ", covered, " of ", t.rows() * t.cols(),
            " elements");
    // In bounds, of the right total area and disjoint: an exact cover.
    require(disjoint(t), label(t), ": pieces overlap");
  }

  // Sweeps over the rows; the pieces that cross the sweep line stand in order of their columns.
  static bool disjoint(const proto::ManifestTensor& t) {
    std::vector<std::tuple<int64_t, bool, int>> events;  // row, begins (ends sort first), piece
    events.reserve(2 * static_cast<size_t>(t.pieces_size()));
    for (int i = 0; i < t.pieces_size(); ++i) {
      events.emplace_back(t.pieces(i).row(), true, i);
      events.emplace_back(t.pieces(i).row() + t.pieces(i).rows(), false, i);
    }
    std::sort(events.begin(), events.end());
    std::map<int64_t, int64_t> active;  // first column -> end column
    for (const auto& [row, begins, index] : events) {
      const int64_t begin = t.pieces(index).col();
      const int64_t end = begin + t.pieces(index).cols();
      if (!begins) {
        active.erase(begin);
        continue;
      }
      const auto next = active.lower_bound(begin);
      if (next != active.end() && next->first < end) return false;
      if (next != active.begin() && std::prev(next)->second > begin) return false;
      active.emplace_hint(next, begin, end);
    }
    return true;
  }

  void check_byte_ranges() const {
    std::vector<std::tuple<int, int64_t, int64_t>> ranges;
    for (const auto& tensor : manifest_.tensors())
      for (const auto& p : tensor.pieces()) ranges.emplace_back(p.file(), p.offset(), p.offset() + p.bytes());
    std::sort(ranges.begin(), ranges.end());
    for (size_t i = 1; i < ranges.size(); ++i) {
      const auto& [file, begin, end] = ranges[i];
      require(std::get<0>(ranges[i - 1]) != file || std::get<2>(ranges[i - 1]) <= begin, "file ",
              manifest_.files(file).name(), ": byte ranges overlap at ", begin);
    }
  }

  const proto::Manifest& manifest_;
  const std::string& where_;
};

}  // namespace

std::string serialize_manifest(const proto::Manifest& manifest) {
  PESC_CHECK(manifest.checksum() == 0, "the checksum is set by serialize_manifest");
  std::string bytes = manifest.SerializeAsString();
  const uint64_t checksum = XXH3_64bits(bytes.data(), bytes.size());
  bytes.push_back(kChecksumTag);
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(checksum >> (8 * i)));
  return bytes;
}

proto::Manifest parse_manifest(std::string_view bytes, const std::string& where) {
  const auto refuse = [&](const std::string& why) {
    check_first_bytes(bytes.substr(0, kFirstBytes), where, FileUse::kManifest);
    throw DataError(str_cat(where, ": ", why));
  };
  const size_t body = bytes.size() < kChecksumField ? 0 : bytes.size() - kChecksumField;
  if (body == 0 || static_cast<int64_t>(bytes.size()) > kMaxManifestBytes || bytes[body] != kChecksumTag)
    refuse(str_cat("is not a complete manifest (", bytes.size(), " bytes)"));
  uint64_t checksum = 0;
  for (size_t i = 0; i < 8; ++i)
    checksum |= uint64_t{static_cast<unsigned char>(bytes[body + 1 + i])} << (8 * i);
  if (checksum != XXH3_64bits(bytes.data(), body)) refuse("its checksum is wrong");
  proto::Manifest manifest;
  if (!manifest.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    throw DataError(str_cat(where, ": is not a manifest message"));
  validate_manifest(manifest, where);
  return manifest;
}

void validate_manifest(const proto::Manifest& manifest, const std::string& where) {
  Validator(manifest, where).run();
}

std::string shard_name(int rank) {
  char name[48];
  std::snprintf(name, sizeof name, "shard-%05d.safetensors", rank);
  return name;
}

bool is_shard_name(std::string_view name) {
  constexpr std::string_view kPrefix = "shard-";
  constexpr std::string_view kSuffix = ".safetensors";
  if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix)) return false;
  if (name.size() < kPrefix.size() + kSuffix.size() + 5 || name.size() > 64) return false;
  const auto digits = name.substr(kPrefix.size(), name.size() - kPrefix.size() - kSuffix.size());
  return digits.find_first_not_of("0123456789") == std::string_view::npos;
}

const char* kind_name(proto::TensorKind::Value kind) {
  switch (kind) {
    case proto::TensorKind::PARAM:
      return "param";
    case proto::TensorKind::EXP_AVG:
      return "exp_avg";
    case proto::TensorKind::EXP_AVG_SQ:
      return "exp_avg_sq";
    default:
      return "unknown kind";
  }
}

}  // namespace pesc
