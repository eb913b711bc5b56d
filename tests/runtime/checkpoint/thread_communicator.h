// Ranks as threads of one process, so that several of them can share one in-memory file system. Host
// collectives only.
#pragma once

#include <barrier>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "parallel/communicator.h"

namespace pesc::testing {

class ThreadCommunicator : public Communicator {
 public:
  struct Group {
    explicit Group(int n) : meeting(n), slots(static_cast<size_t>(n)) {}
    std::barrier<> meeting;
    std::vector<std::string> slots;
  };
  ThreadCommunicator(Group& group, int rank) : group_(group), rank_(rank) {}

  [[nodiscard]] int rank() const override { return rank_; }
  [[nodiscard]] int size() const override { return static_cast<int>(group_.slots.size()); }
  [[nodiscard]] const std::string& name() const override { return name_; }
  [[nodiscard]] int64_t bytes_sent() const override { return 0; }
  void all_gather(Stream&, const Tensor&, const Tensor&) override { refuse(); }
  void reduce_scatter(Stream&, const Tensor&, const Tensor&) override { refuse(); }
  void all_reduce_sum(Stream&, const Tensor&) override { refuse(); }
  void all_reduce_max(Stream&, const Tensor&) override { refuse(); }
  void all_to_all_v(Stream&, const Tensor&, std::span<const int64_t>, const Tensor&,
                    std::span<const int64_t>) override {
    refuse();
  }
  [[nodiscard]] std::vector<int32_t> host_all_to_all_v(std::span<const int32_t>, std::span<const int64_t>,
                                                       std::span<const int64_t>) override {
    refuse();
  }
  [[nodiscard]] std::vector<int64_t> host_all_gather(std::span<const int64_t> values) override {
    std::vector<int64_t> all;
    for (const std::string& one :
         host_all_gather(std::string(reinterpret_cast<const char*>(values.data()), values.size_bytes()))) {
      const size_t before = all.size();
      all.resize(before + values.size());
      std::memcpy(all.data() + before, one.data(), one.size());
    }
    return all;
  }
  [[nodiscard]] std::vector<std::string> host_all_gather(const std::string& value) override {
    group_.slots[static_cast<size_t>(rank_)] = value;
    group_.meeting.arrive_and_wait();
    std::vector<std::string> all = group_.slots;
    group_.meeting.arrive_and_wait();
    return all;
  }
  void barrier() override { group_.meeting.arrive_and_wait(); }
  [[nodiscard]] double wait_limit() const override { return 600; }
  [[nodiscard]] std::unique_ptr<Communicator> split(int, const std::string&) override { refuse(); }

 private:
  [[noreturn]] static void refuse() {
    throw InternalError("ThreadCommunicator has host_all_gather and barrier only");
  }
  Group& group_;
  int rank_;
  std::string name_ = "world";
};

// Runs `body` on n ranks. What a rank throws comes back as its message; empty: it returned.
inline std::vector<std::string> run_ranks(int n, const std::function<void(Communicator&)>& body) {
  ThreadCommunicator::Group group(n);
  std::vector<std::string> errors(static_cast<size_t>(n));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < n; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadCommunicator world(group, rank);
      try {
        body(world);
      } catch (const std::exception& error) {
        errors[static_cast<size_t>(rank)] = error.what();
      }
      group.meeting.arrive_and_drop();  // nobody waits for a rank that is gone
    });
  }
  for (std::thread& thread : threads) thread.join();
  return errors;
}

}  // namespace pesc::testing
