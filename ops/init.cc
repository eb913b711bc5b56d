// Initial values on the CPU. With i = row * global_cols + col the element's index in the global tensor,
//   bits = philox(counter = {low32(i / 4), high32(i / 4), low32(stream_id), high32(stream_id)},
//                 key = {low32(seed), high32(seed)}).
// Uniform: word i % 4 mapped to [0, 1) by philox_uniform, then to [-bound, bound).
// Normal (Box & Muller, 1958): words 0 and 1 make elements 0 and 1 of the four, words 2 and 3 elements 2 and
// 3:
//   r = sqrt(-2 ln u1), u1 = (word_even + 1) / 2^32 in (0, 1]; even element r cos(2 pi u2), odd r sin(2 pi
//   u2), u2 = word_odd / 2^32; computed in double.
#include "ops/init.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "ops/core/philox.h"
#include "ops/core/threads.h"
#include "ops/cuda_ops.h"

namespace pesc {
namespace {

using Four = std::array<float, 4>;

// Calls make(words) -> Four once per counter and writes the elements of the piece.
template <class Make>
void fill(const Stream& stream, const InitPiece& piece, Make make) {
  const Tensor& out = piece.out;
  if (out.size() == 0) return;
  PESC_CHECK(piece.row0 >= 0 && piece.col0 >= 0 && piece.col0 + out.cols <= piece.global_cols, "columns ",
             piece.col0, "..", piece.col0 + out.cols, " of ", piece.global_cols);
  const PhiloxKey key = {static_cast<uint32_t>(piece.seed), static_cast<uint32_t>(piece.seed >> 32)};
  float* data = out.f32();
  const auto fill_row = [&](int64_t r) {
    float* row = data + r * out.ld;
    const auto first = static_cast<uint64_t>((piece.row0 + r) * piece.global_cols + piece.col0);
    for (int64_t c = 0; c < out.cols;) {
      const uint64_t index = first + static_cast<uint64_t>(c);
      const uint64_t block = index / 4;
      const Four values =
          make(philox({static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                       static_cast<uint32_t>(piece.stream_id), static_cast<uint32_t>(piece.stream_id >> 32)},
                      key));
      const auto word = static_cast<int64_t>(index % 4);
      const int64_t take = std::min(4 - word, out.cols - c);
      for (int64_t i = 0; i < take; ++i) row[c + i] = values[static_cast<size_t>(word + i)];
      c += take;
    }
  };
  parallel_for(stream, out.rows, row_grain(4 * out.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) fill_row(r);
  });
}

}  // namespace

void init_uniform(Stream& stream, const InitPiece& piece, float bound) {
  if (stream.on_cuda()) return cuda_ops().init_uniform(stream, piece, bound);
  fill(stream, piece, [bound](const PhiloxCounter& words) {
    Four out;
    for (size_t i = 0; i < 4; ++i) out[i] = bound * (2.0F * philox_uniform(words[i]) - 1.0F);
    return out;
  });
}

void init_normal(Stream& stream, const InitPiece& piece, float std) {
  if (stream.on_cuda()) return cuda_ops().init_normal(stream, piece, std);
  fill(stream, piece, [std](const PhiloxCounter& words) {
    constexpr double kUnit = 1.0 / 4294967296.0;
    Four out;
    for (size_t i = 0; i < 4; i += 2) {
      const double radius = std::sqrt(-2.0 * std::log((static_cast<double>(words[i]) + 1.0) * kUnit));
      const double angle = 2.0 * std::numbers::pi * static_cast<double>(words[i + 1]) * kUnit;
      out[i] = static_cast<float>(std * radius * std::cos(angle));
      out[i + 1] = static_cast<float>(std * radius * std::sin(angle));
    }
    return out;
  });
}

}  // namespace pesc
