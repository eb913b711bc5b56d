// The positions of the index are sorted by row (stably, so that they rise within a row); the first position
// of each run of equal rows then owns that row and adds up the run. Nothing is atomic, and no order depends
// on timing.
#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "ops/core/row_sums.h"
#include "ops/core/vectors.cuh"

namespace pesc::cuda {
namespace {

// Positions sorted at one time: 16 bytes each, and the sort's own memory, in the stream's workspace.
constexpr int64_t kAtOnce = int64_t{1} << 20;
constexpr int64_t kAlign = 256;

// row[i] = index[i] - first, or `rows` for one outside; position[i] = i
__global__ void local_rows(const int32_t* index, int64_t n, int64_t first, int64_t rows, Outside outside,
                           uint32_t* row, uint32_t* position) {
  for (int64_t i = first_index(); i < n; i += index_step()) {
    const int64_t local = index[i] - first;
    if (outside == Outside::kError) check_index("an index of rows", local, rows);
    row[i] = static_cast<uint32_t>(local < 0 || local >= rows ? rows : local);
    position[i] = static_cast<uint32_t>(i);
  }
}

template <int N, class In, class Out>
__global__ void add_runs(View<const In> in, const uint32_t* row, const uint32_t* position, View<Out> out) {
  PESC_FOR_ROWS(i, in.rows) {
    const uint32_t mine = row[i];
    if (mine >= out.rows || (i > 0 && row[i - 1] == mine)) continue;
    PESC_FOR_COLUMNS(c, in.cols / N) {
      float total[N];
      load_floats<N>(out.row(mine) + c * N, total);
      for (int64_t j = i; j < in.rows && row[j] == mine; ++j) {
        float values[N];
        load_floats<N>(in.row(position[j]) + c * N, values);
#pragma unroll
        for (int k = 0; k < N; ++k) total[k] += values[k];
      }
      store_floats<N>(out.row(mine) + c * N, total);
    }
  }
}

struct Sorted {
  uint32_t* row;
  uint32_t* position;
};

Sorted sort_positions(Stream& stream, const int32_t* index, int64_t n, int64_t first, int64_t rows,
                      Outside outside) {
  const auto stride = static_cast<int64_t>((n * int64_t{sizeof(uint32_t)} + kAlign - 1) / kAlign * kAlign);
  std::byte* memory = partials<std::byte>(stream, 4 * stride);
  const auto array = [&](int i) { return reinterpret_cast<uint32_t*>(memory + i * stride); };
  local_rows<<<blocks_for(n), kThreads, 0, stream_of(stream)>>>(index, n, first, rows, outside, array(0),
                                                                array(2));
  PESC_LAUNCHED("local_rows");
  const int bits = std::bit_width(static_cast<uint64_t>(rows));
  size_t bytes = 0;
  const auto sort = [&](void* work) {
    return cub::DeviceRadixSort::SortPairs(work, bytes, array(0), array(1), array(2), array(3),
                                           static_cast<int>(n), 0, bits, stream_of(stream));
  };
  PESC_CUDA(sort(nullptr));
  PESC_CHECK(4 * stride + static_cast<int64_t>(bytes) <= CudaStream::kWorkspaceBytes, "sorting ", n,
             " rows takes ", bytes, " bytes");
  PESC_CUDA(sort(memory + 4 * stride));
  return {array(1), array(3)};
}

}  // namespace

void add_indexed_rows(Stream& stream, const Tensor& in, const Tensor& index, int64_t first, Outside outside,
                      const Tensor& out) {
  PESC_CHECK(index.dtype == DType::kI32 && index.rows == 1 && index.cols == in.rows && in.cols == out.cols,
             "index of ", index.cols, " ", dtype_name(index.dtype), " for ", in.rows, "x", in.cols, " and ",
             out.rows, "x", out.cols);
  PESC_CHECK(out.rows < (int64_t{1} << 31), out.rows, " rows");
  if (in.size() == 0 || (out.rows == 0 && outside == Outside::kSkip)) return;
  for (int64_t begin = 0; begin < in.rows; begin += kAtOnce) {
    const int64_t end = std::min(begin + kAtOnce, in.rows);
    const Tensor part = in.row_range(begin, end);
    const Sorted sorted =
        sort_positions(stream, index.col_range(begin, end).i32(), end - begin, first, out.rows, outside);
    with_element(in.dtype, [&](auto from) {
      with_element(out.dtype, [&](auto to) {
        using In = decltype(from);
        using Out = decltype(to);
        with_pack<In>({part, out}, [&](auto width) {
          constexpr int kWidth = decltype(width)::value;
          const RowGrid g(part.rows, part.cols / kWidth);
          add_runs<kWidth, In, Out><<<g.grid, g.block, 0, stream_of(stream)>>>(
              view<const In>(part), sorted.row, sorted.position, view<Out>(out));
          PESC_LAUNCHED("add_runs");
        });
      });
    });
  }
}

}  // namespace pesc::cuda
