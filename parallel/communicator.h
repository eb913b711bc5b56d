// Collectives over a group of ranks. Implementations: mpi (host memory), nccl (device memory), solo (one
// rank).
//
// A device collective runs on stream.comm_stream(): after the work enqueued on `stream` so far, and before
// the work enqueued on `stream` next. Called with the comm stream itself, it runs concurrently with
// the other stream, and the caller orders the two. On the CPU it is complete when it returns.
//
// REQUIRES: one host thread uses a communicator; all ranks of the group call the same collectives in the same
// order; buffers are contiguous. Sums are taken in rank order (NCCL: in ring order) in the dtype of the
// tensor, so that results are the same on every rank and from run to run. A group of one rank sends nothing.
// A wait that exceeds wait_limit() throws HangError; a lost peer throws IoError.
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
  // Payload bytes that this rank has sent to other ranks through this communicator, by device collectives.
  [[nodiscard]] virtual int64_t bytes_sent() const = 0;

  // out [size * n] is written with the `in` [n] of all ranks, in rank order. `in` may alias this rank's piece
  // of `out`.
  virtual void all_gather(Stream& stream, const Tensor& in, const Tensor& out) = 0;
  // out [n] is written with the sum over ranks of piece rank() of their `in` [size * n]. REQUIRES: `out` does
  // not overlap `in`.
  virtual void reduce_scatter(Stream& stream, const Tensor& in, const Tensor& out) = 0;
  // `data`, F32 or F64, is overwritten by its sum over ranks, bitwise the same on all ranks.
  virtual void all_reduce_sum(Stream& stream, const Tensor& data) = 0;
  // `data`, F32, is overwritten by its maximum over ranks.
  virtual void all_reduce_max(Stream& stream, const Tensor& data) = 0;
  // Sends send_rows[r] rows of `in` to rank r, and receives recv_rows[r] rows from rank r into `out`; both
  // tensors hold their rows in rank order, with in.cols columns. The counts are in host memory.
  virtual void all_to_all_v(Stream& stream, const Tensor& in, std::span<const int64_t> send_rows,
                            const Tensor& out, std::span<const int64_t> recv_rows) = 0;

  // Collectives over host memory, for control data. They return when they are complete.
  [[nodiscard]] virtual std::vector<int64_t> host_all_gather(std::span<const int64_t> values) = 0;
  [[nodiscard]] virtual std::vector<std::string> host_all_gather(const std::string& value) = 0;
  // Sends send_counts[r] of `values`, which are in rank order, to rank r. Returns the recv_counts[r] values
  // from each rank r, in rank order.
  [[nodiscard]] virtual std::vector<int32_t> host_all_to_all_v(std::span<const int32_t> values,
                                                               std::span<const int64_t> send_counts,
                                                               std::span<const int64_t> recv_counts) = 0;
  virtual void barrier() = 0;
  // The seconds that an operation may wait for other ranks before it throws HangError.
  [[nodiscard]] virtual double wait_limit() const = 0;

  // The ranks of one colour form a new group, in rank order. Collective. REQUIRES: colour >= 0.
  [[nodiscard]] virtual std::unique_ptr<Communicator> split(int colour, const std::string& name) = 0;
};

}  // namespace pesc
