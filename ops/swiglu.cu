// SwiGLU on a GPU. With s = 1 / (1 + exp(-gate)):
//   dup = dh gate s;  dgate = dh up s (1 + gate (1 - s))
// T tokens, F columns; all tensors have one element type and any row stride. With a LoRA path the backward
// first computes the gradient before the mask (a GEMM); one kernel then does everything elementwise and
// leaves dropout(h) in dh, for the weight gradient (a GEMM).
#include <cuda_pipeline.h>

#include "ops/cuda_ops.h"
#include "ops/dropout_mask.cuh"
#include "ops/fp8_rows.cuh"
#include "ops/swiglu.h"

namespace pesc::cuda {
namespace {

__device__ __forceinline__ float sigmoid(float z) {
  return __fdividef(1.0F, 1.0F + __expf(-z));
}

// Writes h and dropout(h). Either is optional.
template <int N, class T>
__global__ void forward_kernel(View<const T> gate_up, int64_t cols, View<T> h, Mask mask, View<T> dropped) {
  PESC_FOR_ROWS(r, gate_up.rows) {
    const RowMask row(mask, r);
#pragma unroll 2
    PESC_FOR_COLUMNS(i, cols / N) {
      float gate[N], up[N];
      load_floats<N>(gate_up.row(r) + i * N, gate);
      load_floats<N>(gate_up.row(r) + cols + i * N, up);
#pragma unroll
      for (int j = 0; j < N; ++j) up[j] *= gate[j] * sigmoid(gate[j]);
      if (h.data != nullptr) store_floats<N>(h.row(r) + i * N, up);
      if (dropped.data == nullptr) continue;
      row.apply(i * N, up);
      store_floats<N>(dropped.row(r) + i * N, up);
    }
  }
}

// A pack of the backward. With a term: adds mask(term) to dh first, and leaves dropout(h) in dh.
template <bool kTerm, int N, class T>
__device__ __forceinline__ void gradient_pack(const View<T>& dh, const View<const T>& gate_up,
                                              const RowMask& row, const View<const T>& term, int64_t r,
                                              int64_t column, float (&dgate)[N], float (&dup)[N]) {
  float d[N], (&gate)[N] = dgate, (&up)[N] = dup;
  load_floats<N>(dh.row(r) + column, d);
  load_floats<N>(gate_up.row(r) + column, gate);
  load_floats<N>(gate_up.row(r) + dh.cols + column, up);
  float plus[N], factor[N];
  if constexpr (kTerm) {
    load_floats<N>(term.row(r) + column, plus);
    // The mask is applied to ones, so that both uses share one Philox call.
#pragma unroll
    for (int j = 0; j < N; ++j) factor[j] = 1.0F;
    row.apply(column, factor);
  }
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const float g = gate[j];
    const float s = sigmoid(g);
    const float silu = g * s;
    if constexpr (kTerm) {
      // A dropped value counts as zero even when it is NaN.
      const bool kept = factor[j] > 0;
      d[j] += kept ? plus[j] * factor[j] : 0.0F;
      plus[j] = kept ? up[j] * silu * factor[j] : 0.0F;
    }
    gate[j] = d[j] * up[j] * s * fmaf(g, 1.0F - s, 1.0F);
    up[j] = d[j] * silu;
  }
  if constexpr (kTerm) store_floats<N>(dh.row(r) + column, plus);
}

// dgate_up may alias gate_up: a thread writes only elements that no other thread reads.
template <bool kTerm, int N, class T>
__global__ void backward_kernel(View<T> dh, View<const T> gate_up, View<T> dgate_up, Mask mask,
                                View<const T> term) {
  PESC_FOR_ROWS(r, dh.rows) {
    const RowMask row(mask, r);
#pragma unroll 2
    PESC_FOR_COLUMNS(i, dh.cols / N) {
      float gate[N], up[N];
      gradient_pack<kTerm, N, T>(dh, gate_up, row, term, r, i * N, gate, up);
      store_floats<N>(dgate_up.row(r) + i * N, gate);
      store_floats<N>(dgate_up.row(r) + dh.cols + i * N, up);
    }
  }
}

// With codes a block takes whole rows and keeps what it makes of one, rounded, in shared memory until the row's scale
// is known; a thread reads only what it wrote there. Two blocks share a multiprocessor, so that one computes while
// the other waits.
constexpr unsigned kCodesThreads = 512;

// Rounds N values to T, keeps them in `kept` and writes them; `largest` takes their magnitudes.
template <int N, class T>
__device__ __forceinline__ void keep(const float (&v)[N], Pack<T, N>& kept, T* to, uint32_t& largest) {
  Pack<T, N> pack;
#pragma unroll
  for (int j = 0; j < N; ++j) pack.v[j] = from_float<T>(v[j]);
  kept = pack;
  if (to != nullptr) store_pack<N>(to, pack);
  float rounded[N];
#pragma unroll
  for (int j = 0; j < N; ++j) rounded[j] = as_float(pack.v[j]);
  largest = largest_bits<N>(rounded, largest);
}

// kStages - 1 rows of gate and up are on their way while one is worked on. h stays where its gate was.
template <int kStages, int N, class T>
__global__ void __launch_bounds__(kCodesThreads, 2)
    forward_codes_kernel(View<const T> gate_up, int64_t cols, View<T> h, Mask mask, View<T> dropped,
                         View<uint8_t> codes, float* scales) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ uint32_t partial[2][kWarp];
  const int packs = static_cast<int>(cols / N);
  const int written = static_cast<int>(codes.cols / N);
  const int threads = static_cast<int>(blockDim.x);
  const auto ring = [&](int stage) { return reinterpret_cast<Pack<T, N>*>(memory) + stage * 2 * packs; };
  const auto fetch = [&](int64_t r, int stage) {
    if (r < gate_up.rows) {
      const T* row = gate_up.row(r);
      for (int i = static_cast<int>(threadIdx.x); i < packs; i += threads) {
        if constexpr (sizeof(Pack<T, N>) >= 4) {
          __pipeline_memcpy_async(ring(stage) + i, row + int64_t{i} * N, sizeof(Pack<T, N>));
          __pipeline_memcpy_async(ring(stage) + packs + i, row + cols + int64_t{i} * N, sizeof(Pack<T, N>));
        } else {
          ring(stage)[i] = load_pack<N>(row + int64_t{i} * N);
          ring(stage)[packs + i] = load_pack<N>(row + cols + int64_t{i} * N);
        }
      }
    }
    __pipeline_commit();
  };
  if constexpr (kStages == 2) fetch(blockIdx.x, 0);
  int stage = 0;
  int turn = 0;
  for (int64_t r = blockIdx.x; r < gate_up.rows; r += gridDim.x, turn = 1 - turn) {
    const RowMask row(mask, r);
    if constexpr (kStages == 2) {
      fetch(r + gridDim.x, 1 - stage);
    } else {
      fetch(r, 0);
    }
    __pipeline_wait_prior(kStages - 1);
    Pack<T, N>* kept = ring(stage);
    uint32_t largest = 0;
    for (int i = static_cast<int>(threadIdx.x); i < packs; i += threads) {
      const int64_t column = int64_t{i} * N;
      float gate[N], up[N];
      load_floats<N>(reinterpret_cast<const T*>(kept + i), gate);
      load_floats<N>(reinterpret_cast<const T*>(kept + packs + i), up);
#pragma unroll
      for (int j = 0; j < N; ++j) up[j] *= gate[j] * sigmoid(gate[j]);
      keep<N, T>(up, kept[i], h.data != nullptr ? h.row(r) + column : nullptr, largest);
      if (dropped.data == nullptr) continue;
      row.apply(column, up);
      store_floats<N>(dropped.row(r) + column, up);
    }
    const RowScale scale(block_largest(largest, partial[turn]));
    if (threadIdx.x == 0) scales[r] = scale.scale;
    for (int i = static_cast<int>(threadIdx.x); i < written; i += threads) {
      float v[N] = {};
      if (i < packs) load_floats<N>(reinterpret_cast<const T*>(&kept[i]), v);
      store_pack<N>(codes.row(r) + int64_t{i} * N, scale.codes<N>(v));
    }
    if constexpr (kStages == 2) stage = 1 - stage;
  }
}

// The column scales in shared memory, as bf16: powers of two have no mantissa.
__device__ __forceinline__ void copy_powers(const float* from, int64_t count, bf16* to) {
  for (auto i = static_cast<int64_t>(threadIdx.x); i < count; i += blockDim.x) {
    check_index("the mantissa of a column scale", __float_as_uint(from[i]) & 0x7FFFFF, 1);
    to[i] = __float2bfloat16_rn(from[i]);
  }
}

template <bool kTerm, int N, class T>
__global__ void __launch_bounds__(kCodesThreads, 2)
    backward_codes_kernel(View<T> dh, View<const T> gate_up, View<T> dgate_up, Mask mask, View<const T> term,
                          const float* factors, View<uint8_t> codes, float* scales) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ uint32_t partial[2][kWarp];
  const int64_t cols = dh.cols;
  const int packs = static_cast<int>(cols / N);
  const int threads = static_cast<int>(blockDim.x);
  auto* kept = reinterpret_cast<Pack<T, N>*>(memory);
  auto* powers = reinterpret_cast<bf16*>(kept + 2 * packs);
  if (factors != nullptr) {
    copy_powers(factors, 2 * cols, powers);
    __syncthreads();
  }
  const auto scaled = [&](int i, float(&v)[N]) {
    load_floats<N>(reinterpret_cast<const T*>(&kept[i]), v);
    if (factors == nullptr) return;
    float power[N];
    load_floats<N>(powers + i * N, power);
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] *= power[j];
  };
  int turn = 0;
  for (int64_t r = blockIdx.x; r < dh.rows; r += gridDim.x, turn = 1 - turn) {
    const RowMask row(mask, r);
    uint32_t largest = 0;
    for (int i = static_cast<int>(threadIdx.x); i < packs; i += threads) {
      const int64_t column = int64_t{i} * N;
      float gate[N], up[N];
      gradient_pack<kTerm, N, T>(dh, gate_up, row, term, r, column, gate, up);
      uint32_t unscaled = 0;
      keep<N, T>(gate, kept[i], dgate_up.row(r) + column, unscaled);
      keep<N, T>(up, kept[packs + i], dgate_up.row(r) + cols + column, unscaled);
      scaled(i, gate);
      scaled(packs + i, up);
      largest = largest_bits<N>(up, largest_bits<N>(gate, largest));
    }
    const RowScale scale(block_largest(largest, partial[turn]));
    if (threadIdx.x == 0) scales[r] = scale.scale;
    for (int i = static_cast<int>(threadIdx.x); i < packs; i += threads) {
      float gate[N], up[N];
      scaled(i, gate);
      scaled(packs + i, up);
      store_pack<N>(codes.row(r) + int64_t{i} * N, scale.codes<N>(gate));
      store_pack<N>(codes.row(r) + cols + int64_t{i} * N, scale.codes<N>(up));
    }
    for (auto i = 2 * cols + static_cast<int64_t>(threadIdx.x); i < codes.cols; i += threads)
      codes.row(r)[i] = 0;
  }
}

// Blocks of a kernel that takes a row of `packs` at a time, with so many bytes of shared memory.
struct CodesGrid {
  unsigned blocks, threads;
  template <class Kernel>
  CodesGrid(const Stream& stream, Kernel kernel, int64_t rows, int64_t packs, int64_t bytes) {
    const int64_t each = (packs + kCodesThreads - 1) / kCodesThreads;
    threads = static_cast<unsigned>(((packs + each - 1) / each + kWarp - 1) / kWarp * kWarp);
    blocks = resident_blocks(stream, kernel, rows, threads, bytes);
  }
};
// Bytes of shared memory that a block has beside the partial maxima.
constexpr int64_t kSharedBytes = 226 * 1024;

void check(const Tensor& gate_up, const Tensor& h) {
  PESC_CHECK(gate_up.dtype == h.dtype, dtype_name(gate_up.dtype), ", ", dtype_name(h.dtype));
  PESC_CHECK(gate_up.rows == h.rows && gate_up.cols == 2 * h.cols, "gate and up ", gate_up.rows, "x",
             gate_up.cols, " for ", h.rows, "x", h.cols);
}

// Gate and up as separate tensors, to test their alignment.
Tensor gate_of(const Tensor& t) {
  return t.col_range(0, t.cols / 2);
}
Tensor up_of(const Tensor& t) {
  return t.col_range(t.cols / 2, t.cols);
}

}  // namespace

void swiglu_forward(Stream& stream, const Tensor& gate_up, const Tensor& h, const DroppedCopy& dropped,
                    const Fp8Rows& codes) {
  for (const Tensor& t : {h, dropped.y})
    if (t.present()) check(gate_up, t);
  check_mask(dropped.mask, dropped.y.present() ? gate_up.rows : dropped.mask.samples.size());
  const int64_t cols = gate_up.cols / 2;
  check_codes(codes, gate_up.rows, cols);
  if (gate_up.size() == 0) return;
  with_element(gate_up.dtype, [&](auto element) {
    using T = decltype(element);
    with_masked_pack<T>(
        dropped.mask, {gate_of(gate_up), up_of(gate_up), h, dropped.y, codes.codes}, [&](auto width) {
          constexpr int kWidth = decltype(width)::value;
          if (codes.present()) {
            const int64_t row = 2 * cols * dtype_bytes(gate_up.dtype);
            PESC_CHECK(row <= kSharedBytes, cols, " columns with codes");
            const bool ahead = 2 * row <= kSharedBytes;
            const int64_t bytes = ahead ? 2 * row : row;
            const auto kernel =
                ahead ? forward_codes_kernel<2, kWidth, T> : forward_codes_kernel<1, kWidth, T>;
            const CodesGrid g(stream, kernel, gate_up.rows, cols / kWidth, bytes);
            kernel<<<g.blocks, g.threads, static_cast<size_t>(bytes), stream_of(stream)>>>(
                view<const T>(gate_up), cols, view_or_none<T>(h), Mask(dropped.mask),
                view_or_none<T>(dropped.y), view<uint8_t>(codes.codes), pointer<float>(codes.scales));
          } else {
            const WholeRowGrid g(gate_up.rows, cols / kWidth);
            forward_kernel<kWidth, T>
                <<<g.grid, g.block, 0, stream_of(stream)>>>(view<const T>(gate_up), cols, view_or_none<T>(h),
                                                            Mask(dropped.mask), view_or_none<T>(dropped.y));
          }
          PESC_LAUNCHED("swiglu_forward");
        });
  });
}

void swiglu_backward(Stream& stream, const SwigluBackward& args, Arena& scratch) {
  const Tensor& dh = args.dh;
  const Tensor& gate_up = args.gate_up;
  const Tensor& dgate_up = args.dgate_up;
  const bool lora = args.lora.dout.present();
  check(gate_up, dh);
  check(dgate_up, dh);
  if (dh.size() == 0) return;
  Arena::Scope scope(scratch);
  Tensor term;
  if (lora) {
    check_mask(args.lora.dropout, dh.rows);
    term = scratch.allocate(dh.rows, dh.cols, dh.dtype);
    lora_input_gradient(stream, args.lora, term);
  }
  const Fp8Rows& codes = args.codes;
  check_codes(codes, dh.rows, 2 * dh.cols);
  const int64_t bytes =
      2 * dh.cols * (dtype_bytes(dh.dtype) + (codes.column_scales.cols > 0 ? dtype_bytes(DType::kBF16) : 0));
  const bool fused = codes.present() && bytes <= kSharedBytes;
  with_element(dh.dtype, [&](auto element) {
    using T = decltype(element);
    with_masked_pack<T>(
        args.lora.dropout,
        {gate_of(gate_up), up_of(gate_up), gate_of(dgate_up), up_of(dgate_up), dh, term, codes.codes},
        [&](auto width) {
          constexpr int kWidth = decltype(width)::value;
          if (fused) {
            const auto kernel =
                lora ? backward_codes_kernel<true, kWidth, T> : backward_codes_kernel<false, kWidth, T>;
            const CodesGrid g(stream, kernel, dh.rows, dh.cols / kWidth, bytes);
            kernel<<<g.blocks, g.threads, static_cast<size_t>(bytes), stream_of(stream)>>>(
                view<T>(dh), view<const T>(gate_up), view<T>(dgate_up), Mask(args.lora.dropout),
                view_or_none<const T>(term),
                codes.column_scales.cols > 0 ? pointer<const float>(codes.column_scales) : nullptr,
                view<uint8_t>(codes.codes), pointer<float>(codes.scales));
          } else {
            const WholeRowGrid g(dh.rows, dh.cols / kWidth);
            const auto kernel = lora ? backward_kernel<true, kWidth, T> : backward_kernel<false, kWidth, T>;
            kernel<<<g.grid, g.block, 0, stream_of(stream)>>>(view<T>(dh), view<const T>(gate_up),
                                                              view<T>(dgate_up), Mask(args.lora.dropout),
                                                              view_or_none<const T>(term));
          }
          PESC_LAUNCHED("swiglu_backward");
        });
  });
  if (codes.present() && !fused) fp8_quantize_rows(stream, dgate_up, codes);
  if (lora) lora_weight_gradient(stream, args.lora, dh);
}

}  // namespace pesc::cuda
