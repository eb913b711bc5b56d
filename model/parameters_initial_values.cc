// The values of the parameters: read from the dense checkpoint, made from their names and indices, rounded.
#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "model/frozen_linear.h"
#include "model/parameters.h"
#include "model/quantized_weights.h"
#include "ops/core/check.h"
#include "ops/init.h"
#include "ops/reduce.h"

namespace pesc {
namespace {

// Host memory that a weight passes through, slice by slice: as much as the pinned memory of a CUDA stream
// takes at once.
constexpr int64_t kSliceBytes = int64_t{1} << 20;

// FNV-1a: tells the random streams of tensors apart by name.
uint64_t hash_name(const std::string& name) {
  uint64_t hash = 14695981039346656037ULL;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
  return hash;
}

// Reads a piece slice by slice, so that no weight is ever whole in host memory.
void load(Stream& stream, WeightSource& source, const Parameter& p,
          const std::function<void(int64_t)>& loaded) {
  const ShardSpec& s = p.spec;
  const int64_t rows =
      std::max<int64_t>(1, kSliceBytes / int64_t{sizeof(float)} / std::max<int64_t>(s.cols, 1));
  std::vector<float> host(static_cast<size_t>(std::min(rows, s.rows) * s.cols));
  const FrozenLinear to = p.held.out > 0 ? p.held : FrozenLinear::of(p.master);
  FrozenWriter writer(stream, to);
  ShardSpec slice = s;
  for (int64_t begin = 0; begin < s.rows; begin += rows) {
    const int64_t n = std::min(rows, s.rows - begin);
    slice.row = s.row + begin;
    slice.rows = n;
    source.read(slice, host.data());
    const int64_t at = writer.write(begin, n, host.data());
    if (loaded) loaded(n * s.cols);
    if (at < 0) continue;
    throw DataError(str_cat("tensor '", s.name, "' holds ", host[static_cast<size_t>(at)], " at [",
                            s.row + begin + at / s.cols, ", ", s.col + at % s.cols, "], which is more than ",
                            frozen_format_name(to.type.format),
                            " can hold; set train.compute_dtype: F32, or take another base"));
  }
}

}  // namespace

void ModelParameters::initialise_quantized(Stream& stream, const Parameter& p, WeightSource* source,
                                           uint64_t seed, double initializer_range) {
  const ShardSpec& s = p.spec;
  if (source != nullptr) {
    if (source->write_quantized(stream, s, p.held)) return;
    const ReadRows read = [&](int64_t row, int64_t rows, float* to) {
      source->read({s.name, s.global_rows, s.global_cols, row, rows, 0, s.global_cols}, to);
    };
    return write_quantized(stream, s, read, p.held);
  }
  const auto random = [&](int64_t row, const Tensor& to) {
    init_normal(stream, {to, seed, hash_name(s.name), row, 0, s.global_cols},
                static_cast<float>(initializer_range));
  };
  // NF4 reads a tensor twice. On the CPU, which makes values more slowly than it quantises them, they are kept.
  std::vector<float> kept;
  const FillRows fill = [&](int64_t row, const Tensor& to) {
    if (stream.on_cuda() || p.held.type.format != FrozenFormat::kNF4) return random(row, to);
    if (kept.empty()) {
      kept.resize(static_cast<size_t>(s.global_rows * s.global_cols));
      random(0, tensor_of(kept.data(), s.global_rows, s.global_cols));
    }
    copy_from_host(stream, kept.data() + row * s.global_cols, to);
  };
  write_quantized(stream, s, fill, p.held);
}

void ModelParameters::initialise(Stream& stream, WeightSource* source, uint64_t seed,
                                 double initializer_range,
                                 const std::function<void(int64_t values)>& loaded) {
  for (const Parameter& p : all_) {
    const ShardSpec& s = p.spec;
    if (p.held.out > 0 && is_quantized(p.held.type.format)) {
      if (source != nullptr && source->quantized(s.name)) {
        copy_quantized(stream, s, *source, p.held);
      } else {
        initialise_quantized(stream, p, source, seed, initializer_range);
      }
      if (loaded && source != nullptr) loaded(s.size());
      continue;
    }
    // A source may have experts and LoRA to go on from.
    if (source != nullptr && (p.dense || (p.trainable && source->has(s.name)))) {
      load(stream, *source, p, loaded);
      continue;
    }
    const InitPiece piece{p.master, seed, hash_name(s.name), s.row, s.col, s.global_cols};
    switch (p.init) {
      case Init::kNormal:
        init_normal(stream, piece, static_cast<float>(initializer_range));
        break;
      case Init::kKaimingUniform:
        init_uniform(stream, piece, static_cast<float>(1.0 / std::sqrt(static_cast<double>(s.global_cols))));
        break;
      case Init::kZero:
        fill_zero(stream, p.master);
        break;
      case Init::kOnes: {
        const std::vector<float> host(static_cast<size_t>(s.size()), 1.0F);
        copy_from_host(stream, host.data(), p.master);
        break;
      }
    }
  }
  refresh_compute_weights(stream);
}

void ModelParameters::refresh_compute_weights(Stream& stream) const {
  for (const Parameter& p : all_) {
    if (p.compute_weight.cols > 0) cast(stream, p.master, p.compute_weight);
  }
}

}  // namespace pesc
