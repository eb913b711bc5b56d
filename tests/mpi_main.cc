// main() of tests that run under mpirun: every rank runs every case; the output of ranks other than 0 is
// shown only when one of their cases fails.
//
// A case whose name ends in OnOneRank, OnTwoRanks, OnSeveralRanks or OnGpu runs only there. Elsewhere it is
// left out, and not reported as passed.
#include <gtest/gtest.h>
#include <mpi.h>

#include <cstdio>
#include <string>

#include "tests/device.h"
#include "tests/test_main.h"

namespace {

void leave_out_what_does_not_apply(int ranks) {
  std::string names;
  const auto leave_out = [&names](bool applies, const char* suffix) {
    if (!applies) names += std::string(names.empty() ? "" : ":") + "*" + suffix;
  };
  leave_out(ranks == 1, "OnOneRank");
  leave_out(ranks == 2, "OnTwoRanks");
  leave_out(ranks > 1, "OnSeveralRanks");
  leave_out(pesc::test_on_gpu(), "OnGpu");
  std::string& filter = testing::GTEST_FLAG(filter);
  if (!names.empty()) filter += (filter.find('-') == std::string::npos ? "-" : ":") + names;
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  int ranks = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  testing::InitGoogleTest(&argc, argv);
  leave_out_what_does_not_apply(ranks);
  if (pesc::test_on_gpu() && pesc::cuda::device_count() == 0) {
    if (rank == 0) std::printf("no GPU test: this machine has no GPU\n");
    MPI_Finalize();
    return 0;
  }
  if (rank != 0) {
    auto& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    class FailuresOnly : public testing::EmptyTestEventListener {
      void OnTestPartResult(const testing::TestPartResult& r) override {
        if (r.failed()) std::fprintf(stderr, "%s:%d: %s\n", r.file_name(), r.line_number(), r.message());
      }
    };
    listeners.Append(new FailuresOnly);
  }
  int failed = pesc::run_all_tests();
  int any = 0;
  MPI_Allreduce(&failed, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  MPI_Finalize();
  return any;
}
