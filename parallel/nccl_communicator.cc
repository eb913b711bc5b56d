// The nccl communicator: device collectives on the caller's comm stream, host collectives over MPI.
// All operations of a rank, of whatever communicator, run on that one stream and so never concurrently:
// concurrent collectives could deadlock when ranks start them in different orders. NCCL communicators are
// nonblocking, so that every wait has a limit and names its operation (NcclWatchdog). Our communicators with
// the same ranks share one NCCL communicator, since NCCL allocates buffers for each.
//
// Results are the same on all ranks and from run to run: the algorithm (ring), the protocol and the number of
// channels are pinned, NVLS is off, and each sum is taken in the order of the ring, which depends on the
// machine only.
#include <nccl.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <numeric>
#include <utility>

#include "ops/core/stream_cuda.h"
#include "parallel/gpu_world.h"
#include "parallel/nccl_watchdog.h"
#include "parallel/solo_communicator.h"

namespace pesc {
namespace {

// Sets the environment variables that NCCL reads at its first call, except those that the user has set.
void pin_settings(int rank, GpuUse use) {
  setenv("NCCL_ALGO", "Ring", 0);
  setenv("NCCL_PROTO", "Simple", 0);
  setenv("NCCL_NVLS_ENABLE", "0", 0);
  if (use == GpuUse::kExclusive) {
    const std::string channels = std::to_string(kNcclChannels);
    if (getenv("NCCL_MIN_CTAS") == nullptr && getenv("NCCL_MAX_CTAS") == nullptr) {
      setenv("NCCL_MIN_CTAS", channels.c_str(), 1);
      setenv("NCCL_MAX_CTAS", channels.c_str(), 1);
    }
    return;
  }
  std::string host(256, '\0');
  (void)gethostname(host.data(), host.size() - 1);
  const std::string id = str_cat(host.c_str(), "-pesc-", rank);
  setenv("NCCL_HOSTID", id.c_str(), 1);
  setenv("NCCL_IB_DISABLE", "1", 0);
}

// NCCL communicators, by the world ranks of their group, in the group's order.
using Connections = std::map<std::vector<int64_t>, std::weak_ptr<NcclConnection>>;

struct Setup {
  int gpu;
  GpuUse use;
  int64_t world_rank;
  std::shared_ptr<NcclWatchdog> watchdog;
  std::shared_ptr<Connections> connections;
};

class NcclCommunicator final : public Communicator {
 public:
  // A communicator over the ranks of `host`. NCCL is initialised at the first operation, or by connect().
  NcclCommunicator(std::unique_ptr<Communicator> host, Setup setup)
      : host_(std::move(host)), setup_(std::move(setup)) {
    peer_.name = host_->name();
    peer_.rank = host_->rank();
    peer_.size = host_->size();
    std::weak_ptr<NcclConnection>& known =
        (*setup_.connections)[host_->host_all_gather(std::span(&setup_.world_rank, 1))];
    peer_.connection = known.lock();
    if (peer_.connection == nullptr) known = peer_.connection = std::make_shared<NcclConnection>();
  }

  // Initialises the NCCL communicator of these ranks. Collective, unless another communicator of the same
  // ranks has done it.
  void connect() {
    NcclWatchdog& watchdog = *setup_.watchdog;
    if (peer_.connection->comm != nullptr) {
      watchdog.add(&peer_);
      connected_ = true;
      return;
    }
    std::string mine;
    ncclUniqueId id{};
    PESC_CUDA(cudaSetDevice(setup_.gpu));
    if (rank() == 0) {
      watchdog.settle(peer_, ncclGetUniqueId(&id), "NCCL start-up");
      mine.assign(id.internal, sizeof(id.internal));
    }
    const std::string first = host_->host_all_gather(mine).front();
    PESC_CHECK(first.size() == sizeof(id.internal), "an id of ", first.size(), " bytes");
    first.copy(id.internal, sizeof(id.internal));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    if (setup_.use == GpuUse::kShared) {
      // The kernels of all ranks must fit on the shared GPU at the same time.
      config.minCTAs = 1;
      config.maxCTAs = kSharedNcclChannels;
    }
    const ncclResult_t code = ncclCommInitRankConfig(&peer_.connection->comm, size(), id, rank(), &config);
    watchdog.add(&peer_);
    connected_ = true;
    watchdog.settle(peer_, code, "NCCL start-up");
  }

  ~NcclCommunicator() override {
    NcclWatchdog& watchdog = *setup_.watchdog;
    watchdog.remove(&peer_);
    ncclComm_t comm = peer_.connection->comm;
    if (watchdog.aborted() || comm == nullptr || peer_.connection.use_count() > 1) return;
    // While an exception propagates, other ranks may not reach ncclCommFinalize, which is collective.
    if (std::uncaught_exceptions() > 0) {
      (void)ncclCommAbort(comm);
      return;
    }
    try {
      watchdog.settle(peer_, ncclCommFinalize(comm), "NCCL shut-down");
      (void)ncclCommDestroy(comm);
    } catch (const Error&) {
      (void)ncclCommAbort(comm);
    }
  }
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  [[nodiscard]] int rank() const override { return peer_.rank; }
  [[nodiscard]] int size() const override { return peer_.size; }
  [[nodiscard]] const std::string& name() const override { return peer_.name; }
  [[nodiscard]] int64_t bytes_sent() const override { return bytes_sent_; }

  void all_gather(Stream& stream, const Tensor& in, const Tensor& out) override {
    check(stream, {&in, &out}, "all_gather");
    PESC_CHECK(in.dtype == out.dtype && out.size() == in.size() * size(), "all_gather of ", in.size(),
               " into ", out.size(), " elements on '", name(), "'");
    const int64_t bytes = in.bytes();
    if (bytes == 0) return;
    enqueue(stream, "all_gather", bytes, [&](cudaStream_t s) {
      return ncclAllGather(in.data, out.data, static_cast<size_t>(bytes), ncclUint8, comm(), s);
    });
    bytes_sent_ += bytes * (size() - 1);
  }

  void reduce_scatter(Stream& stream, const Tensor& in, const Tensor& out) override {
    check(stream, {&in, &out}, "reduce_scatter");
    PESC_CHECK(in.dtype == out.dtype && in.size() == out.size() * size(), "reduce_scatter of ", in.size(),
               " into ", out.size(), " elements on '", name(), "'");
    if (out.size() == 0) return;
    enqueue(stream, "reduce_scatter", in.bytes(), [&](cudaStream_t s) {
      return ncclReduceScatter(in.data, out.data, static_cast<size_t>(out.size()), type_of(in.dtype), ncclSum,
                               comm(), s);
    });
    bytes_sent_ += out.bytes() * (size() - 1);
  }

  void all_reduce_sum(Stream& stream, const Tensor& data) override {
    all_reduce(stream, data, ncclSum, "all_reduce_sum");
  }
  void all_reduce_max(Stream& stream, const Tensor& data) override {
    all_reduce(stream, data, ncclMax, "all_reduce_max");
  }

  void all_to_all_v(Stream& stream, const Tensor& in, std::span<const int64_t> send_rows, const Tensor& out,
                    std::span<const int64_t> recv_rows) override {
    check(stream, {&in, &out}, "all_to_all_v");
    const auto ranks = static_cast<size_t>(size());
    const auto own = static_cast<size_t>(rank());
    const auto total = [](std::span<const int64_t> rows) {
      return std::accumulate(rows.begin(), rows.end(), int64_t{0});
    };
    PESC_CHECK(send_rows.size() == ranks && recv_rows.size() == ranks && send_rows[own] == recv_rows[own] &&
                   in.cols == out.cols && in.dtype == out.dtype && in.rows == total(send_rows) &&
                   out.rows == total(recv_rows),
               "all_to_all_v on '", name(), "': in [", in.rows, ", ", in.cols, "] for ", total(send_rows),
               " rows, out [", out.rows, ", ", out.cols, "] for ", total(recv_rows));
    const int64_t width = in.cols * dtype_bytes(in.dtype);
    const auto* from = static_cast<const std::byte*>(in.data);
    auto* to = static_cast<std::byte*>(out.data);
    std::vector<int64_t> send_at(ranks), recv_at(ranks);
    for (size_t r = 1; r < ranks; ++r) {
      send_at[r] = send_at[r - 1] + send_rows[r - 1] * width;
      recv_at[r] = recv_at[r - 1] + recv_rows[r - 1] * width;
    }
    enqueue(stream, "all_to_all_v", in.bytes(), [&](cudaStream_t s) {
      // Between ncclGroupStart and ncclGroupEnd nothing throws.
      const int64_t kept = send_rows[own] * width;
      if (kept > 0)
        PESC_CUDA(cudaMemcpyAsync(to + recv_at[own], from + send_at[own], static_cast<size_t>(kept),
                                  cudaMemcpyDeviceToDevice, s));
      ncclResult_t code = ncclGroupStart();
      for (size_t r = 0; r < ranks; ++r) {
        if (r == own) continue;
        const auto send = static_cast<size_t>(send_rows[r] * width);
        const auto receive = static_cast<size_t>(recv_rows[r] * width);
        const auto peer = static_cast<int>(r);
        if (send > 0) code = worse(code, ncclSend(from + send_at[r], send, ncclUint8, peer, comm(), s));
        if (receive > 0) code = worse(code, ncclRecv(to + recv_at[r], receive, ncclUint8, peer, comm(), s));
      }
      return worse(code, ncclGroupEnd());
    });
    const int64_t sent = in.bytes() - send_rows[own] * width;
    bytes_sent_ += sent;
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
  void barrier() override { host_->barrier(); }
  [[nodiscard]] double wait_limit() const override { return host_->wait_limit(); }

  [[nodiscard]] std::unique_ptr<Communicator> split(int colour, const std::string& name) override {
    std::unique_ptr<Communicator> part = host_->split(colour, name);
    if (part->size() == 1) return solo_communicator(std::move(part));
    return std::make_unique<NcclCommunicator>(std::move(part), setup_);
  }

 private:
  static ncclDataType_t type_of(DType t) {
    switch (t) {
      case DType::kF32:
        return ncclFloat32;
      case DType::kF64:
        return ncclFloat64;
      case DType::kBF16:
        return ncclBfloat16;
      default:
        PESC_CHECK(false, "no reduction of ", dtype_name(t));
    }
    return ncclUint8;
  }

  // The first result that is neither success nor "in progress", else the later one.
  static ncclResult_t worse(ncclResult_t a, ncclResult_t b) {
    return a != ncclSuccess && a != ncclInProgress ? a : b;
  }

  void check(const Stream& stream, std::initializer_list<const Tensor*> tensors, const char* what) const {
    PESC_CHECK(stream.on_cuda(), what, " over nccl moves device memory only");
    for (const Tensor* t : tensors) {
      PESC_CHECK(t->contiguous(), what, " on '", name(), "' needs contiguous tensors");
      PESC_CHECK(t->present() || t->size() == 0, what, " on '", name(), "' of an absent tensor");
    }
  }

  void all_reduce(Stream& stream, const Tensor& data, ncclRedOp_t op, const char* operation) {
    check(stream, {&data}, operation);
    if (data.size() == 0) return;
    enqueue(stream, operation, data.bytes(), [&](cudaStream_t s) {
      return ncclAllReduce(data.data, data.data, static_cast<size_t>(data.size()), type_of(data.dtype), op,
                           comm(), s);
    });
    bytes_sent_ += 2 * data.bytes() * (size() - 1) / size();
  }

  // The operation is on the stream only once the nonblocking call is complete; only then may more be
  // enqueued.
  template <class Call>
  void enqueue(Stream& stream, const char* operation, int64_t bytes, Call call) {
    PESC_CHECK(!setup_.watchdog->aborted(), operation, " on '", name(), "' after NCCL was ended");
    if (!connected_) connect();
    Stream& comm_stream = stream.comm_stream();
    for (const Stream* s : {&stream, &comm_stream})
      if (s->cuda_stream().watcher != setup_.watchdog) cuda::watch(s->cuda_stream(), setup_.watchdog);
    comm_stream.wait_stream(stream);
    setup_.watchdog->settle(peer_, call(cuda::stream_of(comm_stream)), operation);
    setup_.watchdog->enqueued(comm_stream, peer_, operation, bytes);
    stream.wait_stream(comm_stream);
  }

  [[nodiscard]] ncclComm_t comm() const { return peer_.connection->comm; }

  std::unique_ptr<Communicator> host_;
  Setup setup_;
  NcclPeer peer_;
  bool connected_ = false;
  int64_t bytes_sent_ = 0;
};

}  // namespace

std::string nccl_version() {
  int version = 0;
  return ncclGetVersion(&version) == ncclSuccess ? nccl_version_text(version) : "NCCL of an unknown version";
}

std::unique_ptr<Communicator> nccl_world(std::unique_ptr<Communicator> host, int gpu, GpuUse use) {
  pin_settings(host->rank(), use);
  int version = 0;
  (void)ncclGetVersion(&version);
  check_same_nccl(*host, version);
  Communicator* limits = host.get();
  // The world communicator outlives its splits and the last use of the watchdog.
  const int rank = host->rank();
  auto watchdog = std::make_shared<NcclWatchdog>(rank, [limits] { return limits->wait_limit(); });
  auto world = std::make_unique<NcclCommunicator>(
      std::move(host), Setup{gpu, use, rank, std::move(watchdog), std::make_shared<Connections>()});
  world->connect();
  return world;
}

}  // namespace pesc
