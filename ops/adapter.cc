// The adapter experts on the CPU. The rows of an expert are processed in blocks of at most kBlockRows:
// gathered into scratch (unless they are adjacent), multiplied, and added to the output rows, expert by
// expert and block by block. A row occurs at most once in an expert, so the rows of a block are distinct, and
// each output row is summed in expert order whatever the number of threads.
//
// The weight w * scale of an assignment is multiplied into its d columns before the Up GEMM, not into its H
// columns after it. With n rows in a block, F [n, H] the rows of f, h [n, d] = F Down^T and g = gelu(h):
//   forward    out[rows] += (w scale g) Up^T
//   backward   p [n, d] = dY Up;  dw = scale sum_d(p g);  dh = w scale p gelu'(h)
//              dUp += dY^T (w scale g);  dDown += dh^T F;  df[rows] += dh Down
// R rows, H hidden, d adapter size, E experts, M assignments.
#include "ops/adapter.h"

#include <algorithm>

#include "ops/adapter_scratch.h"
#include "ops/core/threads.h"
#include "ops/core/vector_math.h"
#include "ops/cuda_ops.h"
#include "ops/gemm.h"
#include "ops/reduce.h"

namespace pesc {
namespace {

constexpr int64_t kBlockRows = 256;
constexpr int64_t kGeluWork = 4;  // the cost of a GELU, in copied elements

// Scratch of one block. The forward uses rows0 for F and then for the result of the Up GEMM; the backward
// uses all of it. Both allocate all of it, so that the planned size is the size used.
struct Block {
  Tensor rows0, rows1;      // [block, H]
  Tensor narrow0, narrow1;  // [block, d]

  Block(Arena& scratch, int64_t rows, int64_t hidden, int64_t dim) {
    const int64_t block = std::min(rows, kBlockRows);
    rows0 = scratch.allocate(block, hidden);
    rows1 = scratch.allocate(block, hidden);
    narrow0 = scratch.allocate(block, dim);
    narrow1 = scratch.allocate(block, dim);
  }
};

// Assignments [begin, end) of one expert.
struct Piece {
  int64_t expert, begin, end;
  Tensor index;     // [1, n] I32: their rows
  bool contiguous;  // the rows are first_row, first_row + 1, ...
  int64_t first_row;
  [[nodiscard]] int64_t n() const { return end - begin; }
};

// Calls use(piece) for all blocks of all experts, in order.
template <class Use>
void for_each_piece(const AdapterGroups& groups, Use use) {
  const auto experts = static_cast<int64_t>(groups.offsets.size()) - 1;
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t last = groups.offsets[static_cast<size_t>(e) + 1];
    for (int64_t begin = groups.offsets[static_cast<size_t>(e)]; begin < last; begin += kBlockRows) {
      const int64_t end = std::min(begin + kBlockRows, last);
      const int32_t* rows = groups.row.data() + begin;
      // Rows rise strictly within an expert.
      use(Piece{e, begin, end, Tensor{const_cast<int32_t*>(rows), DType::kI32, 1, end - begin, end - begin},
                rows[end - begin - 1] - rows[0] == end - begin - 1, rows[0]});
    }
  }
}

// The rows of `in` that the piece names: a view where they are adjacent, else gathered into `space`.
Tensor take_rows(Stream& stream, const Piece& piece, const Tensor& in, const Tensor& space) {
  if (piece.contiguous) return in.row_range(piece.first_row, piece.first_row + piece.n());
  const Tensor out = space.row_range(0, piece.n());
  gather_rows(stream, in, piece.index, out);
  return out;
}

// out[rows of the piece] += a [n, d] b^T with b [H, d], or with kNo a b with b [d, H]. The result passes
// through `space` unless the rows are adjacent.
void add_product(Stream& stream, const Piece& piece, const Tensor& a, const Tensor& b, Transpose trans_b,
                 const Tensor& out, const Tensor& space) {
  Gemm args{.a = a, .b = b, .trans_b = trans_b, .c = {}};
  if (piece.contiguous) {
    args.c = out.row_range(piece.first_row, piece.first_row + piece.n());
    args.beta = 1.0F;
    gemm(stream, args);
    return;
  }
  args.c = space.row_range(0, piece.n());
  gemm(stream, args);
  scatter_add_rows(stream, args.c, piece.index, out);
}

Tensor expert_rows(const Tensor& stacked, int64_t expert, int64_t rows) {
  return stacked.row_range(expert * rows, (expert + 1) * rows);
}

void check(const AdapterGroups& groups, const Tensor& f, const Tensor& weights, const Tensor& down,
           const Tensor& up, const Tensor& pre_act) {
  const auto experts = static_cast<int64_t>(groups.offsets.size()) - 1;
  const auto count = static_cast<int64_t>(groups.row.size());
  PESC_CHECK(experts >= 0 && groups.offsets.front() == 0 && groups.offsets.back() == count &&
                 static_cast<int64_t>(groups.choice.size()) == count,
             "offsets of ", experts, " experts, ", count, " assignments, ", groups.choice.size(), " choices");
  PESC_CHECK(pre_act.rows == count, "pre_act has ", pre_act.rows, " rows for ", count, " assignments");
  PESC_CHECK(down.rows == experts * pre_act.cols && down.cols == f.cols && up.rows == experts * f.cols &&
                 up.cols == pre_act.cols,
             "down ", down.rows, "x", down.cols, ", up ", up.rows, "x", up.cols, " for ", experts,
             " experts, hidden ", f.cols, ", adapter ", pre_act.cols);
  PESC_CHECK(weights.rows == f.rows && weights.contiguous(), "weights ", weights.rows, "x", weights.cols,
             " for ", f.rows, " rows");
  for (const int32_t choice : groups.choice)
    PESC_CHECK(0 <= choice && choice < weights.size(), "choice ", choice, " of ", weights.size());
}

// pre_act rows of the piece = F Down^T
void down_product(Stream& stream, const AdapterForward& args, const Piece& piece, const Tensor& space) {
  const Tensor rows = take_rows(stream, piece, args.f, space);
  linear_forward(stream, rows, expert_rows(args.down, piece.expert, args.pre_act.cols),
                 args.pre_act.row_range(piece.begin, piece.end));
}

// scaled [n, d] = w scale gelu(h), rows [begin, end)
void weighted_gelu(const AdapterForward& args, const Piece& piece, const Tensor& scaled, int64_t begin,
                   int64_t end) {
  const int64_t dim = args.pre_act.cols;
  for (int64_t i = begin; i < end; ++i) {
    const auto at = static_cast<size_t>(piece.begin + i);
    const float w = args.topk_weights.f32()[args.groups.choice[at]] * args.scale;
    const float* h = args.pre_act.f32() + (piece.begin + i) * args.pre_act.ld;
    float* out = scaled.f32() + i * scaled.ld;
#pragma omp simd
    for (int64_t c = 0; c < dim; ++c) out[c] = w * gelu(h[c]);
  }
}

// Rows [begin, end) of the piece: p [n, d] becomes dh; scaled [n, d] = w scale gelu(h) and dweights are
// written.
void gelu_gradients(const AdapterBackward& args, const Piece& piece, const Tensor& p, const Tensor& scaled,
                    int64_t begin, int64_t end) {
  const int64_t dim = args.pre_act.cols;
  for (int64_t i = begin; i < end; ++i) {
    const int32_t choice = args.groups.choice[static_cast<size_t>(piece.begin + i)];
    const float w = args.topk_weights.f32()[choice] * args.scale;
    const float* h = args.pre_act.f32() + (piece.begin + i) * args.pre_act.ld;
    float* dh = p.f32() + i * p.ld;
    float* out = scaled.f32() + i * scaled.ld;
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t c = 0; c < dim; ++c) {
      const float p_c = dh[c];
      dot += p_c * gelu(h[c]);
      out[c] = w * gelu(h[c]);
      dh[c] = w * p_c * gelu_grad(h[c]);
    }
    args.dtopk_weights.f32()[choice] = args.scale * dot;
  }
}

}  // namespace

void adapter_forward(Stream& stream, const AdapterForward& args, Arena& scratch) {
  if (stream.on_cuda()) return cuda_ops().adapter_forward(stream, args, scratch);
  check(args.groups, args.f, args.topk_weights, args.down, args.up, args.pre_act);
  PESC_CHECK(args.out.rows == args.f.rows && args.out.cols == args.f.cols, "out ", args.out.rows, "x",
             args.out.cols);
  Arena::Scope scope(scratch);
  const Block block(scratch, args.f.rows, args.f.cols, args.pre_act.cols);
  for_each_piece(args.groups, [&](const Piece& piece) {
    down_product(stream, args, piece, block.rows0);
    const Tensor scaled = block.narrow0.row_range(0, piece.n());
    parallel_for(stream, piece.n(), row_grain(kGeluWork * args.pre_act.cols),
                 [&](int64_t begin, int64_t end) { weighted_gelu(args, piece, scaled, begin, end); });
    add_product(stream, piece, scaled, expert_rows(args.up, piece.expert, args.f.cols), Transpose::kYes,
                args.out, block.rows0);
  });
}

void adapter_backward(Stream& stream, const AdapterBackward& args, Arena& scratch) {
  if (stream.on_cuda()) return cuda_ops().adapter_backward(stream, args, scratch);
  check(args.groups, args.f, args.topk_weights, args.down, args.up, args.pre_act);
  PESC_CHECK(args.dout.rows == args.f.rows && args.dout.cols == args.f.cols && args.df.rows == args.f.rows &&
                 args.df.cols == args.f.cols && args.dtopk_weights.size() == args.topk_weights.size() &&
                 args.dtopk_weights.contiguous(),
             "dout ", args.dout.rows, "x", args.dout.cols, ", df ", args.df.rows, "x", args.df.cols);
  fill_zero(stream, args.df);
  fill_zero(stream, args.dtopk_weights);
  Arena::Scope scope(scratch);
  const Block block(scratch, args.f.rows, args.f.cols, args.pre_act.cols);
  for_each_piece(args.groups, [&](const Piece& piece) {
    const Tensor f = take_rows(stream, piece, args.f, block.rows0);
    const Tensor dy = take_rows(stream, piece, args.dout, block.rows1);
    const Tensor p = block.narrow0.row_range(0, piece.n());
    const Tensor scaled = block.narrow1.row_range(0, piece.n());
    const Tensor down = expert_rows(args.down, piece.expert, args.pre_act.cols);
    linear_backward_input(stream, dy, expert_rows(args.up, piece.expert, args.f.cols), p);
    parallel_for(stream, piece.n(), row_grain(kGeluWork * args.pre_act.cols),
                 [&](int64_t begin, int64_t end) { gelu_gradients(args, piece, p, scaled, begin, end); });
    linear_backward_weight(stream, dy, scaled, expert_rows(args.dup, piece.expert, args.f.cols));
    linear_backward_weight(stream, p, f, expert_rows(args.ddown, piece.expert, args.pre_act.cols));
    add_product(stream, piece, p, down, Transpose::kNo, args.df, block.rows1);
  });
}

void adapter_pre_act(Stream& stream, const AdapterForward& args, Arena& scratch) {
  if (stream.on_cuda()) return cuda_ops().adapter_pre_act(stream, args, scratch);
  check(args.groups, args.f, args.topk_weights, args.down, args.up, args.pre_act);
  Arena::Scope scope(scratch);
  const Block block(scratch, args.f.rows, args.f.cols, args.pre_act.cols);
  for_each_piece(args.groups, [&](const Piece& piece) { down_product(stream, args, piece, block.rows0); });
}

int64_t adapter_scratch_bytes(const Device& device, int64_t rows, int64_t top_k, int64_t hidden,
                              int64_t adapter_dim, DType activations) {
  if (device.kind == DeviceKind::kCuda)
    return adapter_gpu_scratch_bytes(rows, top_k, hidden, adapter_dim, activations);
  Arena arena = Arena::planning("adapter scratch");
  (void)Block(arena, rows, hidden, adapter_dim);
  return arena.peak();
}

}  // namespace pesc
