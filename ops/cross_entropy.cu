// Cross entropy over a slice of the vocabulary on a GPU: one block per row. Logits (and the gradient that
// replaces them) are F32 or BF16, all else F32. A thread sums its exponentials in float32, the block its
// threads in double. N rows, V local columns.
#include "ops/core/vectors.cuh"
#include "ops/cross_entropy.h"
#include "ops/cuda_ops.h"

namespace pesc::cuda {
namespace {

constexpr int kRowThreads = 512;

// The maximum ignores NaN, as on the CPU; a NaN then shows in the sums.
template <int N, class T>
__global__ void max_kernel(View<const T> logits, float* max) {
  const T* row = logits.row(blockIdx.x);
  float top = -INFINITY;
  for (int64_t i = threadIdx.x; i < logits.cols / N; i += blockDim.x) {
    float values[N];
    load_floats<N>(row + i * N, values);
#pragma unroll
    for (int j = 0; j < N; ++j) top = values[j] > top ? values[j] : top;
  }
  top = block_max(top);
  if (threadIdx.x == 0) max[blockIdx.x] = top;
}

template <int N, class T>
__global__ void sums_kernel(View<const T> logits, const int32_t* targets, int64_t vocab_begin,
                            const float* max, View<float> sums) {
  const int64_t r = blockIdx.x;
  const T* row = logits.row(r);
  const float top = max[r];
  float total = 0;
  for (int64_t i = threadIdx.x; i < logits.cols / N; i += blockDim.x) {
    float values[N];
    load_floats<N>(row + i * N, values);
#pragma unroll
    for (int j = 0; j < N; ++j) total += expf(values[j] - top);
  }
  const double all = block_sum(static_cast<double>(total));
  if (threadIdx.x != 0) return;
  const int64_t target = targets[r] - vocab_begin;
  sums.row(0)[r] = static_cast<float>(all);
  sums.row(1)[r] = 0 <= target && target < logits.cols ? as_float(row[target]) - top : 0.0F;
}

__device__ __forceinline__ float row_loss(const View<const float>& sums, int64_t r) {
  return logf(sums.row(0)[r]) - sums.row(1)[r];
}

template <int N, class T>
__global__ void grad_kernel(View<T> logits, const int32_t* targets, int64_t vocab_begin, const float* max,
                            View<const float> sums, float scale, float* loss) {
  const int64_t r = blockIdx.x;
  T* row = logits.row(r);
  const float top = max[r];
  const float factor = scale / sums.row(0)[r];
  const int64_t target = targets[r] - vocab_begin;  // outside [0, V) it matches no column
  for (int64_t i = threadIdx.x; i < logits.cols / N; i += blockDim.x) {
    float values[N];
    load_floats<N>(row + i * N, values);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      values[j] = expf(values[j] - top) * factor;
      if (i * N + j == target) values[j] -= scale;
    }
    store_floats<N>(row + i * N, values);
  }
  if (threadIdx.x == 0) loss[r] = row_loss(sums, r);
}

__global__ void loss_kernel(View<const float> sums, float* loss) {
  for (int64_t r = first_index(); r < sums.cols; r += index_step()) loss[r] = row_loss(sums, r);
}

void check_rows(const Tensor& logits, const Tensor& t, int64_t rows, DType dtype) {
  PESC_CHECK(t.dtype == dtype && t.rows == rows && t.cols == logits.rows, t.rows, "x", t.cols, " ",
             dtype_name(t.dtype), " for ", logits.rows, "x", logits.cols);
}

void check_loss(const Tensor& sums, const Tensor& loss) {
  PESC_CHECK(sums.dtype == DType::kF32 && sums.rows == 2 && loss.dtype == DType::kF32 && loss.rows == 1 &&
                 loss.cols == sums.cols,
             "sums ", sums.rows, "x", sums.cols, ", loss ", loss.rows, "x", loss.cols);
}

// Calls launch(T{}, width, blocks) where there are rows.
template <class F>
void for_rows(const Tensor& logits, F launch) {
  if (logits.rows == 0) return;
  with_element(logits.dtype, [&](auto element) {
    using T = decltype(element);
    with_pack<T>({logits}, [&](auto width) { launch(element, width, static_cast<unsigned>(logits.rows)); });
  });
}

}  // namespace

void cross_entropy_max(Stream& stream, const Tensor& logits, const Tensor& max) {
  check_rows(logits, max, 1, DType::kF32);
  for_rows(logits, [&](auto element, auto width, unsigned blocks) {
    using T = decltype(element);
    max_kernel<decltype(width)::value, T>
        <<<blocks, kRowThreads, 0, stream_of(stream)>>>(view<const T>(logits), max.f32());
    PESC_LAUNCHED("cross_entropy_max");
  });
}

void cross_entropy_sums(Stream& stream, const Tensor& logits, const Tensor& targets, int64_t vocab_begin,
                        const Tensor& max, const Tensor& sums) {
  check_rows(logits, max, 1, DType::kF32);
  check_rows(logits, targets, 1, DType::kI32);
  check_rows(logits, sums, 2, DType::kF32);
  for_rows(logits, [&](auto element, auto width, unsigned blocks) {
    using T = decltype(element);
    sums_kernel<decltype(width)::value, T><<<blocks, kRowThreads, 0, stream_of(stream)>>>(
        view<const T>(logits), targets.i32(), vocab_begin, max.f32(), view<float>(sums));
    PESC_LAUNCHED("cross_entropy_sums");
  });
}

void cross_entropy_grad(Stream& stream, const CrossEntropyGrad& args) {
  const Tensor &logits = args.logits, &sums = args.sums;
  check_rows(logits, args.max, 1, DType::kF32);
  check_rows(logits, args.targets, 1, DType::kI32);
  check_rows(logits, sums, 2, DType::kF32);
  check_loss(sums, args.loss);
  for_rows(logits, [&](auto element, auto width, unsigned blocks) {
    using T = decltype(element);
    grad_kernel<decltype(width)::value, T><<<blocks, kRowThreads, 0, stream_of(stream)>>>(
        view<T>(logits), args.targets.i32(), args.vocab_begin, args.max.f32(), view<const float>(sums),
        args.scale, args.loss.f32());
    PESC_LAUNCHED("cross_entropy_grad");
  });
}

void cross_entropy_loss(Stream& stream, const Tensor& sums, const Tensor& loss) {
  check_loss(sums, loss);
  if (loss.cols == 0) return;
  loss_kernel<<<blocks_for(loss.cols), kThreads, 0, stream_of(stream)>>>(view<const float>(sums), loss.f32());
  PESC_LAUNCHED("cross_entropy_loss");
}

}  // namespace pesc::cuda
