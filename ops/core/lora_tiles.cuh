// The way back through the first half of LoRA (ops/lora.h) on tiles of 16 tokens and 128 columns, joined with
// what the operation that made x does on its way back. With B = scale dout A, never in memory:
//   the operation gets mask(B) to add to the gradient of x, and gives x;
//   dA += scale dout^T dropout(x), summed up over a run of tokens in registers, then over the runs in order.
// bf16 with float32 sums; the order of every sum depends on the shape alone.
//
// A block of four warps walks down a run of tokens; a warp has 32 columns. The products are
// mma.m16n8k16, whose results a thread holds as pairs of columns of four tiles of eight: column 2 j + b of a
// thread's eight neighbouring ones is taken as column b of its pair in tile j, so that the thread holds,
// loads and stores eight neighbours. The rows to come are copied to shared memory meanwhile.
#pragma once

#include "ops/core/dropout_mask.cuh"
#include "ops/lora.h"

namespace pesc::cuda {

namespace lora_tiles {

inline constexpr int kTokens = 16, kWarps = 4, kColumns = 32 * kWarps, kBlockThreads = 32 * kWarps;
inline constexpr int kStages = 3;
inline constexpr int kPad = 8;               // so that the rows of a tile of dout start in different banks
inline constexpr int64_t kBlocks = 132 * 6;  // about as many as fill an H100 twice

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
// Bytes to shared memory, behind the thread's back; zeros where there is nothing to read.
__device__ __forceinline__ void start_copy(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from),
               "r"(there ? 16 : 0));
}
template <int kBytes>
__device__ __forceinline__ void start_small_copy(void* to, const void* from, bool there) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(shared_address(to)), "l"(from),
               "n"(kBytes), "r"(there ? kBytes : 0));
}
__device__ __forceinline__ void close_group() {
  asm volatile("cp.async.commit_group;\n");
}
// Until all but the latest `kLeft` groups of this thread have arrived.
template <int kLeft>
__device__ __forceinline__ void wait_groups() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kLeft) : "memory");
}

// Four 8x8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(const bf16* row, uint32_t (&m)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void load_transposed(const bf16* row, uint32_t (&m)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ uint32_t transpose(uint32_t m) {
  uint32_t out;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(out) : "r"(m));
  return out;
}
// c [16, 8] += a [16, 16] b [16, 8]
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ uint32_t pair_of(bf16 low, bf16 high) {
  return static_cast<uint32_t>(__bfloat16_as_ushort(low)) | static_cast<uint32_t>(__bfloat16_as_ushort(high))
                                                                << 16;
}

// Op, with kInputs tensors of which a thread reads eight columns of its rows:
//   const bf16* input(int i, int64_t row, int64_t column) const
//   void finish(bool there, int64_t row, int64_t column, const Pack<bf16, 8> (&in)[kInputs],
//               const float (&term)[8], float (&x)[8]) const
// term = mask(B); x before the mask. Where a tile reaches beyond the tensors, `there` is false, the inputs
// are zeros, of which x = 0 must come, and nothing may be written.
template <int R, class Op>
__global__ void __launch_bounds__(kBlockThreads, R == 64 ? 3 : 4)
    walk(Op op, View<const bf16> dout, View<const bf16> a, float scale, Mask mask, int64_t cols, int64_t run,
         float* partial) {
  __shared__ alignas(16) bf16 rows_of_dout[kStages][kTokens][R + kPad];
  __shared__ Pack<bf16, 8> inputs[kStages][2][Op::kInputs][kBlockThreads];
  __shared__ int64_t samples[kStages][kTokens];
  __shared__ int32_t positions[kStages][kTokens];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int quad = lane % 4;
  const int group = lane / 4;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kColumns + thread / 32 * 32;  // the warp's
  const int64_t column = first + quad * 8;                                               // the thread's
  const bool mine = column < cols;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * run;
  const int64_t end = begin + run < dout.rows ? begin + run : dout.rows;

  // A, in the order of the tiles' columns, for the first product.
  uint32_t weights[R / 16][4][2];
#pragma unroll
  for (int k = 0; k < R / 16; ++k)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t c = first + group / 2 * 8 + 2 * j + group % 2;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t r = k * 16 + h * 8 + quad * 2;
        weights[k][j][h] = c < cols ? pair_of(a.row(r)[c], a.row(r + 1)[c]) : 0;
      }
    }

  const auto start = [&](int64_t t0, int stage) {
    for (int i = thread; i < kTokens * R / 8; i += kBlockThreads) {
      const int64_t t = t0 + i / (R / 8);
      const bool there = t < end;
      start_copy(&rows_of_dout[stage][i / (R / 8)][i % (R / 8) * 8],
                 dout.row(there ? t : begin) + i % (R / 8) * 8, there);
    }
    if (mask.threshold != 0 && thread < 2 * kTokens) {
      const int64_t t = t0 + thread % kTokens;
      const int64_t from = t < end ? t : begin;
      if (thread < kTokens) {
        start_small_copy<8>(&samples[stage][thread], mask.samples + from, t < end);
      } else {
        start_small_copy<4>(&positions[stage][thread - kTokens], mask.positions + from, t < end);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t t = t0 + group + 8 * h;
      const bool there = mine && t < end;
#pragma unroll
      for (int i = 0; i < Op::kInputs; ++i)
        start_copy(&inputs[stage][h][i][thread], op.input(i, there ? t : begin, mine ? column : 0), there);
    }
  };

  float sums[R / 16][4][4] = {};
  for (int s = 0; s < kStages - 1; ++s) {
    if (begin + s * kTokens < end) start(begin + s * kTokens, s);
    close_group();
  }
  int stage = 0;
  for (int64_t t0 = begin; t0 < end; t0 += kTokens) {
    wait_groups<kStages - 2>();
    __syncthreads();  // the tile of dout is there, and the one before is no longer read
    const int64_t next = t0 + (kStages - 1) * kTokens;
    if (next < end) start(next, stage == 0 ? kStages - 1 : stage - 1);
    close_group();

    float terms[4][4] = {};
#pragma unroll
    for (int k = 0; k < R / 16; ++k) {
      uint32_t d[4];
      load_matrices(&rows_of_dout[stage][lane % 16][k * 16 + lane / 16 * 8], d);
#pragma unroll
      for (int j = 0; j < 4; ++j) multiply_add(terms[j], d, weights[k][j][0], weights[k][j][1]);
    }
    uint32_t dropped[2][4];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t t = t0 + group + 8 * h;
      const bool there = mine && t < end;
      float factor[8], term[8], x[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) factor[i] = 1.0F;
      if (mask.threshold != 0)
        RowMask(mask, samples[stage][group + 8 * h], positions[stage][group + 8 * h]).apply(column, factor);
      Pack<bf16, 8> in[Op::kInputs];
#pragma unroll
      for (int i = 0; i < Op::kInputs; ++i) in[i] = inputs[stage][h][i][thread];
        // A dropped value counts as zero even when it is not a number.
#pragma unroll
      for (int i = 0; i < 8; ++i)
        term[i] = factor[i] > 0 ? scale * terms[i / 2][2 * h + i % 2] * factor[i] : 0.0F;
      op.finish(there, t, column, in, term, x);
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] = factor[i] > 0 ? x[i] * factor[i] : 0.0F;
#pragma unroll
      for (int j = 0; j < 4; ++j)
        dropped[h][j] = transpose(pair_of(from_float<bf16>(x[2 * j]), from_float<bf16>(x[2 * j + 1])));
    }
#pragma unroll
    for (int m = 0; m < R / 16; ++m) {
      uint32_t d[4];
      load_transposed(&rows_of_dout[stage][lane % 8 + lane / 16 * 8][m * 16 + lane / 8 % 2 * 8], d);
#pragma unroll
      for (int j = 0; j < 4; ++j) multiply_add(sums[m][j], d, dropped[0][j], dropped[1][j]);
    }
    stage = stage == kStages - 1 ? 0 : stage + 1;
  }
  if (!mine) return;
#pragma unroll
  for (int m = 0; m < R / 16; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float out[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) out[i] = sums[m][i / 2][2 * h + i % 2];
      float* to = partial + (static_cast<int64_t>(blockIdx.y) * R + m * 16 + group + 8 * h) * cols + column;
      store_pack<4>(to, Pack<float, 4>{{out[0], out[1], out[2], out[3]}});
      store_pack<4>(to + 4, Pack<float, 4>{{out[4], out[5], out[6], out[7]}});
    }
}

static __global__ void add_runs(const float* partial, int64_t runs, float scale, View<float> da) {
  const int64_t size = da.rows * da.cols;
  for (int64_t i = first_index(); i < size; i += index_step()) {
    float total = 0;
    for (int64_t run = 0; run < runs; ++run) total += partial[run * size + i];
    da.row(i / da.cols)[i % da.cols] += scale * total;
  }
}

template <int R, class Op>
void launch(Stream& stream, const LoraBranch& branch, const Op& op) {
  const int64_t rows = branch.dout.rows;
  const int64_t cols = branch.a.cols;
  const int64_t across = (cols + kColumns - 1) / kColumns;
  const int64_t room = Queue::kWorkspaceBytes / (R * cols * int64_t{sizeof(float)});
  PESC_CHECK(room >= 1, "LoRA gradients of ", cols, " columns");
  const int64_t down = std::clamp<int64_t>(kBlocks / across, 1, std::min<int64_t>(room, 65535));
  const int64_t tiles = (rows + kTokens - 1) / kTokens;
  const int64_t run = (tiles + down - 1) / down * kTokens;
  const int64_t runs = (rows + run - 1) / run;
  float* partial = partials<float>(stream, runs * R * cols);
  // Three blocks at a time want more shared memory than is set aside by itself.
  PESC_CUDA(cudaFuncSetAttribute(walk<R, Op>, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared));
  walk<R><<<dim3(static_cast<unsigned>(across), static_cast<unsigned>(runs)), kBlockThreads, 0,
            stream_of(stream)>>>(op, view<const bf16>(branch.dout), view<const bf16>(branch.a), branch.scale,
                                 Mask(branch.dropout), cols, run, partial);
  PESC_LAUNCHED("lora_tiles");
  add_runs<<<blocks_for(R * cols), kThreads, 0, stream_of(stream)>>>(partial, runs, branch.scale,
                                                                     view<float>(branch.da));
  PESC_LAUNCHED("lora_add_runs");
}

}  // namespace lora_tiles

// Whether the tiles take this: bf16, a rank that they know, and packs of eight columns everywhere (`others`:
// the tensors that Op reads and writes).
[[nodiscard]] inline bool lora_tiles_fit(const LoraBranch& branch, std::initializer_list<Tensor> others) {
  const int64_t rank = branch.a.rows;
  if (branch.a.dtype != DType::kBF16 || (rank != 16 && rank != 32 && rank != 64)) return false;
  if (branch.dropout.column0 % 8 != 0 || !packs(branch.dout, 8)) return false;
  return std::all_of(others.begin(), others.end(), [](const Tensor& t) { return packs(t, 8); });
}
// Runs Op on tiles, and adds to branch.da. All tensors have at least one row.
template <class Op>
void lora_on_tiles(Stream& stream, const LoraBranch& branch, const Op& op) {
  check_mask(branch.dropout, branch.dout.rows);
  PESC_CHECK(
      branch.dout.cols == branch.a.rows && branch.da.rows == branch.a.rows && branch.da.cols == branch.a.cols,
      "dout ", branch.dout.rows, "x", branch.dout.cols, ", a ", branch.a.rows, "x", branch.a.cols, ", da ",
      branch.da.rows, "x", branch.da.cols);
  switch (branch.a.rows) {
    case 16:
      return lora_tiles::launch<16>(stream, branch, op);
    case 32:
      return lora_tiles::launch<32>(stream, branch, op);
    default:
      return lora_tiles::launch<64>(stream, branch, op);
  }
}

}  // namespace pesc::cuda
