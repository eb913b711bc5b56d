// Checks before the first launch, of conditions under which every launch would fail.
#pragma once

#include <cstdint>
#include <string>

#include "launcher/launch_slurm.h"

namespace pesc {

// Throws UsageError where this process was itself started by mpirun, by another launch, or several times by
// srun: each copy would start all ranks.
void check_not_inside_a_launch(const Variables& variable);
void check_one_copy(const SlurmJob& job);

// Throws UsageError where srun or the mpiexec of another MPI started several copies of which MPI knows nothing: each
// would be a job of one rank, on the same files.
void check_one_world(const Variables& variable, int world_size);

// mpirun takes hosts and slots from Grid Engine where SGE_ROOT, ARC, JOB_ID and PE_HOSTFILE are set. Why they are
// not those of a job on `host` ("PE_HOSTFILE=/x cannot be read"); empty where they may be, or are not all set.
[[nodiscard]] std::string left_over_grid_engine(const Variables& variable, const std::string& host);

// "Open MPI 4.1.4", found in the output of `mpirun --version` or MPI_Get_library_version; empty when it is
// not there.
[[nodiscard]] std::string open_mpi_version(const std::string& text);
// Throws UsageError, naming `what` ("mpirun", "the MPI library"), when `text` is not of Open MPI 4, the
// supported version.
void check_open_mpi(const std::string& what, const std::string& text);
// Throws UsageError when mpirun is not in PATH, does not run, or is of an unsupported version.
void check_mpirun();

// Throws IoError when one of the folders is missing, cannot be written, or has less room than Open MPI and
// the ranks of this host need there.
void check_room(const std::string& temporary_folder, const std::string& shared_memory, int ranks_here);

}  // namespace pesc
