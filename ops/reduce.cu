// Data movements and sums on a GPU. Letters: T rows, C columns, n rows of an index. Tensors of one call have
// one element type, F32 or BF16 where there is arithmetic; a bias and its gradient may have another.
//
// Sums to F64: element e, counted along the rows, belongs to thread (e / 4) % all of a grid that depends on
// the number of elements alone; a thread adds in rising order, a block its threads, one last block the
// blocks. Whether rows stand next to each other changes nothing.
#include "ops/core/column_sums.cuh"
#include "ops/core/row_sums.h"
#include "ops/cuda_ops.h"
#include "ops/reduce.h"

namespace pesc::cuda {
namespace {

void check_same_shape(const Tensor& a, const Tensor& b) {
  PESC_CHECK(a.rows == b.rows && a.cols == b.cols && a.dtype == b.dtype, a.rows, "x", a.cols, " ",
             dtype_name(a.dtype), " against ", b.rows, "x", b.cols, " ", dtype_name(b.dtype));
}

size_t row_bytes(const Tensor& t) {
  return static_cast<size_t>(t.cols * dtype_bytes(t.dtype));
}
size_t pitch(const Tensor& t) {
  return static_cast<size_t>((t.rows > 1 ? t.ld : t.cols) * dtype_bytes(t.dtype));
}

template <int N, class T>
__global__ void add_kernel(View<const T> x, View<T> y) {
  PESC_FOR_ROWS(r, y.rows) {
    PESC_FOR_COLUMNS(c, y.cols / N) {
      float a[N], b[N];
      load_floats<N>(x.row(r) + c * N, a);
      load_floats<N>(y.row(r) + c * N, b);
#pragma unroll
      for (int i = 0; i < N; ++i) b[i] += a[i];
      store_floats<N>(y.row(r) + c * N, b);
    }
  }
}

template <int N, class From, class To>
__global__ void cast_kernel(View<const From> from, View<To> to) {
  PESC_FOR_ROWS(r, to.rows) {
    PESC_FOR_COLUMNS(c, to.cols / N) {
      float values[N];
      load_floats<N>(from.row(r) + c * N, values);
      store_floats<N>(to.row(r) + c * N, values);
    }
  }
}

template <int N, class B, class T>
__global__ void add_bias_kernel(const B* bias, View<T> y) {
  PESC_FOR_ROWS(r, y.rows) {
    PESC_FOR_COLUMNS(c, y.cols / N) {
      float a[N], b[N];
      load_floats<N>(bias + c * N, a);
      load_floats<N>(y.row(r) + c * N, b);
#pragma unroll
      for (int i = 0; i < N; ++i) b[i] += a[i];
      store_floats<N>(y.row(r) + c * N, b);
    }
  }
}

template <int N, class T>
struct ValuesTerm {
  View<const T> x;
  __device__ __forceinline__ void operator()(int64_t r, int64_t c, float (&values)[N]) const {
    load_floats<N>(x.row(r) + c, values);
  }
};

// Rows of `width` units of type U.
template <class U>
__global__ void gather_kernel(const U* in, int64_t in_ld, int64_t in_rows, const int32_t* index, U* out,
                              int64_t out_ld, int64_t rows, int64_t width) {
  PESC_FOR_ROWS(r, rows) {
    const int64_t from = index[r];
    check_index("an index of rows", from, in_rows);
    PESC_FOR_COLUMNS(c, width) {
      out[r * out_ld + c] = in[from * in_ld + c];
    }
  }
}

template <class U>
void gather(Stream& stream, const Tensor& in, const Tensor& index, const Tensor& out) {
  const int64_t units = dtype_bytes(in.dtype);
  constexpr auto kUnit = static_cast<int64_t>(sizeof(U));
  const int64_t width = in.cols * units / kUnit;
  const RowGrid g(out.rows, width);
  gather_kernel<U><<<g.grid, g.block, 0, stream_of(stream)>>>(
      static_cast<const U*>(in.data), in.ld * units / kUnit, in.rows, index.i32(), static_cast<U*>(out.data),
      out.ld * units / kUnit, out.rows, width);
  PESC_LAUNCHED("gather_rows");
}

constexpr int kSumBlocks = 1024;
constexpr int kQuad = 4;

struct Value {
  __device__ __forceinline__ double operator()(double v) const { return v; }
};
struct Square {
  __device__ __forceinline__ double operator()(double v) const { return v * v; }
};

template <class Term, class T>
__global__ void sum_blocks(View<const T> x, bool packed, Term term, double* partial) {
  const int64_t size = x.rows * x.cols;
  const bool whole = x.ld == x.cols || x.rows == 1;
  double total = 0;
  int64_t quad = first_index();
  if (packed) {  // quads that can be loaded at once
#pragma unroll 4
    for (; (quad + 1) * kQuad <= size; quad += index_step()) {
      float values[kQuad];
      load_floats<kQuad>(x.data + quad * kQuad, values);
#pragma unroll
      for (int i = 0; i < kQuad; ++i) total += term(static_cast<double>(values[i]));
    }
  }
  for (; quad * kQuad < size; quad += index_step()) {
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      const int64_t e = quad * kQuad + i;
      if (e < size) {
        const T v = whole ? x.data[e] : x.row(e / x.cols)[e % x.cols];
        total += term(static_cast<double>(as_float(v)));
      }
    }
  }
  total = block_sum(total);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

static __global__ void add_blocks(const double* partial, int blocks, double* out) {
  double total = 0;
  for (int i = static_cast<int>(threadIdx.x); i < blocks; i += static_cast<int>(blockDim.x))
    total += partial[i];
  total = block_sum(total);
  if (threadIdx.x == 0) out[0] += total;
}

template <class Term>
void sum_terms(Stream& stream, const Tensor& x, const Tensor& out, Term term) {
  PESC_CHECK(out.rows == 1 && out.cols == 1, "sum into ", out.rows, "x", out.cols);
  double* to = out.f64();
  if (x.size() == 0) return;
  const int blocks = static_cast<int>(
      std::clamp<int64_t>((x.size() + kQuad * kThreads - 1) / (kQuad * kThreads), 1, kSumBlocks));
  double* partial = partials<double>(stream, blocks);
  const auto alignment = static_cast<uintptr_t>(kQuad * dtype_bytes(x.dtype));
  const bool packed = x.contiguous() && reinterpret_cast<uintptr_t>(x.data) % alignment == 0;
  with_element(x.dtype, [&](auto element) {
    using T = decltype(element);
    sum_blocks<Term, T><<<static_cast<unsigned>(blocks), kThreads, 0, stream_of(stream)>>>(
        view<const T>(x), packed, term, partial);
    PESC_LAUNCHED("sum_blocks");
  });
  add_blocks<<<1, kThreads, 0, stream_of(stream)>>>(partial, blocks, to);
  PESC_LAUNCHED("add_blocks");
}

}  // namespace

void fill_zero(Stream& stream, const Tensor& x) {
  if (x.size() == 0) return;
  if (x.contiguous()) {
    PESC_CUDA(cudaMemsetAsync(x.data, 0, static_cast<size_t>(x.bytes()), stream_of(stream)));
  } else {
    PESC_CUDA(
        cudaMemset2DAsync(x.data, pitch(x), 0, row_bytes(x), static_cast<size_t>(x.rows), stream_of(stream)));
  }
}

void copy(Stream& stream, const Tensor& from, const Tensor& to) {
  check_same_shape(from, to);
  if (from.size() == 0 || (from.data == to.data && from.ld == to.ld)) return;
  if (from.contiguous() && to.contiguous()) {
    PESC_CUDA(cudaMemcpyAsync(to.data, from.data, static_cast<size_t>(from.bytes()), cudaMemcpyDeviceToDevice,
                              stream_of(stream)));
  } else {
    PESC_CUDA(cudaMemcpy2DAsync(to.data, pitch(to), from.data, pitch(from), row_bytes(from),
                                static_cast<size_t>(from.rows), cudaMemcpyDeviceToDevice, stream_of(stream)));
  }
}

void cast(Stream& stream, const Tensor& from, const Tensor& to) {
  PESC_CHECK(from.rows == to.rows && from.cols == to.cols, from.rows, "x", from.cols, " into ", to.rows, "x",
             to.cols);
  if (from.size() == 0) return;
  const bool whole = from.contiguous() && to.contiguous();
  const Tensor in = whole ? flat(from) : from;
  const Tensor out = whole ? flat(to) : to;
  with_element(in.dtype, [&](auto from_element) {
    with_element(out.dtype, [&](auto to_element) {
      using From = decltype(from_element);
      using To = decltype(to_element);
      with_pack<To>({in, out}, [&](auto width) {
        constexpr int kWidth = decltype(width)::value;
        const RowGrid g(out.rows, out.cols / kWidth);
        cast_kernel<kWidth, From, To>
            <<<g.grid, g.block, 0, stream_of(stream)>>>(view<const From>(in), view<To>(out));
        PESC_LAUNCHED("cast");
      });
    });
  });
}

void add(Stream& stream, const Tensor& x, const Tensor& y) {
  check_same_shape(x, y);
  if (x.size() == 0) return;
  const bool whole = x.contiguous() && y.contiguous();
  const Tensor from = whole ? flat(x) : x;
  const Tensor to = whole ? flat(y) : y;
  with_element(x.dtype, [&](auto element) {
    using T = decltype(element);
    with_pack<T>({from, to}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const RowGrid g(to.rows, to.cols / kWidth);
      add_kernel<kWidth, T><<<g.grid, g.block, 0, stream_of(stream)>>>(view<const T>(from), view<T>(to));
      PESC_LAUNCHED("add");
    });
  });
}

void add_bias(Stream& stream, const Tensor& bias, const Tensor& y) {
  PESC_CHECK(bias.rows == 1 && bias.cols == y.cols, "bias of ", bias.cols, " for ", y.cols, " columns");
  if (y.size() == 0) return;
  with_element(bias.dtype, [&](auto bias_element) {
    with_element(y.dtype, [&](auto element) {
      using B = decltype(bias_element);
      using T = decltype(element);
      with_pack<T>({bias, y}, [&](auto width) {
        constexpr int kWidth = decltype(width)::value;
        const RowGrid g(y.rows, y.cols / kWidth);
        add_bias_kernel<kWidth, B, T>
            <<<g.grid, g.block, 0, stream_of(stream)>>>(pointer<const B>(bias), view<T>(y));
        PESC_LAUNCHED("add_bias");
      });
    });
  });
}

void bias_backward(Stream& stream, const Tensor& dy, const Tensor& dbias) {
  PESC_CHECK(dbias.rows == 1 && dbias.cols == dy.cols, "bias of ", dbias.cols, " for ", dy.cols, " columns");
  with_element(dy.dtype, [&](auto element) {
    using T = decltype(element);
    with_pack<T>({dy}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      add_column_sums<kWidth>(stream, ValuesTerm<kWidth, T>{view<const T>(dy)}, dy.rows, dy.cols,
                              dbias.f32());
    });
  });
}

void gather_rows(Stream& stream, const Tensor& in, const Tensor& index, const Tensor& out) {
  PESC_CHECK(index.dtype == DType::kI32 && index.rows == 1 && index.cols == out.rows && out.cols == in.cols &&
                 out.dtype == in.dtype,
             "index of ", index.cols, " for ", out.rows, "x", out.cols, " and ", in.rows, "x", in.cols);
  if (out.size() == 0) return;
  const int64_t bytes = dtype_bytes(in.dtype);
  if (packs(in, 16 / bytes) && packs(out, 16 / bytes)) return gather<uint4>(stream, in, index, out);
  switch (bytes) {
    case 8:
      return gather<uint64_t>(stream, in, index, out);
    case 4:
      return gather<uint32_t>(stream, in, index, out);
    case 2:
      return gather<uint16_t>(stream, in, index, out);
    default:
      return gather<uint8_t>(stream, in, index, out);
  }
}

void scatter_add_rows(Stream& stream, const Tensor& in, const Tensor& index, const Tensor& out) {
  PESC_CHECK(in.dtype == out.dtype, dtype_name(in.dtype), " into ", dtype_name(out.dtype));
  add_indexed_rows(stream, in, index, 0, Outside::kError, out);
}

void sum_squares(Stream& stream, const Tensor& x, const Tensor& out) {
  sum_terms(stream, x, out, Square{});
}

void sum(Stream& stream, const Tensor& x, const Tensor& out) {
  sum_terms(stream, x, out, Value{});
}

}  // namespace pesc::cuda
