// Initial values on a GPU: the counters and formulas of ops/init.cc, one element per thread. Uniform values
// are bit for bit those of the CPU; normal ones agree to the last place of a float, their double precision
// logarithm, sine and cosine being another library's.
#include "ops/core/philox.h"
#include "ops/core/vectors.cuh"
#include "ops/cuda_ops.h"
#include "ops/init.h"

namespace pesc::cuda {
namespace {

struct Place {
  uint64_t seed, stream_id;
  int64_t row0, col0, global_cols;
};

struct Uniform {
  float bound;
  __device__ float operator()(const PhiloxCounter& words, int which) const {
    return bound * (2.0F * philox_uniform(words[static_cast<size_t>(which)]) - 1.0F);
  }
};

struct Normal {
  float std;
  __device__ float operator()(const PhiloxCounter& words, int which) const {
    constexpr double kUnit = 1.0 / 4294967296.0;
    constexpr double kTwoPi = 6.283185307179586476925286766559;
    const auto even = static_cast<size_t>(which / 2 * 2);
    const double radius = sqrt(-2.0 * log((static_cast<double>(words[even]) + 1.0) * kUnit));
    const double angle = kTwoPi * static_cast<double>(words[even + 1]) * kUnit;
    return static_cast<float>(std * radius * (which % 2 == 0 ? cos(angle) : sin(angle)));
  }
};

template <class Make, class T>
__global__ void fill_kernel(Place place, Make make, View<T> out) {
  PESC_FOR_ROWS(r, out.rows) {
    PESC_FOR_COLUMNS(c, out.cols) {
      const auto index = static_cast<uint64_t>((place.row0 + r) * place.global_cols + place.col0 + c);
      const uint64_t block = index / 4;
      const PhiloxCounter words =
          philox({static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                  static_cast<uint32_t>(place.stream_id), static_cast<uint32_t>(place.stream_id >> 32)},
                 {static_cast<uint32_t>(place.seed), static_cast<uint32_t>(place.seed >> 32)});
      out.row(r)[c] = from_float<T>(make(words, static_cast<int>(index % 4)));
    }
  }
}

template <class Make>
void fill(Stream& stream, const InitPiece& piece, Make make) {
  const Tensor& out = piece.out;
  if (out.size() == 0) return;
  PESC_CHECK(piece.row0 >= 0 && piece.col0 >= 0 && piece.col0 + out.cols <= piece.global_cols, "columns ",
             piece.col0, "..", piece.col0 + out.cols, " of ", piece.global_cols);
  const Place place{piece.seed, piece.stream_id, piece.row0, piece.col0, piece.global_cols};
  with_element(out.dtype, [&](auto element) {
    using T = decltype(element);
    const RowGrid g(out.rows, out.cols);
    fill_kernel<Make, T><<<g.grid, g.block, 0, stream_of(stream)>>>(place, make, view<T>(out));
    PESC_LAUNCHED("init");
  });
}

}  // namespace

void init_uniform(Stream& stream, const InitPiece& piece, float bound) {
  fill(stream, piece, Uniform{bound});
}

void init_normal(Stream& stream, const InitPiece& piece, float std) {
  fill(stream, piece, Normal{std});
}

}  // namespace pesc::cuda
