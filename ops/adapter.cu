// The adapter experts on a GPU, in one of two forms (ops/adapter_scratch.h). With F [n, H] the rows of f,
// h = F Down^T, g = gelu(h), w the weight of the assignment:
//   forward    out[rows] += (w scale g) Up^T
//   backward   p = dY Up;  dw = scale sum_d(p g);  dh = w scale p gelu'(h)
//              dUp += dY^T (w scale g);  dDown += dh^T F;  df[rows] += dh Down
// Grouped: the rows of a run of assignments are gathered in expert order (unless they are adjacent),
// multiplied expert by expert, and the results are summed row by row. Dense: all rows and experts at once, on
// [R, E d] with zeros where a row did not choose an expert, so that a NaN in one row's f or one expert's
// weights may spread to others. f, down, up, pre_act, out and their gradients have one element type; the
// weights of the assignments, ddown and dup are F32. Sums over experts are taken in expert order, or inside
// one GEMM.
#include <vector>

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
                 static_cast<int64_t>(groups.choice.size()) == count,
             "offsets of ", experts, " experts, ", count, " assignments, ", groups.choice.size(), " choices");
  PESC_CHECK(args.pre_act.rows == count, "pre_act has ", args.pre_act.rows, " rows for ", count,
             " assignments");
  PESC_CHECK(args.down.rows == experts * args.pre_act.cols && args.down.cols == f.cols &&
                 args.up.rows == experts * f.cols && args.up.cols == args.pre_act.cols,
             "down ", args.down.rows, "x", args.down.cols, ", up ", args.up.rows, "x", args.up.cols, " for ",
             experts, " experts, hidden ", f.cols, ", adapter ", args.pre_act.cols);
  PESC_CHECK(args.topk_weights.rows == f.rows && args.topk_weights.contiguous() &&
                 args.topk_weights.dtype == DType::kF32,
             "weights ", args.topk_weights.rows, "x", args.topk_weights.cols, " ",
             dtype_name(args.topk_weights.dtype), " for ", f.rows, " rows");
  for (const Tensor* t : {&args.down, &args.up, &args.pre_act})
    PESC_CHECK(t->dtype == f.dtype, "f is ", dtype_name(f.dtype), ", the adapters ", dtype_name(t->dtype));
  PESC_CHECK(count <= args.topk_weights.size(), count, " assignments of ", args.topk_weights.size(),
             " choices");
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i);
    const int64_t first = groups.row[at] * args.topk_weights.cols;  // of the row's choices
    PESC_CHECK(0 <= groups.choice[at] && groups.choice[at] < args.topk_weights.size() &&
                   first <= groups.choice[at] && groups.choice[at] < first + args.topk_weights.cols,
               "assignment ", i, " of row ", groups.row[at], ", choice ", groups.choice[at]);
  }
}

void check_like(const Tensor& t, const Tensor& f, const char* name) {
  PESC_CHECK(t.rows == f.rows && t.cols == f.cols && t.dtype == f.dtype, name, " ", t.rows, "x", t.cols, " ",
             dtype_name(t.dtype), " for f ", f.rows, "x", f.cols, " ", dtype_name(f.dtype));
}

// The lists on the device.
struct Lists {
  AdapterLists at;
  int64_t top_k;
  Lists(Stream& stream, const AdapterGroups& groups, const Tensor& weights, Arena& scratch)
      : at(scratch, weights.rows, weights.cols), top_k(weights.cols) {
    std::vector<int32_t> values(static_cast<size_t>(weights.size()));
    for (size_t i = 0; i < groups.choice.size(); ++i)
      values[static_cast<size_t>(groups.choice[i])] = static_cast<int32_t>(i + 1);
    values.insert(values.end(), groups.choice.begin(), groups.choice.end());
    const auto bytes = static_cast<int64_t>(values.size() * sizeof(int32_t));
    upload(stream.cuda_stream(), values.data(), at.all.data, bytes);
  }
};

// ---- grouped ----

// Assignments [begin, end), of several experts.
struct Run {
  int64_t begin, end;
  bool contiguous;  // their rows are first_row, first_row + 1, ...
  int64_t first_row;
  [[nodiscard]] int64_t n() const { return end - begin; }
};

template <class Use>
void for_each_run(const AdapterGroups& groups, int64_t most, Use use) {
  const auto count = static_cast<int64_t>(groups.row.size());
  for (int64_t begin = 0; begin < count; begin += most) {
    const int64_t end = std::min(begin + most, count);
    const auto rows = groups.row.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
    bool contiguous = true;
    for (size_t i = 1; i < rows.size() && contiguous; ++i) contiguous = rows[i] == rows[i - 1] + 1;
    use(Run{begin, end, contiguous, rows.front()});
  }
}

// Calls use(e, begin, end): assignments [begin, end) of the run are those of expert e.
template <class Use>
void for_each_expert(const AdapterGroups& groups, const Run& run, Use use) {
  for (int64_t e = 0; e < experts_of(groups); ++e) {
    const int64_t begin = std::max(groups.offsets[static_cast<size_t>(e)], run.begin);
    const int64_t end = std::min(groups.offsets[static_cast<size_t>(e) + 1], run.end);
    if (begin < end) use(e, begin - run.begin, end - run.begin);
  }
}

// [n, columns] in the order of the experts.
Tensor take_rows(Stream& stream, const Run& run, const Lists& lists, const Tensor& in, const Tensor& space) {
  if (run.contiguous) return in.row_range(run.first_row, run.first_row + run.n());
  const Tensor out = space.row_range(0, run.n());
  with_element(in.dtype, [&](auto element) {
    using T = decltype(element);
    with_pack<T>({in, out}, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      const RowGrid g(in.rows, in.cols / kWidth);
      spread_rows<kWidth, T><<<g.grid, g.block, 0, stream_of(stream)>>>(
          view<const T>(in), lists.at.inverse.i32(), lists.top_k, run.begin, view<T>(out));
      PESC_LAUNCHED("adapter_spread_rows");
    });
  });
  return out;
}

// Adds the results of a run's experts to rows of `out`. Where those are adjacent, the GEMMs write to `out`
// directly.
class RunOutput {
 public:
  // add: `out` is added to; otherwise all of it is written. `space` holds the results of the GEMMs.
  RunOutput(Stream& stream, const Run& run, const Tensor& out, bool add, const Tensor& space)
      : run_(run), out_(out), add_(add), products_(space.row_range(0, run.n())) {
    if (!run.contiguous) return;
    if (!add) cuda::fill_zero(stream, out);
    products_ = out.row_range(run.first_row, run.first_row + run.n());
  }
  // Rows [begin, end) of the run: a [n, d] b^T, b [H, d] or, with kNo, a b, b [d, H].
  void multiply(Stream& stream, int64_t begin, int64_t end, const Tensor& a, const Tensor& b,
                Transpose trans_b) const {
    cuda::gemm(stream, {.a = a.row_range(begin, end),
                        .b = b,
                        .trans_b = trans_b,
                        .c = products_.row_range(begin, end),
                        .beta = run_.contiguous ? 1.0F : 0.0F,
                        .extent = Extent::kVaries});
  }
  void finish(Stream& stream, const Lists& lists) const {
    if (run_.contiguous) return;
    with_element(out_.dtype, [&](auto element) {
      using T = decltype(element);
      with_pack<T>({products_, out_}, [&](auto width) {
        constexpr int kWidth = decltype(width)::value;
        const RowGrid g(out_.rows, out_.cols / kWidth);
        sum_rows<kWidth, T><<<g.grid, g.block, 0, stream_of(stream)>>>(
            view<const T>(products_), lists.at.inverse.i32(), lists.top_k, run_.begin, add_, view<T>(out_));
        PESC_LAUNCHED("adapter_sum_rows");
      });
    });
  }

 private:
  const Run& run_;
  const Tensor& out_;
  bool add_;
  Tensor products_;
};

// dw += a^T b over the rows of a piece.
void add_weight_gradient(Stream& stream, const Tensor& a, const Tensor& b, const Tensor& dw) {
  cuda::gemm(stream,
             {.a = a, .trans_a = Transpose::kYes, .b = b, .c = dw, .beta = 1.0F, .extent = Extent::kVaries});
}

Tensor expert_rows(const Tensor& stacked, int64_t expert, int64_t rows) {
  return stacked.row_range(expert * rows, (expert + 1) * rows);
}

enum class Until { kHidden, kOut };

Cells cells_of(const Run& run, const Lists& lists, int64_t dim) {
  return {lists.at.choice.i32() + run.begin, nullptr, nullptr, run.n(), dim, run.n(), 1, 0};
}

void grouped_forward(Stream& stream, const AdapterForward& args, const Lists& lists, Until until,
                     Arena& scratch) {
  const int64_t dim = args.pre_act.cols;
  const AdapterGroups& groups = args.groups;
  const AdapterGroupedScratch s(scratch, args.pre_act.rows, args.f.cols, dim, args.f.dtype);
  for_each_run(groups, s.run, [&](const Run& run) {
    const Tensor f = take_rows(stream, run, lists, args.f, s.rows0);
    const Tensor pre_act = args.pre_act.row_range(run.begin, run.end);
    for_each_expert(groups, run, [&](int64_t e, int64_t begin, int64_t end) {
      cuda::gemm(stream, {.a = f.row_range(begin, end),
                          .b = expert_rows(args.down, e, dim),
                          .trans_b = Transpose::kYes,
                          .c = pre_act.row_range(begin, end),
                          .extent = Extent::kVaries});
    });
    if (until == Until::kHidden) return;
    const Tensor scaled = s.scaled.row_range(0, run.n());
    launch_gelu(stream, args, cells_of(run, lists, dim), pre_act, pre_act, scaled);
    const RunOutput out(stream, run, args.out, true, s.rows0);
    for_each_expert(groups, run, [&](int64_t e, int64_t begin, int64_t end) {
      out.multiply(stream, begin, end, scaled, expert_rows(args.up, e, args.f.cols), Transpose::kYes);
    });
    out.finish(stream, lists);
  });
}

void grouped_backward(Stream& stream, const AdapterBackward& args, const Lists& lists, Arena& scratch) {
  const int64_t dim = args.pre_act.cols;
  const AdapterGroups& groups = args.groups;
  if (args.pre_act.rows == 0) return cuda::fill_zero(stream, args.df);
  const AdapterGroupedScratch s(scratch, args.pre_act.rows, args.f.cols, dim, args.f.dtype);
  for_each_run(groups, s.run, [&](const Run& run) {
    const Tensor f = take_rows(stream, run, lists, args.f, s.rows0);
    const Tensor dy = take_rows(stream, run, lists, args.dout, s.rows1);
    const Tensor p = s.p.row_range(0, run.n());
    const Tensor scaled = s.scaled.row_range(0, run.n());
    for_each_expert(groups, run, [&](int64_t e, int64_t begin, int64_t end) {
      cuda::gemm(stream, {.a = dy.row_range(begin, end),
                          .b = expert_rows(args.up, e, args.f.cols),
                          .c = p.row_range(begin, end),
                          .extent = Extent::kVaries});
    });
    launch_gradients(stream, args, cells_of(run, lists, dim), p, args.pre_act.row_range(run.begin, run.end),
                     p, scaled);
    for_each_expert(groups, run, [&](int64_t e, int64_t begin, int64_t end) {
      const auto mine = [&](const Tensor& t) { return t.row_range(begin, end); };
      add_weight_gradient(stream, mine(dy), mine(scaled), expert_rows(args.dup, e, args.f.cols));
      add_weight_gradient(stream, mine(p), mine(f), expert_rows(args.ddown, e, dim));
    });
    const RunOutput df(stream, run, args.df, run.begin > 0, s.rows1);
    for_each_expert(groups, run, [&](int64_t e, int64_t begin, int64_t end) {
      df.multiply(stream, begin, end, p, expert_rows(args.down, e, dim), Transpose::kNo);
    });
    df.finish(stream, lists);
  });
}

// ---- dense ----

struct Dense {
  AdapterDenseScratch space;
  Cells cells;

  Dense(Stream& stream, const AdapterGroups& groups, const Lists& lists, const Tensor& f, int64_t dim,
        Arena& scratch)
      : space(scratch, f.rows, f.cols, experts_of(groups), experts_of(groups) * dim, f.dtype),
        cells{lists.at.choice.i32(),
              lists.at.inverse.i32(),
              space.offsets.i32(),
              static_cast<int64_t>(groups.choice.size()),
              dim,
              f.rows,
              experts_of(groups),
              lists.top_k} {
    const std::vector<int32_t> offsets(groups.offsets.begin(), groups.offsets.end());
    upload(stream.cuda_stream(), offsets.data(), space.offsets.data, space.offsets.bytes());
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
  const Dense d(stream, args.groups, lists, args.f, args.pre_act.cols, scratch);
  pesc::linear_forward(stream, args.f, args.down, d.space.p);
  if (until == Until::kHidden) {
    launch_gelu(stream, args, d.cells, d.space.p, args.pre_act, Tensor{nullptr, args.f.dtype, 0, 0, 0});
    return;
  }
  launch_gelu(stream, args, d.cells, d.space.p, args.pre_act, d.space.scaled);
  pack_up(stream, args.up, d.space.up_all);
  pesc::linear_forward(stream, d.space.scaled, d.space.up_all, args.out, 1.0F, 1.0F);
}

void dense_backward(Stream& stream, const AdapterBackward& args, const Lists& lists, Arena& scratch) {
  const Dense d(stream, args.groups, lists, args.f, args.pre_act.cols, scratch);
  pack_up(stream, args.up, d.space.up_all);
  pesc::linear_backward_input(stream, args.dout, d.space.up_all, d.space.p);
  launch_gradients(stream, args, d.cells, d.space.p, args.pre_act, d.space.dh, d.space.scaled);
  cuda::gemm(stream, {.a = args.dout, .trans_a = Transpose::kYes, .b = d.space.scaled, .c = d.space.dup_all});
  unpack_up(stream, d.space.dup_all, args.dup);
  pesc::linear_backward_weight(stream, d.space.dh, args.f, args.ddown);
  pesc::linear_backward_input(stream, d.space.dh, args.down, args.df);
}

template <class Args>
AdapterForm form_of(const Args& args) {
  return adapter_form(args.f.dtype, args.f.rows, args.pre_act.rows, experts_of(args.groups),
                      args.pre_act.cols);
}

void forward(Stream& stream, const AdapterForward& args, Until until, Arena& scratch) {
  Arena::Scope scope(scratch);
  const Lists lists(stream, args.groups, args.topk_weights, scratch);
  if (form_of(args) == AdapterForm::kDense) {
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

void adapter_pre_act(Stream& stream, const AdapterForward& args, Arena& scratch) {
  check(args);
  if (args.f.rows > 0) forward(stream, args, Until::kHidden, scratch);
}

void adapter_backward(Stream& stream, const AdapterBackward& args, Arena& scratch) {
  check(args);
  check_like(args.dout, args.f, "dout");
  check_like(args.df, args.f, "df");
  PESC_CHECK(args.dtopk_weights.size() == args.topk_weights.size() && args.dtopk_weights.contiguous(),
             "dweights ", args.dtopk_weights.rows, "x", args.dtopk_weights.cols);
  PESC_CHECK(args.ddown.rows == args.down.rows && args.ddown.cols == args.down.cols &&
                 args.dup.rows == args.up.rows && args.dup.cols == args.up.cols &&
                 args.ddown.dtype == DType::kF32 && args.dup.dtype == DType::kF32,
             "ddown ", args.ddown.rows, "x", args.ddown.cols, ", dup ", args.dup.rows, "x", args.dup.cols);
  if (args.f.rows == 0) return;
  cuda::fill_zero(stream, args.dtopk_weights);
  Arena::Scope scope(scratch);
  const Lists lists(stream, args.groups, args.topk_weights, scratch);
  if (form_of(args) == AdapterForm::kDense) {
    dense_backward(stream, args, lists, scratch);
  } else {
    grouped_backward(stream, args, lists, scratch);
  }
}

}  // namespace pesc::cuda
