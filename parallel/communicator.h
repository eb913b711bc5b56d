// Collectives over a group of ranks. Implementations: mpi (host memory), nccl (device memory).
//
// Every call is enqueued by the one host thread that uses the communicator, in the same order on all ranks,
// on stream.communication(), after what `stream` holds, and what `stream` is given next comes after it.
// Called with the communication stream itself it runs beside the other's work, and the caller orders the two.
// On the CPU it is complete when it returns. Buffers are contiguous. Sums are taken in rank order in the
// dtype of the tensor, so that results are the same on every rank and from run to run. A group of one rank
// sends nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ops/core/device.h"
#include "ops/core/tensor.h"

namespace pesc {

class Communicator {
 public:
  virtual ~Communicator() = default;

  [[nodiscard]] virtual int rank() const = 0;
  [[nodiscard]] virtual int size() const = 0;
  [[nodiscard]] virtual const std::string& name()
      const = 0;  // "world", "tp", ...: named in errors and metrics
  // Payload bytes that this rank has sent to other ranks through this communicator (device collectives only).
  [[nodiscard]] virtual int64_t bytes_sent() const = 0;

  // out [size * n]: the pieces `in` [n] of all ranks, in rank order. `in` may be out's own piece.
  virtual void all_gather(Stream& stream, const Tensor& in, const Tensor& out) = 0;
  // out [n]: the sum over ranks of piece rank() of their `in` [size * n]. `out` must not overlap `in`.
  virtual void reduce_scatter(Stream& stream, const Tensor& in, const Tensor& out) = 0;
  // data is replaced by the sum over ranks, F32 or F64; bitwise the same on all ranks.
  virtual void all_reduce_sum(Stream& stream, const Tensor& data) = 0;
  // data is replaced by the maximum over ranks, F32.
  virtual void all_reduce_max(Stream& stream, const Tensor& data) = 0;
  // Rows go from rank to rank: send_rows[r] rows of `in` to rank r, in rank order; recv_rows[r] rows arrive
  // from rank r, in rank order, in `out`. Counts are host memory. Rows have in.cols columns.
  virtual void all_to_all_v(Stream& stream, const Tensor& in, std::span<const int64_t> send_rows,
                            const Tensor& out, std::span<const int64_t> recv_rows) = 0;

  // Host-memory collectives for control data; they wait.
  [[nodiscard]] virtual std::vector<int64_t> host_all_gather(std::span<const int64_t> values) = 0;
  [[nodiscard]] virtual std::vector<std::string> host_all_gather(const std::string& value) = 0;
  // send_counts[r] of `values` to rank r, in rank order; recv_counts[r] arrive from rank r, in rank order.
  [[nodiscard]] virtual std::vector<int32_t> host_all_to_all_v(std::span<const int32_t> values,
                                                               std::span<const int64_t> send_counts,
                                                               std::span<const int64_t> recv_counts) = 0;
  virtual void barrier() = 0;
  // How long, in seconds, an operation may wait for other ranks before it throws HangError.
  [[nodiscard]] virtual double wait_limit() const = 0;

  // The ranks of one colour form a new group, in rank order. Collective. `colour` must be >= 0.
  [[nodiscard]] virtual std::unique_ptr<Communicator> split(int colour, const std::string& name) = 0;
};

}  // namespace pesc
