// Our own collectives over point-to-point MPI messages. MPI's reductions do not guarantee an order, and its
// blocking calls wait without limit (and without yielding: 8 ms per call when ranks outnumber cores).
//
// reduce_scatter and all_reduce work in chunks, so that a piece is still in the cache when it is added. `at`
// and `n` below count elements. Every operation has its own tag, so that ranks that disagree about the next
// operation end with HangError instead of mixing data.
#include <mpi.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "parallel/mpi_requests.h"
#include "parallel/mpi_session.h"
#include "parallel/rank_order.h"

namespace pesc {
namespace {

constexpr int64_t kChunkBytes = 256 << 10;  // of one piece of a reduction
constexpr int64_t kDirectBytes = 8 << 10;   // all_reduce up to this size: every rank sends all to all

enum Tag : int {
  kGatherTag = 1,
  kReduceScatterTag,
  kReduceTag,
  kReduceGatherTag,
  kAllToAllTag,
  kHostTag,
  kHostSizeTag
};

class MpiCommunicator final : public Communicator {
 public:
  // Owns `comm`.
  MpiCommunicator(MPI_Comm comm, std::string name, std::shared_ptr<MpiWaitPolicy> policy)
      : comm_(comm),
        rank_(rank_of(comm)),
        size_(size_of(comm)),
        name_(std::move(name)),
        policy_(std::move(policy)),
        requests_(comm, rank_, size_, name_) {
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
  }
  ~MpiCommunicator() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized == 0 && !hung_) MPI_Comm_free(&comm_);
  }
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;

  [[nodiscard]] int rank() const override { return rank_; }
  [[nodiscard]] int size() const override { return size_; }
  [[nodiscard]] const std::string& name() const override { return name_; }
  [[nodiscard]] int64_t bytes_sent() const override { return bytes_sent_; }

  void all_gather(Stream& stream, const Tensor& in, const Tensor& out) override {
    check(stream, {&in, &out}, "all_gather");
    PESC_CHECK(in.dtype == out.dtype && out.size() == in.size() * size_, "all_gather of ", in.size(),
               " into ", out.size(), " elements on '", name_, "'");
    const int64_t bytes = in.bytes();
    gather_bytes(in.data, bytes, out.data, kGatherTag, "all_gather");
    bytes_sent_ += bytes * (size_ - 1);
  }

  void reduce_scatter(Stream& stream, const Tensor& in, const Tensor& out) override {
    check(stream, {&in, &out}, "reduce_scatter");
    PESC_CHECK(in.dtype == out.dtype && in.size() == out.size() * size_, "reduce_scatter of ", in.size(),
               " into ", out.size(), " elements on '", name_, "'");
    if (in.dtype == DType::kF64) {
      reduce_pieces<double>(in.f64(), out.size(), out.f64());
    } else {
      reduce_pieces<float>(in.f32(), out.size(), out.f32());
    }
  }

  void all_reduce_sum(Stream& stream, const Tensor& data) override {
    check(stream, {&data}, "all_reduce_sum");
    if (data.dtype == DType::kF64) {
      all_reduce<Sum>(data.f64(), data.size(), "all_reduce_sum");
    } else {
      all_reduce<Sum>(data.f32(), data.size(), "all_reduce_sum");
    }
  }

  void all_reduce_max(Stream& stream, const Tensor& data) override {
    check(stream, {&data}, "all_reduce_max");
    all_reduce<Max>(data.f32(), data.size(), "all_reduce_max");
  }

  void all_to_all_v(Stream& stream, const Tensor& in, std::span<const int64_t> send_rows, const Tensor& out,
                    std::span<const int64_t> recv_rows) override {
    check(stream, {&in, &out}, "all_to_all_v");
    const auto sum = [](std::span<const int64_t> rows) {
      return std::accumulate(rows.begin(), rows.end(), int64_t{0});
    };
    PESC_CHECK(in.cols == out.cols && in.dtype == out.dtype && in.rows == sum(send_rows) &&
                   out.rows == sum(recv_rows),
               "all_to_all_v on '", name_, "': in [", in.rows, ", ", in.cols, "] for ", sum(send_rows),
               " rows, out [", out.rows, ", ", out.cols, "] for ", sum(recv_rows));
    bytes_sent_ += exchange(in.data, send_rows, out.data, recv_rows, in.cols * dtype_bytes(in.dtype),
                            kAllToAllTag, "all_to_all_v");
  }

  [[nodiscard]] std::vector<int64_t> host_all_gather(std::span<const int64_t> values) override {
    std::vector<int64_t> all(values.size() * static_cast<size_t>(size_));
    gather_bytes(values.data(), static_cast<int64_t>(values.size_bytes()), all.data(), kHostTag,
                 "host_all_gather");
    return all;
  }

  [[nodiscard]] std::vector<std::string> host_all_gather(const std::string& value) override {
    const auto own = static_cast<int64_t>(value.size());
    std::vector<int64_t> sizes(static_cast<size_t>(size_));
    gather_bytes(&own, sizeof(own), sizes.data(), kHostSizeTag, "host_all_gather");
    std::vector<std::string> all(static_cast<size_t>(size_));
    for (int r = 0; r < size_; ++r) {
      std::string& one = all[static_cast<size_t>(r)];
      one.resize(static_cast<size_t>(sizes[static_cast<size_t>(r)]));
      if (r != rank_) requests_.receive(one.data(), static_cast<int64_t>(one.size()), r, kHostTag);
    }
    for (int r = 0; r < size_; ++r) {
      if (r != rank_) requests_.send(value.data(), own, r, kHostTag);
    }
    all[static_cast<size_t>(rank_)] = value;
    wait("host_all_gather");
    return all;
  }

  [[nodiscard]] std::vector<int32_t> host_all_to_all_v(std::span<const int32_t> values,
                                                       std::span<const int64_t> send_counts,
                                                       std::span<const int64_t> recv_counts) override {
    const int64_t total = std::accumulate(send_counts.begin(), send_counts.end(), int64_t{0});
    PESC_CHECK(total == static_cast<int64_t>(values.size()), "counts of ", total, " for ", values.size());
    std::vector<int32_t> received(
        static_cast<size_t>(std::accumulate(recv_counts.begin(), recv_counts.end(), int64_t{0})));
    exchange(values.data(), send_counts, received.data(), recv_counts, sizeof(int32_t), kHostTag,
             "host_all_to_all_v");
    return received;
  }

  void barrier() override {
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Ibarrier(comm_, &request), rank_, str_cat("barrier on communicator '", name_, "'"));
    requests_.add(request);
    wait("barrier");
  }

  [[nodiscard]] double wait_limit() const override { return policy_->limit.count(); }
  [[nodiscard]] std::unique_ptr<Communicator> split(int colour, const std::string& name) override {
    PESC_CHECK(colour >= 0, "colour ", colour);
    barrier();  // MPI_Comm_split waits without limit; after the barrier all ranks are about to call it
    MPI_Comm part = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split(comm_, colour, rank_, &part), rank_,
              str_cat("split of communicator '", name_, "' into '", name, "'"));
    return std::make_unique<MpiCommunicator>(part, name, policy_);
  }

 private:
  static int rank_of(MPI_Comm comm) {
    int rank = 0;
    MPI_Comm_rank(comm, &rank);
    return rank;
  }
  static int size_of(MPI_Comm comm) {
    int size = 0;
    MPI_Comm_size(comm, &size);
    return size;
  }

  void check(const Stream& stream, std::initializer_list<const Tensor*> tensors, const char* what) const {
    PESC_CHECK(stream.device().kind == DeviceKind::kCpu, what, " over mpi moves host memory only");
    for (const Tensor* t : tensors) {
      PESC_CHECK(t->contiguous(), what, " on '", name_, "' needs contiguous tensors");
      PESC_CHECK(t->present() || t->size() == 0, what, " on '", name_, "' of an absent tensor");
    }
  }

  void wait(const char* operation) {
    hung_ = true;  // reset when the next line returns
    requests_.wait(*policy_, operation);
    hung_ = false;
  }

  // The other ranks, starting after this one, so that not all send to rank 0 first.
  template <class Fn>
  void for_peers(Fn&& fn) {
    for (int step = 1; step < size_; ++step) fn((rank_ + step) % size_);
  }

  static const std::byte* bytes_at(const void* data, int64_t at) {
    return static_cast<const std::byte*>(data) + at;
  }
  static std::byte* bytes_at(void* data, int64_t at) { return static_cast<std::byte*>(data) + at; }

  static void copy_bytes(const void* from, int64_t bytes, void* to) {
    if (bytes > 0 && from != to) std::memcpy(to, from, static_cast<size_t>(bytes));
  }

  void gather_bytes(const void* in, int64_t bytes, void* out, int tag, const char* operation) {
    for_peers([&](int r) { requests_.receive(bytes_at(out, r * bytes), bytes, r, tag); });
    for_peers([&](int r) { requests_.send(in, bytes, r, tag); });
    copy_bytes(in, bytes, bytes_at(out, rank_ * bytes));
    wait(operation);
  }

  // counts in units of `unit` bytes; returns the bytes sent to others.
  int64_t exchange(const void* in, std::span<const int64_t> send_counts, void* out,
                   std::span<const int64_t> recv_counts, int64_t unit, int tag, const char* operation) {
    PESC_CHECK(static_cast<int>(send_counts.size()) == size_ && static_cast<int>(recv_counts.size()) == size_,
               operation, " on '", name_, "' needs ", size_, " counts");
    const auto own = static_cast<size_t>(rank_);
    PESC_CHECK(send_counts[own] == recv_counts[own], operation, " on '", name_, "': rank ", rank_,
               " sends itself ", send_counts[own], " and expects ", recv_counts[own]);
    offsets_.resize(2 * static_cast<size_t>(size_));
    const std::span<int64_t> from(offsets_.data(), static_cast<size_t>(size_));
    const std::span<int64_t> to(offsets_.data() + size_, static_cast<size_t>(size_));
    std::exclusive_scan(send_counts.begin(), send_counts.end(), from.begin(), int64_t{0});
    std::exclusive_scan(recv_counts.begin(), recv_counts.end(), to.begin(), int64_t{0});
    int64_t sent = 0;
    for_peers([&](int peer) {
      const auto r = static_cast<size_t>(peer);
      requests_.receive(bytes_at(out, to[r] * unit), recv_counts[r] * unit, peer, tag);
    });
    for_peers([&](int peer) {
      const auto r = static_cast<size_t>(peer);
      requests_.send(bytes_at(in, from[r] * unit), send_counts[r] * unit, peer, tag);
      sent += send_counts[r] * unit;
    });
    copy_bytes(bytes_at(in, from[own] * unit), send_counts[own] * unit, bytes_at(out, to[own] * unit));
    wait(operation);
    return sent;
  }

  // out [n]: piece rank_ of in [size * n], over all ranks.
  template <class T>
  void reduce_pieces(const T* in, int64_t n, T* out) {
    constexpr int64_t kChunk = kChunkBytes / static_cast<int64_t>(sizeof(T));
    for (int64_t at = 0; at < n; at += kChunk) {
      const int64_t len = std::min(kChunk, n - at);
      reduce_one_chunk<Sum>(
          [&](int r) {
            return Piece<T>{in + r * n + at, len};
          },
          out + at, kReduceScatterTag, "reduce_scatter");
    }
  }

  template <class T>
  struct Piece {
    const T* data;
    int64_t n;
  };

  // Writes `out` with the reduction of this rank's piece; piece_of(r) is the local contribution to rank r's
  // piece. `out` may alias piece_of(rank()).
  template <class Op, class T, class PieceOf>
  void reduce_one_chunk(PieceOf&& piece_of, T* out, int tag, const char* operation) {
    const Piece<T> own = piece_of(rank_);
    const int64_t own_bytes = own.n * static_cast<int64_t>(sizeof(T));
    const int64_t stride = (own_bytes + 63) / 64 * 64;
    staging_.resize(std::max(staging_.size(), static_cast<size_t>(stride * size_)));
    std::vector<const T*> pieces(static_cast<size_t>(size_), own.data);
    for_peers([&](int r) {
      std::byte* at = staging_.data() + r * stride;
      pieces[static_cast<size_t>(r)] = reinterpret_cast<const T*>(at);
      requests_.receive(at, own_bytes, r, tag);
    });
    for_peers([&](int r) {
      const Piece<T> theirs = piece_of(r);
      const int64_t bytes = theirs.n * static_cast<int64_t>(sizeof(T));
      requests_.send(theirs.data, bytes, r, tag);
      bytes_sent_ += bytes;
    });
    wait(operation);
    reduce_in_rank_order<Op, T>(pieces, own.n, out);
  }

  template <class Op, class T>
  void all_reduce(T* data, int64_t n, const char* operation) {
    if (size_ == 1 || n == 0) return;
    const auto width = static_cast<int64_t>(sizeof(T));
    if (n * width <= kDirectBytes) {
      reduce_one_chunk<Op>([&](int) { return Piece<T>{data, n}; }, data, kReduceTag, operation);
      return;
    }
    const int64_t block = kChunkBytes / width * size_;
    for (int64_t at = 0; at < n; at += block)
      all_reduce_block<Op>(data + at, std::min(block, n - at), operation);
  }

  // Each rank reduces its piece of the block; then the pieces are all-gathered.
  template <class Op, class T>
  void all_reduce_block(T* data, int64_t n, const char* operation) {
    const auto piece_of = [&](int r) {
      const int64_t piece = (n + size_ - 1) / size_;
      const int64_t begin = std::min(n, r * piece);
      return Piece<T>{data + begin, std::min(n, begin + piece) - begin};
    };
    T* own = data + (piece_of(rank_).data - data);
    reduce_one_chunk<Op>(piece_of, own, kReduceTag, operation);
    const auto width = static_cast<int64_t>(sizeof(T));
    for_peers([&](int r) {
      const Piece<T> theirs = piece_of(r);
      requests_.receive(data + (theirs.data - data), theirs.n * width, r, kReduceGatherTag);
    });
    const int64_t bytes = piece_of(rank_).n * width;
    for_peers([&](int r) {
      requests_.send(own, bytes, r, kReduceGatherTag);
      bytes_sent_ += bytes;
    });
    wait(operation);
  }

  MPI_Comm comm_;
  int rank_, size_;
  std::string name_;
  std::shared_ptr<MpiWaitPolicy> policy_;
  MpiRequests requests_;
  int64_t bytes_sent_ = 0;
  bool hung_ = false;
  std::vector<std::byte> staging_;  // grown on demand to at most size * kChunkBytes
  std::vector<int64_t> offsets_;
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(MPI_Comm comm, const std::string& name,
                                                    std::shared_ptr<MpiWaitPolicy> policy) {
  return std::make_unique<MpiCommunicator>(comm, name, std::move(policy));
}

}  // namespace pesc
