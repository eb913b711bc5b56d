#include "parallel/metered_communicator.h"

#include <chrono>
#include <utility>

#include "ops/core/check.h"

namespace pesc {

class MeteredCommunicator final : public Communicator {
 public:
  MeteredCommunicator(Communicator& inner, CollectiveMeter& meter) : inner_(inner), meter_(meter) {}
  MeteredCommunicator(std::unique_ptr<Communicator> own, CollectiveMeter& meter)
      : own_(std::move(own)), inner_(*own_), meter_(meter) {}

  [[nodiscard]] int rank() const override { return inner_.rank(); }
  [[nodiscard]] int size() const override { return inner_.size(); }
  [[nodiscard]] const std::string& name() const override { return inner_.name(); }
  [[nodiscard]] int64_t bytes_sent() const override { return inner_.bytes_sent(); }

  void all_gather(Stream& stream, const Tensor& in, const Tensor& out) override {
    count(stream, kind("all_gather", in.dtype, in.bytes()), [&] { inner_.all_gather(stream, in, out); });
  }
  void reduce_scatter(Stream& stream, const Tensor& in, const Tensor& out) override {
    count(stream, kind("reduce_scatter", out.dtype, out.bytes()),
          [&] { inner_.reduce_scatter(stream, in, out); });
  }
  void all_reduce_sum(Stream& stream, const Tensor& data) override {
    count(stream, kind("all_reduce", data.dtype, data.bytes()), [&] { inner_.all_reduce_sum(stream, data); });
  }
  void all_reduce_max(Stream& stream, const Tensor& data) override {
    count(stream, kind("all_reduce", data.dtype, data.bytes()), [&] { inner_.all_reduce_max(stream, data); });
  }
  void all_to_all_v(Stream& stream, const Tensor& in, std::span<const int64_t> send_rows, const Tensor& out,
                    std::span<const int64_t> recv_rows) override {
    count(stream, kind("all_to_all", in.dtype, in.cols * dtype_bytes(in.dtype)),
          [&] { inner_.all_to_all_v(stream, in, send_rows, out, recv_rows); });
  }

  [[nodiscard]] std::vector<int64_t> host_all_gather(std::span<const int64_t> values) override {
    return inner_.host_all_gather(values);
  }
  [[nodiscard]] std::vector<std::string> host_all_gather(const std::string& value) override {
    return inner_.host_all_gather(value);
  }
  [[nodiscard]] std::vector<int32_t> host_all_to_all_v(std::span<const int32_t> values,
                                                       std::span<const int64_t> send_counts,
                                                       std::span<const int64_t> recv_counts) override {
    return inner_.host_all_to_all_v(values, send_counts, recv_counts);
  }
  void barrier() override { inner_.barrier(); }
  [[nodiscard]] double wait_limit() const override { return inner_.wait_limit(); }
  [[nodiscard]] std::unique_ptr<Communicator> split(int colour, const std::string& name) override {
    return std::make_unique<MeteredCommunicator>(inner_.split(colour, name), meter_);
  }

 private:
  [[nodiscard]] CollectiveKind kind(const char* operation, DType dtype, int64_t bytes) const {
    return {name(), operation, size(), dtype, bytes};
  }

  template <class Call>
  void count(Stream& stream, const CollectiveKind& kind, Call call) {
    if (kind.ranks == 1) return call();
    using Clock = std::chrono::steady_clock;
    Stream& comm_stream = stream.comm_stream();
    const bool on_device = meter_.timing_ && stream.on_cuda();
    const int64_t before = inner_.bytes_sent();
    if (on_device) {
      comm_stream.wait_stream(stream);
      cuda::record_timing_event(comm_stream.cuda_stream());
    }
    const auto start = Clock::now();
    call();
    CollectiveCount& all = meter_.counts_[kind];
    if (on_device) {
      cuda::record_timing_event(comm_stream.cuda_stream());
      meter_.on_device_.push_back(kind);
    } else if (meter_.timing_) {
      all.seconds += std::chrono::duration<double>(Clock::now() - start).count();
    }
    all.timed_calls += meter_.timing_ ? 1 : 0;
    ++all.calls;
    all.bytes_sent += inner_.bytes_sent() - before;
  }

  std::unique_ptr<Communicator> own_;  // of a split
  Communicator& inner_;
  CollectiveMeter& meter_;
};

void CollectiveMeter::stop_timing(Stream& stream) {
  timing_ = false;
  if (on_device_.empty()) return;
  const std::vector<double> seconds = cuda::timing_intervals(stream.comm_stream().cuda_stream());
  PESC_CHECK(seconds.size() + 1 == 2 * on_device_.size(), seconds.size(), " intervals of ", on_device_.size(),
             " collectives");
  for (size_t i = 0; i < on_device_.size(); ++i) counts_[on_device_[i]].seconds += seconds[2 * i];
  on_device_.clear();
}

std::unique_ptr<Communicator> metered_communicator(Communicator& inner, CollectiveMeter& meter) {
  return std::make_unique<MeteredCommunicator>(inner, meter);
}

}  // namespace pesc
