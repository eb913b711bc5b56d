// Initialising and finalising MPI, and this rank's place on its host.
#include "parallel/mpi_session.h"

#include <mpi.h>

#include <algorithm>
#include <cstdlib>
#include <exception>

#include "parallel/mpi_requests.h"

namespace pesc {
namespace {

// Polls before the first yield when ranks outnumber cores: the peer may need this core.
constexpr int kSpinsWhenCrowded = 0;

}  // namespace

MpiSession::MpiSession() : policy_(std::make_shared<MpiWaitPolicy>()) {
  const std::vector<uint64_t> mine = core_bits(cores_of_start());
  int up = 0;
  MPI_Initialized(&up);
  if (up == 0) {
    // MPI reads these settings at start-up only; those that the user has set stay. Where ranks outnumber
    // cores, MPI's own waits (start-up, split, shut-down) must yield. Copying messages of up to 16 KiB
    // through shared memory takes a third of the time of reading them from the sender's memory.
    const char* ranks_here = std::getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
    if (ranks_here != nullptr && std::atol(ranks_here) > std::ssize(share_cores(mine, 0).cores))
      setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
    setenv("OMPI_MCA_btl_vader_eager_limit", "16384", 0);
    int provided = 0;
    const int code = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
    if (code != MPI_SUCCESS)
      throw IoError(
          str_cat("MPI cannot be started (code ", code,
                  "); check the installation of Open MPI, and start ranks with mpirun or pesc launch"));
    if (provided < MPI_THREAD_FUNNELED)
      throw IoError(
          "this MPI library does not support programs with threads (MPI_THREAD_FUNNELED); use an Open MPI "
          "that is built with them");
    owns_ = true;
  }
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm host = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &host), rank,
            "finding the ranks of this host");
  MPI_Comm_rank(host, &local_rank_);
  MPI_Comm_size(host, &local_size_);
  std::vector<uint64_t> all(mine.size() * static_cast<size_t>(local_size_));
  check_mpi(MPI_Allgather(mine.data(), kCoreWords, MPI_UINT64_T, all.data(), kCoreWords, MPI_UINT64_T, host),
            rank, "exchanging the cores of this host's ranks");
  MPI_Comm_free(&host);
  cores_ = share_cores(all, local_rank_);
  if (cores_.sharers > std::ssize(cores_.cores)) policy_->spins = kSpinsWhenCrowded;
}

MpiSession::~MpiSession() {
  // While an exception propagates, other ranks may never reach MPI_Finalize. A rank that exits without it
  // makes mpirun end them.
  if (owns_ && std::uncaught_exceptions() == 0) MPI_Finalize();
}

void MpiSession::set_wait_limit(double seconds) {
  PESC_CHECK(seconds > 0, "a wait of ", seconds, " s");
  policy_->limit = std::chrono::duration<double>(seconds);
}

std::unique_ptr<Communicator> MpiSession::world() const {
  MPI_Comm comm = MPI_COMM_NULL;
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &comm), rank, "duplicating MPI_COMM_WORLD");
  return make_mpi_communicator(comm, "world", policy_);
}

std::string MpiSession::library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string all(text);  // Open MPI counts the terminating NUL in the length
  return all.substr(0, all.find('\n'));
}

void MpiSession::abort(int exit_code) {
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);  // MPI_Abort returns when MPI is not up
}

}  // namespace pesc
