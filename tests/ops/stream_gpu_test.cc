// Streams beside each other on a GPU: work that is told to wait for other work sees what it made, and only
// that. The work takes milliseconds, so that what comes too early is seen.
#include "ops/reduce.h"
#include "tests/ops/gpu_twin.h"

namespace pesc {
namespace {

class StreamsTest : public GpuTwin {
 protected:
  static constexpr int64_t kSize = int64_t{16} << 20;

  void SetUp() override {
    GpuTwin::SetUp();
    if (IsSkipped()) return;
    gpu().open_comm_stream();
    memory_ = std::make_unique<Arena>("test", gpu().device(), 6 * kSize * int64_t{sizeof(float)});
    for (Tensor* t : {&ones_, &twos_, &x_, &y_, &work_}) *t = memory_->allocate(1, kSize);
    copy_from_host(gpu(), std::vector<float>(static_cast<size_t>(kSize), 1.0F).data(), ones_);
    copy_from_host(gpu(), std::vector<float>(static_cast<size_t>(kSize), 2.0F).data(), twos_);
  }
  void spend_time(Stream& stream) const {
    for (int i = 0; i < 20; ++i) add(stream, ones_, work_);
  }
  // Every value is the same.
  void expect_all(const Tensor& t, float want) {
    std::vector<float> got(static_cast<size_t>(t.size()));
    copy_to_host(gpu(), t, got.data());
    for (size_t i = 0; i < got.size(); i += 1013) ASSERT_EQ(got[i], want) << i;
    ASSERT_EQ(got.back(), want);
  }
  std::unique_ptr<Arena> memory_;
  Tensor ones_, twos_, x_, y_, work_;
};

TEST_F(StreamsTest, FollowWaitsForAllThatIsThere) {
  Stream& comm_stream = gpu().comm_stream();
  ASSERT_NE(&comm_stream, &gpu());
  for (int run = 0; run < 20; ++run) {
    const Tensor& from = run % 2 == 0 ? ones_ : twos_;
    spend_time(gpu());
    copy(gpu(), from, x_);
    comm_stream.wait_stream(gpu());
    copy(comm_stream, x_, y_);
    gpu().wait_stream(comm_stream);
    fill_zero(gpu(), x_);
    expect_all(y_, run % 2 == 0 ? 1.0F : 2.0F);
  }
}

TEST_F(StreamsTest, EventWaitsForRecordedWorkOnly) {
  Stream& comm_stream = gpu().comm_stream();
  Event there;
  Event back;
  there.wait(comm_stream);  // never set: nothing
  for (int run = 0; run < 20; ++run) {
    const Tensor& from = run % 2 == 0 ? ones_ : twos_;
    spend_time(gpu());
    copy(gpu(), from, x_);
    there.record(gpu());
    spend_time(gpu());
    there.wait(comm_stream);
    copy(comm_stream, x_, y_);
    back.record(comm_stream);
    spend_time(comm_stream);
    back.wait(gpu());
    fill_zero(gpu(), x_);
    expect_all(y_, run % 2 == 0 ? 1.0F : 2.0F);
  }
}

// Uploads on the comm stream have their own pinned memory.
TEST_F(StreamsTest, UploadsOfBothStreams) {
  Stream& comm_stream = gpu().comm_stream();
  constexpr int64_t kPiece = 60000;
  for (int64_t i = 0; i < 40; ++i) {
    const std::vector<float> a(static_cast<size_t>(kPiece), static_cast<float>(i));
    const std::vector<float> b(static_cast<size_t>(kPiece), static_cast<float>(-i));
    copy_from_host(gpu(), a.data(), x_.col_range(i * kPiece, (i + 1) * kPiece));
    copy_from_host(comm_stream, b.data(), y_.col_range(i * kPiece, (i + 1) * kPiece));
  }
  gpu().wait_stream(comm_stream);
  for (int64_t i = 0; i < 40; ++i) {
    expect_all(x_.col_range(i * kPiece, (i + 1) * kPiece), static_cast<float>(i));
    expect_all(y_.col_range(i * kPiece, (i + 1) * kPiece), static_cast<float>(-i));
  }
}

}  // namespace
}  // namespace pesc
