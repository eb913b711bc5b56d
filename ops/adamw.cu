// AdamW on a GPU: one pass over the four buffers and the bf16 compute weight, for as many parameters in one
// launch as its arguments hold: a layer has a dozen small ones, which take longer to launch one by one than to
// update. Each element is computed as on the CPU (ops/adamw.cc).
#include <algorithm>

#include "ops/adamw.h"
#include "ops/core/vectors.cuh"
#include "ops/cuda_ops.h"

namespace pesc::cuda {
namespace {

struct Item {
  float *param, *exp_avg, *exp_avg_sq;
  const float* grad;
  View<bf16> copy;
  AdamWScalars scalars;
  uint32_t packs;        // of the parameter
  uint32_t first_chunk;  // of the launch, where the parameter begins
};
constexpr int kMostItems = 36;  // the arguments of a launch have 4 KiB
struct Items {
  Item item[kMostItems];
  int count;
  uint32_t chunks;
};
static_assert(sizeof(Items) <= 4096);

constexpr int kPacksAThread = 2;
constexpr int64_t kChunk = int64_t{kThreads} * kPacksAThread;  // packs of a block

// The update of one pack of N elements, once it is loaded.
template <int N>
__device__ __forceinline__ void step(const AdamWScalars& s, Pack<float, N>& p, const Pack<float, N>& gradient,
                                     Pack<float, N>& m, Pack<float, N>& v) {
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const float g = gradient.v[j] * s.grad_scale;
    m.v[j] = s.beta1 * m.v[j] + s.rest1 * g;
    v.v[j] = s.beta2 * v.v[j] + s.rest2 * g * g;
    p.v[j] = s.decay * p.v[j] - s.rate * m.v[j] / (sqrtf(v.v[j]) * s.inverse_root2 + s.eps);
  }
}

template <int N>
__device__ __forceinline__ void store_copy(const View<bf16>& copy, uint32_t pack, const Pack<float, N>& p) {
  const auto element = static_cast<int64_t>(pack) * N;
  if (copy.ld == copy.cols) return store_floats<N>(copy.data + element, p.v);
  const uint32_t packs_a_row = static_cast<uint32_t>(copy.cols / N);
  const uint32_t row = pack / packs_a_row;
  store_floats<N>(copy.row(row) + static_cast<int64_t>(pack - row * packs_a_row) * N, p.v);
}

template <int N>
__global__ void update(const __grid_constant__ Items items) {
  int at = 0;
  while (at + 1 < items.count && items.item[at + 1].first_chunk <= blockIdx.x) ++at;
  const Item& item = items.item[at];
  const uint32_t first = (blockIdx.x - item.first_chunk) * static_cast<uint32_t>(kChunk) + threadIdx.x;
  Pack<float, N> p[kPacksAThread], g[kPacksAThread], m[kPacksAThread], v[kPacksAThread];
#pragma unroll
  for (int k = 0; k < kPacksAThread; ++k) {
    const uint32_t pack = first + static_cast<uint32_t>(k * kThreads);
    if (pack >= item.packs) continue;
    const auto element = static_cast<int64_t>(pack) * N;
    p[k] = load_pack<N>(item.param + element);
    g[k] = load_pack<N>(item.grad + element);
    m[k] = load_pack<N>(item.exp_avg + element);
    v[k] = load_pack<N>(item.exp_avg_sq + element);
  }
#pragma unroll
  for (int k = 0; k < kPacksAThread; ++k) {
    const uint32_t pack = first + static_cast<uint32_t>(k * kThreads);
    if (pack >= item.packs) continue;
    const auto element = static_cast<int64_t>(pack) * N;
    step<N>(item.scalars, p[k], g[k], m[k], v[k]);
    store_pack<N>(item.param + element, p[k]);
    store_pack<N>(item.exp_avg + element, m[k]);
    store_pack<N>(item.exp_avg_sq + element, v[k]);
    if (item.copy.data != nullptr) store_copy<N>(item.copy, pack, p[k]);
  }
}

// The updates that wait for a launch; those of one width go together.
template <int N>
class Launches {
 public:
  explicit Launches(Stream& stream) : stream_(stream) {}

  void add(const AdamW& args, const Tensor& copy) {
    const int64_t packs = args.param.size() / N;
    PESC_CHECK(packs <= kMostPacks || !copy.present() || copy.contiguous(), copy.rows, "x", copy.cols,
               " in rows that are not adjacent");
    const AdamWScalars scalars = adamw_scalars(args);
    for (int64_t begin = 0; begin < packs; begin += kMostPacks)
      add(args, copy, scalars, begin * N, std::min(kMostPacks, packs - begin));
  }
  void launch() {
    if (items_.count == 0) return;
    update<N><<<items_.chunks, kThreads, 0, stream_of(stream_)>>>(items_);
    PESC_LAUNCHED("adamw");
    items_.count = 0;
    items_.chunks = 0;
  }

 private:
  static constexpr int64_t kMostPacks = int64_t{1} << 30;  // of an item: indices have 32 bits

  void add(const AdamW& args, const Tensor& copy, const AdamWScalars& scalars, int64_t begin, int64_t packs) {
    const auto chunks = static_cast<uint32_t>((packs + kChunk - 1) / kChunk);
    if (items_.count == kMostItems || items_.chunks > INT32_MAX - chunks) launch();
    View<bf16> part = view_or_none<bf16>(copy);
    if (part.data != nullptr) part.data += begin;
    items_.item[items_.count++] = {.param = args.param.f32() + begin,
                                   .exp_avg = args.exp_avg.f32() + begin,
                                   .exp_avg_sq = args.exp_avg_sq.f32() + begin,
                                   .grad = args.grad.f32() + begin,
                                   .copy = part,
                                   .scalars = scalars,
                                   .packs = static_cast<uint32_t>(packs),
                                   .first_chunk = items_.chunks};
    items_.chunks += chunks;
  }

  Stream& stream_;
  Items items_{};
};

}  // namespace

void adamw(Stream& stream, std::span<const AdamW> updates) {
  Launches<kPack<float>> packed(stream);
  Launches<1> single(stream);
  for (const AdamW& args : updates) {
    const int64_t n = args.param.size();
    for (const Tensor* t : {&args.param, &args.grad, &args.exp_avg, &args.exp_avg_sq})
      PESC_CHECK(t->size() == n && t->contiguous() && t->dtype == DType::kF32,
                 "flat F32 buffers of one size; got ", t->size(), " ", dtype_name(t->dtype), " and ", n);
    const bool copied = args.compute_weight.present();
    PESC_CHECK(!copied || (args.compute_weight.size() == n && args.compute_weight.dtype == DType::kBF16),
               "a copy of ", args.compute_weight.size(), " ", dtype_name(args.compute_weight.dtype), " for ",
               n);
    PESC_CHECK(args.step >= 1, "step ", args.step);
    if (n == 0) continue;
    const Tensor copy =
        copied && args.compute_weight.contiguous() ? flat(args.compute_weight) : args.compute_weight;
    // A pack of the compute weight has half the bytes, and must lie in one row.
    with_pack<float>({flat(args.param), flat(args.grad), flat(args.exp_avg), flat(args.exp_avg_sq), copy},
                     [&](auto width) {
                       if constexpr (decltype(width)::value == 1) {
                         single.add(args, copy);
                       } else {
                         packed.add(args, copy);
                       }
                     });
  }
  packed.launch();
  single.launch();
}

}  // namespace pesc::cuda
