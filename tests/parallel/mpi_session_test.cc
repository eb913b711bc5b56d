// A session that starts and ends MPI itself, in a process that no mpirun started, and a communicator that
// outlives it.
#include "parallel/mpi_session.h"

#include <gtest/gtest.h>
#include <mpi.h>

namespace pesc {
namespace {

TEST(MpiSession, OwnsMpiAndIsOutlivedByItsCommunicators) {
  std::unique_ptr<Communicator> world;
  std::unique_ptr<Communicator> part;
  int flag = 0;
  {
    const MpiSession session;
    MPI_Initialized(&flag);
    EXPECT_NE(flag, 0);
    EXPECT_EQ(session.local_rank(), 0);
    EXPECT_EQ(session.local_size(), 1);
    {
      const MpiSession nested;  // MPI is up already: left up
      EXPECT_EQ(nested.world()->size(), 1);
    }
    MPI_Finalized(&flag);
    EXPECT_EQ(flag, 0);
    world = session.world();
    part = world->split(0, "part");
    EXPECT_EQ(part->host_all_gather(std::vector<int64_t>{4}), std::vector<int64_t>{4});
  }
  MPI_Finalized(&flag);
  EXPECT_NE(flag, 0);
  world.reset();  // must not touch MPI any more
  part.reset();
}

}  // namespace
}  // namespace pesc
