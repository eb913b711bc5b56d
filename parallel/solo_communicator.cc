#include "parallel/solo_communicator.h"

#include <utility>

#include "ops/reduce.h"

namespace pesc {
namespace {

class SoloCommunicator final : public Communicator {
 public:
  explicit SoloCommunicator(std::unique_ptr<Communicator> host) : host_(std::move(host)) {
    PESC_CHECK(host_->size() == 1, "'", host_->name(), "' has ", host_->size(), " ranks");
  }

  [[nodiscard]] int rank() const override { return 0; }
  [[nodiscard]] int size() const override { return 1; }
  [[nodiscard]] const std::string& name() const override { return host_->name(); }
  [[nodiscard]] int64_t bytes_sent() const override { return 0; }

  void all_gather(Stream& stream, const Tensor& in, const Tensor& out) override { keep(stream, in, out); }
  void reduce_scatter(Stream& stream, const Tensor& in, const Tensor& out) override { keep(stream, in, out); }
  void all_reduce_sum(Stream&, const Tensor&) override {}
  void all_reduce_max(Stream&, const Tensor&) override {}
  void all_to_all_v(Stream& stream, const Tensor& in, std::span<const int64_t> send_rows, const Tensor& out,
                    std::span<const int64_t> recv_rows) override {
    PESC_CHECK(
        send_rows.size() == 1 && recv_rows.size() == 1 && send_rows[0] == in.rows && recv_rows[0] == out.rows,
        "all_to_all_v on '", name(), "'");
    keep(stream, in, out);
  }

  [[nodiscard]] std::vector<int64_t> host_all_gather(std::span<const int64_t> values) override {
    return host_->host_all_gather(values);
  }
  [[nodiscard]] std::vector<std::string> host_all_gather(const std::string& value) override {
    return host_->host_all_gather(value);
  }
  [[nodiscard]] std::vector<int32_t> host_all_to_all_v(std::span<const int32_t> values,
                                                       std::span<const int64_t> send_counts,
                                                       std::span<const int64_t> recv_counts) override {
    return host_->host_all_to_all_v(values, send_counts, recv_counts);
  }
  void barrier() override {}
  [[nodiscard]] double wait_limit() const override { return host_->wait_limit(); }
  [[nodiscard]] std::unique_ptr<Communicator> split(int colour, const std::string& name) override {
    return solo_communicator(host_->split(colour, name));
  }

 private:
  void keep(Stream& stream, const Tensor& in, const Tensor& out) const {
    PESC_CHECK(in.contiguous() && out.contiguous() && in.dtype == out.dtype && in.size() == out.size(), "'",
               name(), "': ", in.size(), " into ", out.size(), " elements");
    if (in.size() > 0 && in.data != out.data)
      copy(stream, in.reshaped(1, in.size()), out.reshaped(1, out.size()));
  }

  std::unique_ptr<Communicator> host_;
};

}  // namespace

std::unique_ptr<Communicator> solo_communicator(std::unique_ptr<Communicator> host) {
  return std::make_unique<SoloCommunicator>(std::move(host));
}

}  // namespace pesc
