// golden_check CASE_DIR... [--tp T] [--ep E] [--buffer_factor F] [--chunks C] [--threads N]
//              [--device cpu|cuda|cuda-shared] [--compute f32|bf16] [--exchange tokens|weights]
//              [--corrupt QUANTITY|each]
//
// Runs reference cases (tests/goldens/README.md), one after the other, on the layout that mpirun gives and
// compares every quantity with the recorded one: the dense model's logits and loss, the PESC model's logits
// and routing, every gradient, the whole AdamW curve and the parameters after it. Exits 0 only within the
// tolerances of tests/README.md: relative error max|a-b| / max|b| per tensor (per scalar for the curve;
// absolute 1e-7 where b = 0).
// --device cuda takes one GPU per rank; cuda-shared lets the ranks share GPUs (a test mode). --compute bf16,
// on GPUs, has the bounds of golden_bounds.h.
// --buffer_factor sets the room for received rows (below about 0.5 they come in several rounds), --chunks 2
// exchanges the tokens in two runs, --exchange weights gathers the adapters' weights instead; gradients are summed over
// ranks while the backward runs. --corrupt spoils one expected value of a quantity, to show that the comparison would
// notice; with `each`, one value of every tensor of every quantity in turn, and it exits 0 only if nothing is wrong by itself and each was noticed.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "model/decoder.h"
#include "runtime/decoder_options.h"
#include "runtime/hf/hf_folder.h"
#include "runtime/hf/published_names.h"
#include "runtime/optimizer.h"
#include "runtime/ranks.h"
#include "tests/assemble.h"
#include "tests/golden_arguments.h"
#include "tests/golden_bounds.h"
#include "tests/golden_case.h"
#include "tests/golden_report.h"

namespace pesc {
namespace {

// Rows [range) of the case, as a rank sees them.
HostBatch rows_of(const Case& c, Range range) {
  HostBatch b;
  for (int64_t row = range.begin; row < range.end; ++row) {
    for (int64_t t = 0; t < c.seq; ++t) {
      const auto i = static_cast<size_t>(row * c.seq + t);
      b.tokens.push_back(c.ids[i]);
      b.targets.push_back(t + 1 < c.seq ? c.labels[i + 1] : -100);
      b.positions.push_back(static_cast<int32_t>(t));
      b.samples.push_back(row);
    }
    b.starts.push_back(static_cast<int32_t>(b.tokens.size()));
  }
  return b;
}

// The files of a case, read and found possible on this layout. Local: errors are agreed on by the caller.
struct Files {
  Files(const std::string& folder, const Arguments& a, int world)
      : expected(folder + "/expected.safetensors"),
        params(folder + "/pesc_params.safetensors"),
        values(read_case(folder, expected, params)),
        weights(folder) {
    use_model_names(weights, values.model);
    validate_model(values.model);
    validate_layout(values.model, values.pesc, world, a.tp, a.ep);
  }
  Expected expected, params;
  Case values;
  HfFolder weights;
};

GoldenNumbers numbers_of(const Arguments& a) {
  GoldenNumbers n;
  if (a.compute != "f32") n.compute = DType::kBF16;
  if (a.frozen == "fp8") n.frozen = FrozenFormat::kFP8;
  if (a.frozen == "nf4") n.frozen = FrozenFormat::kNF4;
  if (a.compute == "fp8") n.frozen_gemm = FrozenGemm::kFP8;
  return n;
}

class Check {
 public:
  Check(Communicator& world, const Arguments& a, Files& files, const Device& device)
      : expected_(files.expected),
        params_(files.params),
        case_(files.values),
        source_(files.weights),
        report_(a.corrupt),
        device_(device),
        buffer_factor_(a.buffer_factor),
        chunks_(a.chunks),
        exchange_(a.exchange == "weights" ? ExpertExchange::kWeights : ExpertExchange::kTokens),
        numbers_(numbers_of(a)),
        bounds_(GoldenBounds::of(numbers_, case_.model.num_hidden_layers)),
        choices_(expected_.ints("pesc.top_experts"), case_.batch * case_.seq, case_.seq,
                 case_.pesc.moe.num_experts_per_tok),
        ranks_(world, a.tp, a.ep, case_.model.num_key_value_heads) {
    batch_ = rows_of(case_, split_range(case_.batch, mesh().dp(), mesh().dp_rank()));
    for (int64_t i = 0; i < case_.batch; ++i) {
      for (int64_t t = 1; t < case_.seq; ++t)
        supervised_ += case_.labels[static_cast<size_t>(i * case_.seq + t)] >= 0;
    }
  }

  bool run() {
    dense();
    pesc();
    if (!ranks_.first()) return true;
    const bool ok = report_.print();
    std::printf("exchange rounds: %d\n", rounds_);
    return ok;
  }

 private:
  [[nodiscard]] const Mesh& mesh() const { return ranks_.mesh(); }
  [[nodiscard]] Communicator& world() const { return ranks_.world(); }

  std::unique_ptr<Decoder> make(const PescConfig& pesc, const GoldenNumbers& numbers) {
    ExperimentConfig c;
    c.pesc = pesc;
    c.train.compute_dtype = numbers.compute;
    c.train.frozen_dtype = numbers.frozen;
    c.train.frozen_gemm = numbers.frozen_gemm;
    c.parallel.buffer_factor = buffer_factor_;
    c.parallel.ep = mesh().ep();
    c.parallel.expert_exchange = exchange_;
    c.parallel.dispatch_chunks = chunks_;
    c.parallel.overlap_comm = Overlap::kOn;
    const DecoderOptions o =
        decoder_options(c, mesh(), device_, {Purpose::kTraining, case_.batch, case_.seq, 0});
    std::unique_ptr<Decoder> d;
    run_collectively(world(), [&] {
      d = std::make_unique<Decoder>(case_.model, pesc, mesh(), ranks_.groups(), o);
      d->parameters().initialise(d->stream(), &source_, 1, 0.02);
    });
    return d;
  }

  // Logits of all rows of all ranks, in batch order.
  std::vector<float> all_logits(Decoder& d) {
    std::vector<int32_t> rows(static_cast<size_t>(batch_.size()));
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<int32_t>(i);
    return gather_floats(d.logits(rows));
  }
  template <class T>
  std::vector<T> gather_vector(const std::vector<T>& mine, bool every_rank) {
    std::string bytes;
    if (every_rank || mesh().tp_rank() == 0)
      bytes.assign(reinterpret_cast<const char*>(mine.data()), mine.size() * sizeof(T));
    std::vector<T> all;
    for (const std::string& part : world().host_all_gather(bytes)) {
      const size_t at = all.size();
      all.resize(at + part.size() / sizeof(T));
      std::memcpy(all.data() + at, part.data(), part.size());
    }
    return all;
  }
  std::vector<float> gather_floats(const std::vector<float>& mine) { return gather_vector(mine, false); }
  double sum_over_dp(double mine) {
    double total = 0;
    for (const double v : gather_vector(std::vector<double>{mine}, false)) total += v;
    return total;
  }

  void dense() {
    PescConfig plain;
    plain.mode = TrainMode::kLora;
    const auto d = make(plain, numbers_);
    d->forward(batch_, {.kind = ForwardMode::kEval});
    report_.compare("dense.logits", bounds_.logits, all_logits(*d), expected_.floats("dense.logits"),
                    "dense.logits");
    d->loss(HeadMode::kLoss, 0);
    const double loss = sum_over_dp(d->take_loss_sum()) / static_cast<double>(supervised_);
    report_.compare("dense.loss", bounds_.loss, {static_cast<float>(loss)}, expected_.floats("dense.loss"),
                    "dense.loss");
  }

  void load_pesc(Decoder& d) {
    for (const Parameter& p : d.parameters().all()) {
      if (!p.trainable) continue;
      const ShardSpec& s = p.spec;
      const std::vector<float> whole = params_.floats(s.name);
      if (static_cast<int64_t>(whole.size()) != s.global_rows * s.global_cols) {
        throw DataError(str_cat("pesc_params.safetensors: tensor ", s.name, " has ", whole.size(),
                                " values, the model needs [", s.global_rows, ", ", s.global_cols, "]"));
      }
      std::vector<float> mine;
      for (int64_t r = s.row; r < s.row + s.rows; ++r) {
        const auto from = whole.begin() + r * s.global_cols + s.col;
        mine.insert(mine.end(), from, from + s.cols);
      }
      copy_from_host(d.stream(), mine.data(), p.master);
    }
    d.parameters().refresh_compute_weights(d.stream());
  }

  // Returns the gradients' norm.
  double forward_backward(Decoder& d, RouterReplay* router_replay) {
    d.zero_gradients();
    d.forward(batch_, {.router_replay = router_replay});
    d.compute_aux_loss(case_.batch * case_.seq, case_.pesc.moe.router_aux_loss_coef /
                                                    static_cast<double>(case_.model.num_hidden_layers));
    d.loss(HeadMode::kLossAndGradient, static_cast<float>(1.0 / static_cast<double>(supervised_)));
    GradientReducer sum(d, ranks_.reduction(), Reduce::kOverlapped);
    d.backward(sum.overlapped());
    return sum.finish(world());
  }

  std::unique_ptr<Decoder> make_pesc(const GoldenNumbers& numbers) {
    auto d = make(case_.pesc, numbers);
    run_collectively(world(), [&] { load_pesc(*d); });
    return d;
  }

  void pesc() {
    const auto d = make_pesc(numbers_);
    d->forward(batch_, {});
    rounds_ = d->dispatch_rounds();
    routing(*d);
    if (!numbers_.exact()) d->forward(batch_, {.router_replay = &choices_});
    report_.compare("pesc.logits", bounds_.logits, all_logits(*d), expected_.floats("pesc.logits"),
                    "pesc.logits");
    report_.compare("top_weights", bounds_.weights, weights_of(*d), expected_.floats("pesc.top_weights"),
                    "pesc.top_weights");
    curve(*d);
    if (!numbers_.exact()) {
      final(*steps_of_float32());
    } else {
      final(*d);
    }
  }

  void final(Decoder& d) {
    compare_tensors("final", "final.", bounds_.final,
                    assemble(world(), d, [](const Parameter& p) { return p.master; }));
  }

  // All steps, with the choices of experts of the same steps in float32.
  std::unique_ptr<Decoder> steps_of_float32() {
    StepChoices choices;
    const auto steps = [&](const GoldenNumbers& numbers) {
      auto d = make_pesc(numbers);
      for (int64_t step = 0; step < case_.steps; ++step) {
        choices.at_step(step, numbers.exact());
        update(*d, step, forward_backward(*d, &choices));
      }
      return d;
    };
    steps({});
    return steps(numbers_);
  }

  void update(Decoder& d, int64_t step, double norm) {
    optimizer_step(d, case_.adamw, case_.lr, step + 1, norm);
  }

  // Routing is recorded per slice, so every rank's real tokens in rank order are the batch in order.
  void routing(Decoder& d) {
    std::vector<int32_t> experts;
    for (int64_t i = 0; i < case_.model.num_hidden_layers; ++i) {
      const auto e = gather_vector(d.topk_indices(i), true);
      experts.insert(experts.end(), e.begin(), e.end());
    }
    report_.compare_exact("top_experts", bounds_.other_choices, experts, expected_.ints("pesc.top_experts"),
                          "pesc.top_experts");
  }
  std::vector<float> weights_of(Decoder& d) {
    std::vector<float> weights;
    for (int64_t i = 0; i < case_.model.num_hidden_layers; ++i) {
      const auto w = gather_vector(d.topk_weights(i), true);
      weights.insert(weights.end(), w.begin(), w.end());
    }
    return weights;
  }

  void compare_tensors(const std::string& quantity, const std::string& prefix, double tolerance,
                       const Tensors& tensors) {
    size_t wanted = 0;
    for (const SafetensorsEntry& e : expected_.header().tensors) wanted += e.name.starts_with(prefix) ? 1 : 0;
    PESC_CHECK(wanted == tensors.size(), quantity, ": ", tensors.size(), " trained tensors, the case has ",
               wanted);
    for (const auto& [name, values] : tensors) {
      const std::vector<float> want = expected_.floats(prefix + name);
      if (!numbers_.frozen) {
        report_.compare(quantity, tolerance, values, want, name);
      } else if (quantity == "final") {
        const std::vector<float> start = params_.floats(name);
        report_.compare_norm(quantity, tolerance, minus(values, start), minus(want, start), name);
      } else {
        report_.compare_norm(quantity, tolerance, values, want, name);
      }
    }
  }

  [[nodiscard]] static std::vector<float> minus(std::vector<float> a, const std::vector<float>& b) {
    PESC_CHECK(a.size() == b.size(), a.size(), " values less ", b.size());
    std::transform(a.begin(), a.end(), b.begin(), a.begin(), std::minus<>());
    return a;
  }

  void curve(Decoder& d) {
    const std::vector<float> want = expected_.floats("curve.ce_aux_gradnorm");
    static constexpr const char* kNames[] = {"curve.ce", "curve.aux_loss", "curve.grad_norm"};
    for (int64_t step = 0; step < case_.steps; ++step) {
      const double norm = forward_backward(d, step == 0 && !numbers_.exact() ? &choices_ : nullptr);
      if (step == 0) {
        compare_tensors("grad", "grad.", bounds_.gradients,
                        assemble(world(), d, [](const Parameter& p) { return p.grad; }));
      }
      double aux_loss = 0;
      for (const float b : d.aux_losses()) aux_loss += b;
      const double got[] = {sum_over_dp(d.take_loss_sum()) / static_cast<double>(supervised_),
                            aux_loss / static_cast<double>(case_.model.num_hidden_layers), norm};
      for (size_t i = 0; i < 3; ++i) {
        report_.compare(kNames[i], i == 2 ? bounds_.norm : bounds_.curve, {static_cast<float>(got[i])},
                        {want[static_cast<size_t>(step) * 3 + i]}, str_cat("step ", step));
      }
      update(d, step, norm);
    }
  }

  const Expected& expected_;
  const Expected& params_;
  const Case& case_;
  HfFolder& source_;
  Report report_;
  Device device_;
  double buffer_factor_;
  int chunks_;
  ExpertExchange exchange_;
  GoldenNumbers numbers_;
  GoldenBounds bounds_;
  GoldenRouting choices_;
  Ranks ranks_;
  int rounds_ = 0;
  HostBatch batch_;
  int64_t supervised_ = 0;
};

int run(int argc, char** argv) {
  const MpiSession session;
  const auto world = session.world();
  try {
    Arguments arguments;
    run_collectively(*world, [&] { arguments = parse(argc, argv); });
    const HostPlacement place =
        place_rank_on_host(session.cores(), session.local_rank(), session.local_size(), arguments.threads);
    Device device{.threads = place.threads};
    std::unique_ptr<Communicator> gpus;
    if (arguments.device != "cpu") {
      device.kind = DeviceKind::kCuda;
      gpus = connect_gpus(*world, place, arguments.device == "cuda-shared", device);
    }
    int64_t wrong = 0;
    for (const std::string& folder : arguments.folders) {
      std::unique_ptr<Files> files;
      run_collectively(*world, [&] { files = std::make_unique<Files>(folder, arguments, world->size()); });
      if (world->rank() == 0 && arguments.folders.size() > 1) std::printf("%s\n", folder.c_str());
      Check check(gpus ? *gpus : *world, arguments, *files, device);
      wrong |= check.run() ? 0 : 1;
    }
    return static_cast<int>(world->host_all_gather(std::span(&wrong, 1)).front());
  } catch (const AgreedError& e) {
    if (e.reporting) std::fprintf(stderr, "golden_check: %s\n", e.what());
    return static_cast<int>(e.code());
  } catch (const Error& e) {
    std::fprintf(stderr, "golden_check: rank %d: %s\n", world->rank(), e.what());
    MpiSession::abort(static_cast<int>(e.code()));
  }
}

}  // namespace
}  // namespace pesc

int main(int argc, char** argv) {
  return pesc::run(argc, argv);
}
