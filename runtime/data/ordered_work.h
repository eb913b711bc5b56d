// Work on the parts of a stream in several threads, whose results are taken in the order of the parts.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

namespace pesc {

// `next` fills a new part, one after another (false: there are no more), `work` makes a result of one, `take`
// gets the results in the order of the parts. `next` and `work` run in `threads` threads, `next` in one of them
// at a time, and `take` in the calling one; with one thread everything runs in the calling one. At most 2 *
// threads + 2 parts and results are there at a time. What `next` or `work` throws is thrown when everything
// before it has been taken; it and what `take` throws end the work.
template <class Part, class Result>
class OrderedWork {
 public:
  using Next = std::function<bool(Part&)>;
  using Work = std::function<Result(Part&&)>;
  using Take = std::function<void(Result&&)>;

  static void run(int threads, const Next& next, const Work& work, const Take& take) {
    if (threads > 1) {
      OrderedWork all(threads, next, work);
      all.take_all(take);
      return;
    }
    for (Part part; next(part); part = Part()) take(work(std::move(part)));
  }

 private:
  struct Done {
    std::optional<Result> result;
    std::exception_ptr error;
  };

  OrderedWork(int threads, const Next& next, const Work& work)
      : next_(next), work_(work), most_(2 * int64_t{threads} + 2) {
    try {
      for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { run_thread(); });
    } catch (...) {
      stop();
      throw;
    }
  }
  ~OrderedWork() { stop(); }
  OrderedWork(const OrderedWork&) = delete;
  OrderedWork& operator=(const OrderedWork&) = delete;

  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    room_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  // False: there are no more parts, or the work is stopped.
  bool next_part(Part& part, int64_t& number) {
    const std::lock_guard reading(reading_);
    {
      std::unique_lock lock(mutex_);
      room_.wait(lock, [this] { return stopped_ || end_ || begun_ < taken_ + most_; });
      if (stopped_ || end_) return false;
    }
    bool more = false;
    std::exception_ptr error;
    try {
      more = next_(part);
    } catch (...) {
      error = std::current_exception();
    }
    const std::lock_guard lock(mutex_);
    number = begun_;
    if (error) done_.emplace(begun_++, Done{std::nullopt, error});
    if (!more) {
      end_ = begun_;
      ready_.notify_one();
      return false;
    }
    ++begun_;
    return true;
  }

  void run_thread() {
    Part part;
    for (int64_t number = 0; next_part(part, number);) {
      Done done;
      try {
        done.result.emplace(work_(std::move(part)));
      } catch (...) {
        done.error = std::current_exception();
      }
      part = Part();
      const std::lock_guard lock(mutex_);
      done_.emplace(number, std::move(done));
      ready_.notify_one();
    }
  }

  void take_all(const Take& take) {
    for (;;) {
      Done done;
      {
        std::unique_lock lock(mutex_);
        ready_.wait(lock, [this] { return done_.contains(taken_) || end_ == taken_; });
        if (!done_.contains(taken_)) return;
        done = std::move(done_.extract(taken_).mapped());
      }
      if (done.error) std::rethrow_exception(done.error);
      take(std::move(*done.result));
      {
        const std::lock_guard lock(mutex_);
        ++taken_;
      }
      room_.notify_one();
    }
  }

  const Next& next_;
  const Work& work_;
  const int64_t most_;
  std::mutex reading_;  // one thread calls next_ at a time
  std::mutex mutex_;    // of all below
  std::condition_variable room_, ready_;
  int64_t begun_ = 0;             // parts
  int64_t taken_ = 0;             // results
  std::optional<int64_t> end_;    // the number of parts, once it is known
  std::map<int64_t, Done> done_;  // by number, not yet taken
  bool stopped_ = false;
  std::vector<std::thread> threads_;  // last: they use all above
};

}  // namespace pesc
