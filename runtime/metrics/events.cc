#include "runtime/metrics/events.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>

#include "configs/schema/tensorboard.pb.h"
#include "ops/core/check.h"
#include "runtime/metrics/crc32c.h"
#include "runtime/metrics/unix_time.h"

namespace pesc {
namespace {

namespace tb = proto::tensorboard;

constexpr int kStringType = 7;  // DT_STRING

struct Scalar {
  const char* key;  // of a step's record
  const char* tag;
};
constexpr std::array kScalars{
    Scalar{"loss", "loss"},
    Scalar{"aux_loss", "aux_loss"},
    Scalar{"grad_norm", "grad_norm"},
    Scalar{"lr", "learning_rate"},
    Scalar{"tokens_per_second", "speed/tokens_per_second"},
    Scalar{"mfu", "speed/mfu"},
    Scalar{"sol_fraction", "speed/sol_fraction"},
    Scalar{"seconds", "speed/step_seconds"},
    Scalar{"fill_rate", "speed/fill_rate"},
    Scalar{"memory_bytes", "memory/bytes"},
};

// A record without the time is of an older pesc.
tb::Event event_at(double wall_time, int64_t step) {
  tb::Event event;
  event.set_wall_time(wall_time > 0 ? wall_time : unix_seconds());
  event.set_step(step);
  return event;
}

void add_scalar_value(tb::Event& event, const std::string& tag, double value) {
  tb::Summary::Value& v = *event.mutable_summary()->add_value();
  v.set_tag(tag);
  v.set_simple_value(static_cast<float>(value));
}

// Bucket e spans [e - 1/2, e + 1/2] and counts the share of expert e in percent.
void add_load_value(tb::Event& event, const std::string& tag, const std::vector<double>& share) {
  tb::Summary::Value& v = *event.mutable_summary()->add_value();
  v.set_tag(tag);
  tb::HistogramProto& h = *v.mutable_histo();
  double num = 0, sum = 0, squares = 0;
  for (size_t e = 0; e < share.size(); ++e) {
    const double count = 100 * share[e], at = static_cast<double>(e);
    h.add_bucket_limit(at + 0.5);
    h.add_bucket(count);
    num += count;
    sum += count * at;
    squares += count * at * at;
  }
  h.set_min(-0.5);
  h.set_max(static_cast<double>(share.size()) - 0.5);
  h.set_num(num);
  h.set_sum(sum);
  h.set_sum_squares(squares);
}

// With the metadata by which the text plugin knows it.
void add_text_value(tb::Event& event, const std::string& tag, const std::vector<std::string>& texts) {
  tb::Summary::Value& v = *event.mutable_summary()->add_value();
  v.set_tag(tag);
  v.mutable_metadata()->mutable_plugin_data()->set_plugin_name("text");
  tb::TensorProto& tensor = *v.mutable_tensor();
  tensor.set_dtype(kStringType);
  tensor.mutable_tensor_shape()->add_dim()->set_size(static_cast<int64_t>(texts.size()));
  for (const std::string& text : texts) tensor.add_string_val(text);
}

void add_step(const MetricsRecord& record, Histograms histograms, tb::Event& event) {
  for (const Scalar& s : kScalars) {
    const double value = number_in(record.object, s.key);
    // A loss or norm that is no number stands in the record as null.
    simdjson::dom::element there;
    if (record.object[s.key].get(there) == simdjson::SUCCESS) add_scalar_value(event, s.tag, value);
  }
  if (histograms == Histograms::kNo) return;
  std::vector<double> share;
  simdjson::dom::array layers;
  if (record.object["expert_share"].get(layers) == simdjson::SUCCESS) {
    size_t layer = 0;
    for (const simdjson::dom::element of_layer : layers) {
      if (numbers_of(of_layer, share)) add_load_value(event, str_cat("experts/layer_", layer), share);
      ++layer;
    }
  }
  simdjson::dom::object tags;
  if (record.object["tag_expert_share"].get(tags) != simdjson::SUCCESS) return;
  for (const auto [tag, of_tag] : tags) {
    if (numbers_of(of_tag, share)) add_load_value(event, str_cat("experts/dataset/", tag), share);
  }
}

void add_eval_loss(const MetricsRecord& record, tb::Event& event) {
  add_scalar_value(event, "eval/loss", number_in(record.object, "eval_loss_total"));
  simdjson::dom::object tags;
  if (record.object["eval_loss"].get(tags) != simdjson::SUCCESS) return;
  for (const auto [tag, loss] : tags) {
    double value = 0;
    if (loss.get(value) == simdjson::SUCCESS) add_scalar_value(event, str_cat("eval/loss/", tag), value);
  }
}

// A text of a stranger as a block of code in Markdown, which the text plugin renders.
std::string as_code(const std::string& text) {
  std::string out = "    ";
  for (const char c : text) {
    out += c;
    if (c == '\n') out += "    ";
  }
  return out;
}

void add_scores(const std::string& behind, const EvaluationScore& score, tb::Event& event) {
  add_scalar_value(event, "eval/loss" + behind, score.loss);
  if (score.rows > 0) add_scalar_value(event, "eval/exact_match" + behind, score.exact);
  if (!score.expert_share.empty()) add_load_value(event, "eval/experts" + behind, score.expert_share);
}

}  // namespace

std::string file_version_event(double wall_time) {
  tb::Event event;
  event.set_wall_time(wall_time);
  event.set_file_version("brain.Event:2");
  return event.SerializeAsString();
}

std::string start_event(double wall_time, int64_t step) {
  tb::Event event = event_at(wall_time, step);
  event.mutable_session_log()->set_status(tb::SessionLog::START);
  return event.SerializeAsString();
}

std::vector<std::string> events_of_record(const MetricsRecord& record, Histograms histograms) {
  tb::Event event = event_at(number_in(record.object, "time", 0), record.step);
  const std::string_view kind = text_in(record.object, "kind");
  if (kind == "step") add_step(record, histograms, event);
  if (kind == "eval") add_eval_loss(record, event);
  if (!event.has_summary()) return {};
  return {event.SerializeAsString()};
}

std::vector<std::string> events_of_evaluation(const Evaluation& evaluation) {
  tb::Event event = event_at(evaluation.time, evaluation.step);
  add_scores("", evaluation.total, event);
  std::map<std::string, std::vector<std::string>> texts;
  for (const auto& [tag, score] : evaluation.datasets) add_scores("/" + tag, score, event);
  for (const EvaluationAnswer& a : evaluation.answers)
    texts["answers/" + a.dataset].push_back(str_cat("**question**\n\n", as_code(a.question),
                                                    "\n\n**answer**\n\n", as_code(a.answer),
                                                    "\n\n**expected**\n\n", as_code(a.expected)));
  for (const auto& [tag, list] : texts) add_text_value(event, tag, list);
  return {event.SerializeAsString()};
}

std::string tf_record(std::string_view bytes) {
  static_assert(std::endian::native == std::endian::little, "the numbers of a record are little-endian");
  const uint64_t length = bytes.size();
  std::string record(sizeof(length), '\0');
  std::memcpy(record.data(), &length, sizeof(length));
  const auto add_checksum = [&record](std::string_view of) {
    const uint32_t crc = masked_crc32c(of);
    record.append(reinterpret_cast<const char*>(&crc), sizeof(crc));
  };
  add_checksum(record);
  record += bytes;
  add_checksum(bytes);
  return record;
}

}  // namespace pesc
