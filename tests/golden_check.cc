// golden_check CASE_DIR [--tp T] [--ep E] [--headroom F] [--chunks C] [--threads N]
//              [--device cpu|cuda|cuda-shared] [--compute f32|bf16] [--corrupt QUANTITY]
//
// Runs a reference case (tests/goldens/README.md) on the layout that mpirun gives and compares every quantity
// with the recorded one: the dense model's logits and loss, the PESC model's logits and routing, every
// gradient, the whole AdamW curve and the parameters after it. Exits 0 only within the design's tolerances:
// relative error max|a-b| / max|b| per tensor (per scalar for the curve; absolute 1e-7 where b = 0).
// --device cuda takes one GPU per rank; cuda-shared lets the ranks share GPUs (a test mode). --compute bf16,
// on GPUs, has the bounds of golden_bounds.h.
// --headroom sets the room for received rows (below about 0.5 they come in several rounds), --chunks 2
// exchanges the tokens in two runs; gradients are summed over ranks behind the backward. --corrupt spoils
// one expected value, to show that the comparison would notice.
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/decoder.h"
#include "model/hf_names.h"
#include "runtime/hf/config_json.h"
#include "runtime/hf/dtype_convert.h"
#include "runtime/hf/hf_folder.h"
#include "runtime/hf/safetensors.h"
#include "runtime/optimizer.h"
#include "runtime/ranks.h"
#include "tests/assemble.h"
#include "tests/golden_bounds.h"
#include "tests/golden_report.h"

namespace pesc {
namespace {

struct Arguments {
  std::string folder, corrupt;
  int tp = 1, ep = 1, threads = 0, chunks = 1;
  double headroom = Capacity{}.exchange_headroom;
  std::string device = "cpu", compute = "f32";
};

constexpr const char* kUsage =
    "usage: golden_check CASE_DIR [--tp T] [--ep E] [--headroom F] [--chunks C] [--threads N] [--device "
    "cpu|cuda|cuda-shared] "
    "[--compute f32|bf16] [--corrupt QUANTITY]";

template <class T>
void parse_number(const std::string& flag, const std::string& text, T& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  if (error != std::errc{} || end != text.data() + text.size() || !(out > 0))
    throw UsageError(str_cat(flag, " needs a positive number, not '", text, "'\n", kUsage));
}

Arguments parse(int argc, char** argv) {
  Arguments a;
  for (int i = 1; i < argc; ++i) {
    std::string arg = argv[i];
    if (!arg.starts_with("--")) {
      if (!a.folder.empty()) throw UsageError(kUsage);
      a.folder = arg;
      continue;
    }
    std::string value;
    if (const size_t equals = arg.find('='); equals != std::string::npos) {
      value = arg.substr(equals + 1);
      arg.resize(equals);
    } else if (i + 1 < argc) {
      value = argv[++i];
    }
    if (arg == "--tp") {
      parse_number(arg, value, a.tp);
    } else if (arg == "--ep") {
      parse_number(arg, value, a.ep);
    } else if (arg == "--chunks") {
      parse_number(arg, value, a.chunks);
    } else if (arg == "--threads") {
      parse_number(arg, value, a.threads);
    } else if (arg == "--headroom") {
      parse_number(arg, value, a.headroom);
    } else if (arg == "--device") {
      a.device = value;
      if (value != "cpu" && value != "cuda" && value != "cuda-shared")
        throw UsageError(str_cat("--device: no device '", value, "'\n", kUsage));
    } else if (arg == "--compute") {
      a.compute = value;
      if (value != "f32" && value != "bf16")
        throw UsageError(str_cat("--compute: no type '", value, "'\n", kUsage));
    } else if (arg == "--corrupt") {
      a.corrupt = value;
      if (std::find(kQuantities.begin(), kQuantities.end(), value) == kQuantities.end())
        throw UsageError(str_cat("--corrupt: no quantity '", value, "'"));
    } else {
      throw UsageError(kUsage);
    }
  }
  if (a.folder.empty()) throw UsageError(kUsage);
  if (a.compute == "bf16" && a.device == "cpu")
    throw UsageError(str_cat("--compute bf16 needs --device cuda\n", kUsage));
  return a;
}

// Tensors of a safetensors file on the host.
class Expected {
 public:
  explicit Expected(const std::string& path) : file_(path) {}
  [[nodiscard]] std::vector<float> floats(const std::string& name) const {
    const SafetensorsEntry& e = file_.at(name);
    std::vector<float> out(static_cast<size_t>(e.bytes()) / static_cast<size_t>(dtype_bytes(e.dtype)));
    convert_to_f32(e.dtype, file_.bytes(e), out.data());
    return out;
  }
  [[nodiscard]] std::vector<int32_t> ints(const std::string& name) const {
    const SafetensorsEntry& e = file_.at(name);
    if (e.dtype == DType::kI32) return raw<int32_t>(e);
    if (e.dtype != DType::kI64) throw DataError(str_cat(file_.path(), ": tensor ", name, " is not I32"));
    const std::vector<int64_t> wide = raw<int64_t>(e);
    return {wide.begin(), wide.end()};
  }
  [[nodiscard]] const SafetensorsHeader& header() const { return file_.header(); }
  [[nodiscard]] const SafetensorsEntry& entry(const std::string& name) const { return file_.at(name); }

 private:
  template <class T>
  [[nodiscard]] std::vector<T> raw(const SafetensorsEntry& e) const {
    std::vector<T> out(static_cast<size_t>(e.bytes()) / sizeof(T));
    std::memcpy(out.data(), file_.bytes(e).data(), static_cast<size_t>(e.bytes()));
    return out;
  }
  SafetensorsFile file_;
};

struct Case {
  ModelConfig model;
  PescConfig pesc;
  AdamWConfig adamw;
  double lr = 0;
  int64_t steps = 0, batch = 0, seq = 0;
  std::vector<int32_t> ids, labels;
};

template <class T>
T field(const nlohmann::json& json, const char* name, const std::string& folder) {
  if (!json.contains(name)) throw DataError(str_cat(folder, "/case.json: no field '", name, "'"));
  if (!json.at(name).is_number())
    throw DataError(str_cat(folder, "/case.json: '", name, "' is not a number"));
  return json.at(name).get<T>();
}

Case read_case(const std::string& folder, const Expected& expected, const Expected& params) {
  std::ifstream in(folder + "/case.json");
  if (!in) throw DataError(folder + "/case.json: cannot be read");
  const nlohmann::json json = nlohmann::json::parse(in, nullptr, false);
  if (!json.is_object()) throw DataError(folder + "/case.json: is not a JSON object");
  Case c;
  c.model = read_model_config(folder);
  c.pesc.mode = TrainMode::kPesc;
  for (int l = 0; l < kLinears; ++l) {
    const auto linear = static_cast<Linear>(l);
    if (params.header().find(hf::lora_a(0, linear)) != nullptr) c.pesc.lora.targets.push_back(linear);
  }
  if (!c.pesc.lora.targets.empty()) {
    c.pesc.lora.rank = field<int64_t>(json, "rank", folder);
    c.pesc.lora.alpha = field<double>(json, "alpha", folder);
  }
  c.pesc.moe.experts = field<int64_t>(json, "experts", folder);
  c.pesc.moe.top_k = field<int64_t>(json, "topk", folder);
  c.pesc.moe.adapter_dim = field<int64_t>(json, "adapter", folder);
  c.pesc.moe.scale = field<double>(json, "scale", folder);
  c.pesc.moe.aux_coef = field<double>(json, "aux", folder);
  c.adamw.weight_decay = field<double>(json, "wd", folder);
  c.adamw.clip_norm = field<double>(json, "clip", folder);
  c.lr = field<double>(json, "lr", folder);
  c.steps = field<int64_t>(json, "steps", folder);
  if (expected.entry("curve.ce_aux_gradnorm").shape != std::vector<int64_t>{c.steps, 3})
    throw DataError(str_cat(folder, ": curve.ce_aux_gradnorm is not [", c.steps, ", 3], as case.json says"));
  const SafetensorsEntry& ids = expected.entry("input_ids");
  if (ids.shape.size() != 2) throw DataError("input_ids is not [batch, seq]");
  c.batch = ids.shape[0];
  c.seq = ids.shape[1];
  c.ids = expected.ints("input_ids");
  c.labels = expected.ints("labels");
  if (c.ids.size() != c.labels.size()) throw DataError("input_ids and labels differ in size");
  for (const auto* list : {&c.ids, &c.labels}) {
    for (const int32_t id : *list) {
      const bool fits = id < c.model.vocab && (id >= 0 || (list == &c.labels && id == -100));
      if (!fits) throw DataError(str_cat("expected.safetensors: token ", id, " of ", c.model.vocab));
    }
  }
  if (c.model.sliding_window > 0 && c.seq > c.model.sliding_window) {
    throw UsageError(str_cat("sequences of ", c.seq, " tokens with a sliding window of ",
                             c.model.sliding_window, ": sliding windows are not supported"));
  }
  return c;
}

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
  Files(const Arguments& a, int world)
      : expected(a.folder + "/expected.safetensors"),
        params(a.folder + "/pesc_params.safetensors"),
        values(read_case(a.folder, expected, params)),
        weights(a.folder) {
    validate_model(values.model);
    validate_layout(values.model, values.pesc, world, a.tp, a.ep);
  }
  Expected expected, params;
  Case values;
  HfFolder weights;
};

class Check {
 public:
  Check(Communicator& world, const Arguments& a, Files& files, const Device& device)
      : expected_(files.expected),
        params_(files.params),
        case_(files.values),
        source_(files.weights),
        report_(a.corrupt),
        device_(device),
        headroom_(a.headroom),
        chunks_(a.chunks),
        compute_(a.compute == "bf16" ? DType::kBF16 : DType::kF32),
        bounds_(GoldenBounds::of(compute_, case_.model.layers)),
        choices_(expected_.ints("pesc.top_experts"), case_.batch * case_.seq, case_.seq,
                 case_.pesc.moe.top_k),
        ranks_(world, a.tp, a.ep, case_.model.kv_heads) {
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

  std::unique_ptr<Decoder> make(const PescConfig& pesc) {
    DecoderOptions o;
    o.device = device_;
    o.capacity.max_tokens = split_range(case_.batch, mesh().dp(), 0).size() * case_.seq;
    o.capacity.max_sequence = case_.seq;
    o.capacity.exchange_headroom = headroom_;
    o.capacity.exchange_chunks = chunks_;
    o.max_positions = case_.seq;
    o.compute = compute_;
    std::unique_ptr<Decoder> d;
    together(world(), [&] {
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
    const auto d = make(plain);
    d->forward(batch_, {.kind = PassKind::kEval});
    report_.compare("dense.logits", bounds_.logits, all_logits(*d), expected_.floats("dense.logits"),
                    "dense.logits");
    d->loss(HeadMode::kLoss, 0);
    const double loss = sum_over_dp(d->take_loss_sum()) / static_cast<double>(supervised_);
    report_.compare("dense.loss", bounds_.loss, {static_cast<float>(loss)}, expected_.floats("dense.loss"),
                    "dense.loss");
  }

  void load_pesc(Decoder& d) {
    for (const Parameter& p : d.parameters().all()) {
      if (!p.trained) continue;
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
      copy_from_host(d.stream(), mine.data(), p.value);
    }
    d.parameters().refresh_copies(d.stream());
  }

  // Returns the gradients' norm.
  double forward_backward(Decoder& d, RoutingTape* tape) {
    d.zero_gradients();
    d.forward(batch_, {.tape = tape});
    d.balance(case_.batch * case_.seq, case_.pesc.moe.aux_coef / static_cast<double>(case_.model.layers));
    d.loss(HeadMode::kLossAndGradient, static_cast<float>(1.0 / static_cast<double>(supervised_)));
    GradientSum sum(d, ranks_.reduction(), Reduce::kBehindLayers);
    d.backward(sum.behind_layers());
    return sum.finish(world());
  }

  void pesc() {
    const auto d = make(case_.pesc);
    together(world(), [&] { load_pesc(*d); });
    d->forward(batch_, {});
    rounds_ = d->exchange_rounds();
    routing(*d);
    if (compute_ == DType::kBF16) d->forward(batch_, {.tape = &choices_});
    report_.compare("pesc.logits", bounds_.logits, all_logits(*d), expected_.floats("pesc.logits"),
                    "pesc.logits");
    report_.compare("top_weights", bounds_.weights, weights_of(*d), expected_.floats("pesc.top_weights"),
                    "pesc.top_weights");
    curve(*d);
    const Tensors final = assemble(world(), *d, [](const Parameter& p) { return p.value; });
    compare_tensors("final", "final.", bounds_.final, final);
  }

  // Routing is recorded per slice, so every rank's real tokens in rank order are the batch in order.
  void routing(Decoder& d) {
    std::vector<int32_t> experts;
    for (int64_t i = 0; i < case_.model.layers; ++i) {
      const auto e = gather_vector(d.chosen_experts(i), true);
      experts.insert(experts.end(), e.begin(), e.end());
    }
    report_.compare_exact("top_experts", bounds_.other_choices, experts, expected_.ints("pesc.top_experts"),
                          "pesc.top_experts");
  }
  std::vector<float> weights_of(Decoder& d) {
    std::vector<float> weights;
    for (int64_t i = 0; i < case_.model.layers; ++i) {
      const auto w = gather_vector(d.chosen_weights(i), true);
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
      report_.compare(quantity, tolerance, values, expected_.floats(prefix + name), name);
    }
  }

  void curve(Decoder& d) {
    const std::vector<float> want = expected_.floats("curve.ce_aux_gradnorm");
    static constexpr const char* kNames[] = {"curve.ce", "curve.balance", "curve.grad_norm"};
    for (int64_t step = 0; step < case_.steps; ++step) {
      const double norm = forward_backward(d, step == 0 && compute_ == DType::kBF16 ? &choices_ : nullptr);
      if (step == 0) {
        compare_tensors("grad", "grad.", bounds_.gradients,
                        assemble(world(), d, [](const Parameter& p) { return p.grad; }));
      }
      double balance = 0;
      for (const float b : d.balance_losses()) balance += b;
      const double got[] = {sum_over_dp(d.take_loss_sum()) / static_cast<double>(supervised_),
                            balance / static_cast<double>(case_.model.layers), norm};
      for (size_t i = 0; i < 3; ++i) {
        report_.compare(kNames[i], i == 2 ? bounds_.norm : bounds_.curve, {static_cast<float>(got[i])},
                        {want[static_cast<size_t>(step) * 3 + i]}, str_cat("step ", step));
      }
      optimizer_step(d, case_.adamw, case_.lr, step + 1, norm);
    }
  }

  const Expected& expected_;
  const Expected& params_;
  const Case& case_;
  HfFolder& source_;
  Report report_;
  Device device_;
  double headroom_;
  int chunks_;
  DType compute_;
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
    std::unique_ptr<Files> files;
    together(*world, [&] { arguments = parse(argc, argv); });
    const HostPlacement place =
        place_rank_on_host(session.local_rank(), session.local_size(), arguments.threads);
    together(*world, [&] { files = std::make_unique<Files>(arguments, world->size()); });
    Device device{.threads = place.threads};
    std::unique_ptr<Communicator> gpus;
    if (arguments.device != "cpu") {
      device.kind = DeviceKind::kCuda;
      gpus = connect_gpus(*world, place, arguments.device == "cuda-shared", device);
    }
    Check check(gpus ? *gpus : *world, arguments, *files, device);
    const int64_t mine = check.run() ? 0 : 1;
    return static_cast<int>(world->host_all_gather(std::span(&mine, 1)).front());
  } catch (const AgreedError& e) {
    if (e.speaker) std::fprintf(stderr, "golden_check: %s\n", e.what());
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
