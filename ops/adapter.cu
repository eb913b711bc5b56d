// The adapter experts on a GPU, in one of two forms (ops/adapter_scratch.h). With F [n, H] the rows of f,
// h = F Down^T, g = gelu(h), w the weight of the assignment:
//   forward    out[rows] += (w scale g) Up^T
//   backward   p = dY Up;  dw = scale sum_d(p g);  dh = w scale p gelu'(h)
//              dUp += dY^T (w scale g);  dDown += dh^T F;  df[rows] += dh Down
// Grouped: the rows of an expert are gathered in runs (not when they stand next to each other) and added to
// the output expert by expert, run by run; a row occurs once in an expert. Dense: all rows and experts at
// once on [R, E d] with zeros elsewhere, so that what is not a number in one row's f or one expert's weights
// may reach the others. f, down, up, hidden, out and their gradients have one element type; the weights of
// the assignments, ddown and dup are F32. Sums over experts are in expert order or inside one product.
#include "ops/adapter.h"
#include "ops/adapter_kernels.cuh"
#include "ops/adapter_scratch.h"
#include "ops/cuda_ops.h"

namespace pesc::cuda {
namespace {

int64_t experts_of(const AdapterGroups& groups) {
  return static_cast<int64_t>(groups.offsets.size()) - 1;
}

// `Args` is AdapterForward or AdapterBackward.
template <class Args>
void check(const Args& args) {
  const AdapterGroups& groups = args.groups;
  const int64_t experts = experts_of(groups);
  const auto count = static_cast<int64_t>(groups.row.size());
  const Tensor& f = args.f;
  PESC_CHECK(experts >= 0 && groups.offsets.front() == 0 && groups.offsets.back() == count &&
                 static_cast<int64_t>(groups.slot.size()) == count,
             "offsets of ", experts, " experts, ", count, " assignments, ", groups.slot.size(), " slots");
  PESC_CHECK(args.hidden.rows == count, "hidden has ", args.hidden.rows, " rows for ", count, " assignments");
  PESC_CHECK(args.down.rows == experts * args.hidden.cols && args.down.cols == f.cols &&
                 args.up.rows == experts * f.cols && args.up.cols == args.hidden.cols,
             "down ", args.down.rows, "x", args.down.cols, ", up ", args.up.rows, "x", args.up.cols, " for ",
             experts, " experts, hidden ", f.cols, ", adapter ", args.hidden.cols);
  PESC_CHECK(args.weights.rows == f.rows && args.weights.contiguous() && args.weights.dtype == DType::kF32,
             "weights ", args.weights.rows, "x", args.weights.cols, " ", dtype_name(args.weights.dtype),
             " for ", f.rows, " rows");
  for (const Tensor* t : {&args.down, &args.up, &args.hidden})
    PESC_CHECK(t->dtype == f.dtype, "f is ", dtype_name(f.dtype), ", the adapters ", dtype_name(t->dtype));
  PESC_CHECK(count <= args.weights.size(), count, " assignments of ", args.weights.size(), " slots");
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i);
    PESC_CHECK(0 <= groups.slot[at] && groups.slot[at] < args.weights.size() && 0 <= groups.row[at] &&
                   groups.row[at] < f.rows,
               "assignment ", i, " of row ", groups.row[at], ", slot ", groups.slot[at]);
  }
}

void check_like(const Tensor& t, const Tensor& f, const char* name) {
  PESC_CHECK(t.rows == f.rows && t.cols == f.cols && t.dtype == f.dtype, name, " ", t.rows, "x", t.cols, " ",
             dtype_name(t.dtype), " for f ", f.rows, "x", f.cols, " ", dtype_name(f.dtype));
}

// The lists on the device, cut to their length.
struct Lists {
  Tensor row, slot;
  Lists(Stream& stream, const AdapterGroups& groups, const Tensor& weights, Arena& scratch) {
    const AdapterLists space(scratch, weights.rows, weights.cols);
    const auto count = static_cast<int64_t>(groups.row.size());
    row = space.row.col_range(0, count);
    slot = space.slot.col_range(0, count);
    upload(stream.queue(), groups.row.data(), row.data, row.bytes());
    upload(stream.queue(), groups.slot.data(), slot.data, slot.bytes());
  }
};

// ---- grouped ----

// Assignments [begin, end) of one expert, at most kRows of them.
struct Piece {
  int64_t expert, begin, end;
  Tensor row, slot;  // [1, n] on the device
  bool contiguous;   // the rows are first_row, first_row + 1, ...
  int64_t first_row;
  [[nodiscard]] int64_t n() const { return end - begin; }
};

template <class Use>
void for_each_piece(const AdapterGroups& groups, const Lists& lists, Use use) {
  for (int64_t e = 0; e < experts_of(groups); ++e) {
    const int64_t last = groups.offsets[static_cast<size_t>(e) + 1];
    for (int64_t begin = groups.offsets[static_cast<size_t>(e)]; begin < last;
         begin += AdapterGroupedScratch::kRows) {
      const int64_t end = std::min(begin + AdapterGroupedScratch::kRows, last);
      const int32_t* rows = groups.row.data() + begin;
      use(Piece{e, begin, end, lists.row.col_range(begin, end), lists.slot.col_range(begin, end),
                rows[end - begin - 1] - rows[0] == end - begin - 1, rows[0]});
    }
  }
}

Tensor take_rows(Stream& stream, const Piece& piece, const Tensor& in, const Tensor& space) {
  if (piece.contiguous) return in.row_range(piece.first_row, piece.first_row + piece.n());
  const Tensor out = space.row_range(0, piece.n());
  cuda::gather_rows(stream, in, piece.row, out);
  return out;
}

// out[rows of the piece] += a [n, d] b^T, b [H, d] or, with kNo, a b, b [d, H]; `space` takes the product.
void add_product(Stream& stream, const Piece& piece, const Tensor& a, const Tensor& b, Transpose trans_b,
                 const Tensor& out, const Tensor& space) {
  Gemm product{.a = a, .b = b, .trans_b = trans_b, .c = {}, .extent = Extent::kVaries};
  if (piece.contiguous) {
    product.c = out.row_range(piece.first_row, piece.first_row + piece.n());
    product.beta = 1.0F;
    cuda::gemm(stream, product);
    return;
  }
  product.c = space.row_range(0, piece.n());
  cuda::gemm(stream, product);
  with_element(out.dtype, [&](auto element) {
    using T = decltype(element);
    with_pack<T>({product.c, out}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const RowGrid g(piece.n(), out.cols / kWidth);
      add_distinct_rows<kWidth, T><<<g.grid, g.block, 0, stream_of(stream)>>>(view<const T>(product.c),
                                                                              piece.row.i32(), view<T>(out));
      PESC_LAUNCHED("add_distinct_rows");
    });
  });
}

// dw += a^T b over the rows of a piece.
void add_weight_gradient(Stream& stream, const Tensor& a, const Tensor& b, const Tensor& dw) {
  cuda::gemm(stream,
             {.a = a, .trans_a = Transpose::kYes, .b = b, .c = dw, .beta = 1.0F, .extent = Extent::kVaries});
}

Tensor expert_rows(const Tensor& stacked, int64_t expert, int64_t rows) {
  return stacked.row_range(expert * rows, (expert + 1) * rows);
}

// A narrow tensor as rows of d columns, for the question of alignment.
Tensor narrow(const Tensor& t, int64_t dim) {
  return {t.data, t.dtype, t.rows, dim, t.ld};
}

void launch_gelu(Stream& stream, const AdapterForward& args, const Slices& at, const Tensor& source,
                 const Tensor& slot, const Tensor& hidden, const Tensor& scaled) {
  if (hidden.size() == 0) return;
  with_element(hidden.dtype, [&](auto element) {
    using T = decltype(element);
    with_pack<T>({narrow(source, hidden.cols), hidden, narrow(scaled, hidden.cols)}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const RowGrid g(hidden.rows, hidden.cols / kWidth);
      gelu_kernel<kWidth, T><<<g.grid, g.block, 0, stream_of(stream)>>>(at, view<const T>(source), slot.i32(),
                                                                        args.weights.f32(), args.scale,
                                                                        view<T>(hidden), view<T>(scaled));
      PESC_LAUNCHED("adapter_gelu");
    });
  });
}

void launch_gradients(Stream& stream, const AdapterBackward& args, const Slices& at, const Tensor& p,
                      const Tensor& hidden, const Tensor& slot, const Tensor& dh, const Tensor& scaled) {
  if (hidden.size() == 0) return;
  const int64_t dim = hidden.cols;
  with_element(hidden.dtype, [&](auto element) {
    using T = decltype(element);
    with_pack<T>({narrow(p, dim), hidden, narrow(dh, dim), narrow(scaled, dim)}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const auto launch = [&](auto lanes) {
        constexpr int kLanes = decltype(lanes)::value;
        gelu_gradients<kWidth, kLanes, T>
            <<<blocks_for(hidden.rows * kLanes), kThreads, 0, stream_of(stream)>>>(
                at, view<const T>(p), view<const T>(hidden), slot.i32(), args.weights.f32(), args.scale,
                view<T>(dh), view<T>(scaled), args.dweights.f32());
        PESC_LAUNCHED("adapter_gelu_gradients");
      };
      if (dim / kWidth <= 8) {
        launch(std::integral_constant<int, 8>{});
      } else {
        launch(std::integral_constant<int, kWarp>{});
      }
    });
  });
}

enum class Until { kHidden, kOut };

void grouped_forward(Stream& stream, const AdapterForward& args, const Lists& lists, Until until,
                     Arena& scratch) {
  const int64_t dim = args.hidden.cols;
  const AdapterGroupedScratch s(scratch, args.f.rows, args.f.cols, dim, args.f.dtype);
  for_each_piece(args.groups, lists, [&](const Piece& piece) {
    const Tensor hidden = args.hidden.row_range(piece.begin, piece.end);
    cuda::gemm(stream, {.a = take_rows(stream, piece, args.f, s.rows0),
                        .b = expert_rows(args.down, piece.expert, dim),
                        .trans_b = Transpose::kYes,
                        .c = hidden,
                        .extent = Extent::kVaries});
    if (until == Until::kHidden) return;
    const Tensor scaled = s.scaled.row_range(0, piece.n());
    launch_gelu(stream, args, Slices{nullptr, nullptr, 0, dim}, hidden, piece.slot, hidden, scaled);
    add_product(stream, piece, scaled, expert_rows(args.up, piece.expert, args.f.cols), Transpose::kYes,
                args.out, s.rows0);
  });
}

void grouped_backward(Stream& stream, const AdapterBackward& args, const Lists& lists, Arena& scratch) {
  const int64_t dim = args.hidden.cols;
  const AdapterGroupedScratch s(scratch, args.f.rows, args.f.cols, dim, args.f.dtype);
  cuda::fill_zero(stream, args.df);
  for_each_piece(args.groups, lists, [&](const Piece& piece) {
    const Tensor f = take_rows(stream, piece, args.f, s.rows0);
    const Tensor dy = take_rows(stream, piece, args.dout, s.rows1);
    const Tensor p = s.p.row_range(0, piece.n());
    const Tensor scaled = s.scaled.row_range(0, piece.n());
    cuda::gemm(
        stream,
        {.a = dy, .b = expert_rows(args.up, piece.expert, args.f.cols), .c = p, .extent = Extent::kVaries});
    launch_gradients(stream, args, Slices{nullptr, nullptr, 0, dim}, p,
                     args.hidden.row_range(piece.begin, piece.end), piece.slot, p, scaled);
    add_weight_gradient(stream, dy, scaled, expert_rows(args.dup, piece.expert, args.f.cols));
    add_weight_gradient(stream, p, f, expert_rows(args.ddown, piece.expert, dim));
    add_product(stream, piece, p, expert_rows(args.down, piece.expert, dim), Transpose::kNo, args.df,
                s.rows1);
  });
}

// ---- dense ----

struct Dense {
  AdapterDenseScratch space;
  Slices at;

  // `rows` [1, M]: the assignments' rows, on the device.
  Dense(Stream& stream, const AdapterGroups& groups, const Tensor& rows, const Tensor& f, int64_t dim,
        Arena& scratch)
      : space(scratch, f.rows, f.cols, experts_of(groups), experts_of(groups) * dim, f.dtype),
        at{rows.i32(), space.offsets.i64(), experts_of(groups), dim} {
    upload(stream.queue(), groups.offsets.data(), space.offsets.data, space.offsets.bytes());
  }
};

void pack_up(Stream& stream, const Tensor& up, const Tensor& side) {
  if (side.size() == 0) return;
  with_element(up.dtype, [&](auto element) {
    using T = decltype(element);
    with_pack<T>({up, side}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const RowGrid g(side.rows, side.cols / kWidth);
      side_by_side<kWidth, T><<<g.grid, g.block, 0, stream_of(stream)>>>(view<const T>(up), view<T>(side));
      PESC_LAUNCHED("adapter_side_by_side");
    });
  });
}

void unpack_up(Stream& stream, const Tensor& side, const Tensor& dup) {
  if (side.size() == 0) return;
  with_pack<float>({side, dup}, [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    const RowGrid g(side.rows, side.cols / kWidth);
    add_stacked<kWidth><<<g.grid, g.block, 0, stream_of(stream)>>>(view<const float>(side), view<float>(dup));
    PESC_LAUNCHED("adapter_add_stacked");
  });
}

void dense_forward(Stream& stream, const AdapterForward& args, const Lists& lists, Until until,
                   Arena& scratch) {
  const Dense d(stream, args.groups, lists.row, args.f, args.hidden.cols, scratch);
  pesc::linear_forward(stream, args.f, args.down, d.space.p);
  if (until == Until::kHidden) {
    launch_gelu(stream, args, d.at, d.space.p, lists.slot, args.hidden,
                Tensor{nullptr, args.f.dtype, 0, 0, 0});
    return;
  }
  cuda::fill_zero(stream, d.space.scaled);
  launch_gelu(stream, args, d.at, d.space.p, lists.slot, args.hidden, d.space.scaled);
  pack_up(stream, args.up, d.space.up_all);
  pesc::linear_forward(stream, d.space.scaled, d.space.up_all, args.out, 1.0F, 1.0F);
}

void dense_backward(Stream& stream, const AdapterBackward& args, const Lists& lists, Arena& scratch) {
  const Dense d(stream, args.groups, lists.row, args.f, args.hidden.cols, scratch);
  pack_up(stream, args.up, d.space.up_all);
  pesc::linear_backward_input(stream, args.dout, d.space.up_all, d.space.p);
  cuda::fill_zero(stream, d.space.dh);
  cuda::fill_zero(stream, d.space.scaled);
  launch_gradients(stream, args, d.at, d.space.p, args.hidden, lists.slot, d.space.dh, d.space.scaled);
  cuda::gemm(stream, {.a = args.dout, .trans_a = Transpose::kYes, .b = d.space.scaled, .c = d.space.dup_all});
  unpack_up(stream, d.space.dup_all, args.dup);
  pesc::linear_backward_weight(stream, d.space.dh, args.f, args.ddown);
  pesc::linear_backward_input(stream, d.space.dh, args.down, args.df);
}

template <class Args>
bool is_dense(const Args& args) {
  return adapter_form(args.f.dtype, args.f.rows, args.hidden.rows, experts_of(args.groups),
                      args.hidden.cols) == AdapterForm::kDense;
}

void forward(Stream& stream, const AdapterForward& args, Until until, Arena& scratch) {
  Arena::Scope scope(scratch);
  const Lists lists(stream, args.groups, args.weights, scratch);
  if (is_dense(args)) {
    dense_forward(stream, args, lists, until, scratch);
  } else {
    grouped_forward(stream, args, lists, until, scratch);
  }
}

}  // namespace

void adapter_forward(Stream& stream, const AdapterForward& args, Arena& scratch) {
  check(args);
  check_like(args.out, args.f, "out");
  if (args.f.rows > 0) forward(stream, args, Until::kOut, scratch);
}

void adapter_hidden(Stream& stream, const AdapterForward& args, Arena& scratch) {
  check(args);
  if (args.f.rows > 0) forward(stream, args, Until::kHidden, scratch);
}

void adapter_backward(Stream& stream, const AdapterBackward& args, Arena& scratch) {
  check(args);
  check_like(args.dout, args.f, "dout");
  check_like(args.df, args.f, "df");
  PESC_CHECK(args.dweights.size() == args.weights.size() && args.dweights.contiguous(), "dweights ",
             args.dweights.rows, "x", args.dweights.cols);
  PESC_CHECK(args.ddown.rows == args.down.rows && args.ddown.cols == args.down.cols &&
                 args.dup.rows == args.up.rows && args.dup.cols == args.up.cols &&
                 args.ddown.dtype == DType::kF32 && args.dup.dtype == DType::kF32,
             "ddown ", args.ddown.rows, "x", args.ddown.cols, ", dup ", args.dup.rows, "x", args.dup.cols);
  if (args.f.rows == 0) return;
  cuda::fill_zero(stream, args.dweights);
  Arena::Scope scope(scratch);
  const Lists lists(stream, args.groups, args.weights, scratch);
  if (is_dense(args)) {
    dense_backward(stream, args, lists, scratch);
  } else {
    grouped_backward(stream, args, lists, scratch);
  }
}

}  // namespace pesc::cuda
