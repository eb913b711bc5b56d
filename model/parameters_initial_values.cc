// The values of the parameters: read from the dense checkpoint, made from their names and indices, rounded.
#include <algorithm>
#include <cmath>
#include <vector>

#include "model/parameters.h"
#include "ops/core/bf16.h"
#include "ops/core/check.h"
#include "ops/init.h"
#include "ops/reduce.h"

namespace pesc {
namespace {

// Host memory that a weight passes through, slice by slice: as much as a queue's pinned memory takes at once.
constexpr int64_t kSliceBytes = int64_t{1} << 20;

// FNV-1a: tells the random streams of tensors apart by name.
uint64_t hash_name(const std::string& name) {
  uint64_t hash = 14695981039346656037ULL;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
  return hash;
}

// A finite float32 value above BF16's largest rounds to infinity.
void check_rounded(const std::vector<float>& host, const std::vector<uint16_t>& narrow, int64_t size,
                   const ShardSpec& s, int64_t begin) {
  const auto infinite = [](uint16_t bits) { return (bits & 0x7F80U) == 0x7F80U; };
  uint32_t found = 0;  // without a branch, so that the loop is vectorised
  for (int64_t i = 0; i < size; ++i) found |= static_cast<uint32_t>(infinite(narrow[static_cast<size_t>(i)]));
  if (found == 0) return;
  const int64_t at = std::find_if(narrow.begin(), narrow.begin() + size, infinite) - narrow.begin();
  throw DataError(
      str_cat("tensor '", s.name, "' holds ", host[static_cast<size_t>(at)], " at [",
              s.row + begin + at / s.cols, ", ", s.col + at % s.cols,
              "], which is more than BF16 can hold; set train.compute: F32, or take another base"));
}

// Reads a piece slice by slice, so that no weight is ever whole in host memory.
void load(Stream& stream, WeightSource& source, const Parameter& p) {
  const ShardSpec& s = p.spec;
  const int64_t rows =
      std::max<int64_t>(1, kSliceBytes / int64_t{sizeof(float)} / std::max<int64_t>(s.cols, 1));
  std::vector<float> host(static_cast<size_t>(std::min(rows, s.rows) * s.cols));
  std::vector<uint16_t> narrow(p.value.dtype == DType::kBF16 ? host.size() : 0);
  for (int64_t begin = 0; begin < s.rows; begin += rows) {
    const int64_t n = std::min(rows, s.rows - begin);
    source.read(s.name, s.global_rows, s.global_cols, s.row + begin, n, s.col, s.cols, host.data());
    const Tensor to = p.value.row_range(begin, begin + n);
    if (narrow.empty()) {
      copy_from_host(stream, host.data(), to);
      continue;
    }
    std::transform(host.begin(), host.begin() + n * s.cols, narrow.begin(), f32_to_bf16);
    check_rounded(host, narrow, n * s.cols, s, begin);
    copy_from_host(stream, narrow.data(), to);
  }
}

}  // namespace

void ModelParameters::initialise(Stream& stream, WeightSource* source, uint64_t seed, double init_std) {
  for (const Parameter& p : all_) {
    const ShardSpec& s = p.spec;
    if (source != nullptr && p.dense) {
      load(stream, *source, p);
      continue;
    }
    const InitPiece piece{p.value, seed, hash_name(s.name), s.row, s.col, s.global_cols};
    switch (p.init) {
      case Init::kNormal:
        init_normal(stream, piece, static_cast<float>(init_std));
        break;
      case Init::kKaimingUniform:
        init_uniform(stream, piece, static_cast<float>(1.0 / std::sqrt(static_cast<double>(s.global_cols))));
        break;
      case Init::kZero:
        fill_zero(stream, p.value);
        break;
      case Init::kOnes: {
        const std::vector<float> host(static_cast<size_t>(s.size()), 1.0F);
        copy_from_host(stream, host.data(), p.value);
        break;
      }
    }
  }
  refresh_copies(stream);
}

void ModelParameters::refresh_copies(Stream& stream) const {
  for (const Parameter& p : all_) {
    if (p.copy.cols > 0) cast(stream, p.value, p.copy);
  }
}

}  // namespace pesc
