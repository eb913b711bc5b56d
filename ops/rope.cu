// Rotary position embedding on a GPU: with c, s = cos, sin of the angle of column i at the token's position,
//   (x_i, x_(i + D/2)) -> (x_i c - x_(i + D/2) s, x_(i + D/2) c + x_i s)
// T tokens, D head_dim. x is F32 or BF16, the tables are F32. A position outside the tables ends the kernel
// with an error.
#include "ops/core/vectors.cuh"
#include "ops/cuda_ops.h"
#include "ops/rope.h"

namespace pesc::cuda {
namespace {

// Frequencies of one launch, passed by value.
constexpr int64_t kFrequencies = 128;
struct Frequencies {
  double radians[kFrequencies];
};

// Columns [first, first + count) of the tables.
__global__ void table_kernel(Frequencies f, int64_t first, int64_t count, View<float> cosines,
                             View<float> sines) {
  for (int64_t e = first_index(); e < cosines.rows * count; e += index_step()) {
    const int64_t p = e / count;
    const int64_t i = e % count;
    double s = 0;
    double c = 0;
    sincos(static_cast<double>(p) * f.radians[i], &s, &c);
    cosines.row(p)[first + i] = static_cast<float>(c);
    sines.row(p)[first + i] = static_cast<float>(s);
  }
}

template <int N, class T>
__global__ void rotate_kernel(View<T> x, const int32_t* positions, View<const float> cosines,
                              View<const float> sines, float sign) {
  const int64_t half = cosines.cols;
  const int packs = static_cast<int>(half / N);
  PESC_FOR_ROWS(t, x.rows) {
    const int64_t p = positions[t];
    check_index("a position", p, cosines.rows);
#pragma unroll 2
    PESC_FOR_COLUMNS(i, x.cols / 2 / N) {
      const int head = static_cast<int>(i) / packs;
      const int64_t column = static_cast<int64_t>(static_cast<int>(i) % packs) * N;
      T* first = x.row(t) + head * 2 * half + column;
      float a[N], b[N], c[N], s[N];
      load_floats<N>(first, a);
      load_floats<N>(first + half, b);
      load_floats<N>(cosines.row(p) + column, c);
      load_floats<N>(sines.row(p) + column, s);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float u = a[j];
        const float v = b[j];
        a[j] = u * c[j] - v * (s[j] * sign);
        b[j] = v * c[j] + u * (s[j] * sign);
      }
      store_floats<N>(first, a);
      store_floats<N>(first + half, b);
    }
  }
}

void check_tables(const Tensor& cos, const Tensor& sin) {
  PESC_CHECK(
      cos.dtype == DType::kF32 && sin.dtype == DType::kF32 && cos.rows == sin.rows && cos.cols == sin.cols,
      "cos ", cos.rows, "x", cos.cols, ", sin ", sin.rows, "x", sin.cols);
}

}  // namespace

void rope_table(Stream& stream, std::span<const double> inv_freq, const Tensor& cos, const Tensor& sin) {
  check_tables(cos, sin);
  const auto half = static_cast<int64_t>(inv_freq.size());
  PESC_CHECK(half == cos.cols, "tables of ", cos.cols, " columns for ", half, " frequencies");
  if (cos.rows == 0) return;
  for (int64_t first = 0; first < half; first += kFrequencies) {
    const int64_t count = std::min(kFrequencies, half - first);
    Frequencies f{};
    std::copy_n(inv_freq.begin() + first, count, f.radians);
    table_kernel<<<blocks_for(cos.rows * count), kThreads, 0, stream_of(stream)>>>(
        f, first, count, view<float>(cos), view<float>(sin));
    PESC_LAUNCHED("rope_table");
  }
}

void rope(Stream& stream, const Tensor& x, const Tensor& positions, const Tensor& cos, const Tensor& sin,
          RopeDirection direction) {
  check_tables(cos, sin);
  const int64_t half = cos.cols;
  PESC_CHECK(half > 0 && x.cols % (2 * half) == 0 && x.cols < (int64_t{1} << 30), "x of ", x.cols,
             " columns for ", half, " frequencies");
  PESC_CHECK(positions.dtype == DType::kI32 && positions.rows == 1 && positions.cols == x.rows,
             "positions of ", positions.cols, " for ", x.rows, " tokens");
  if (x.size() == 0) return;
  const float sign = direction == RopeDirection::kForward ? 1.0F : -1.0F;
  // Half a head at the width of the tables: heads, halves and rows must all start on a pack.
  const Tensor halves{x.data, x.dtype, x.rows, half, x.ld};
  with_element(x.dtype, [&](auto element) {
    using T = decltype(element);
    with_pack<T>({halves, cos, sin}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const WholeRowGrid g(x.rows, x.cols / 2 / kWidth);
      rotate_kernel<kWidth, T><<<g.grid, g.block, 0, stream_of(stream)>>>(
          view<T>(x), positions.i32(), view<const float>(cos), view<const float>(sin), sign);
      PESC_LAUNCHED("rope");
    });
  });
}

}  // namespace pesc::cuda
