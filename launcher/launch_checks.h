// What is looked at before anything is started: what mpirun would refuse, it would refuse for ever.
#pragma once

#include <cstdint>
#include <string>

#include "launcher/launch_slurm.h"

namespace pesc {

// Throws UsageError where this process was itself started by mpirun, by another launch, or several times by
// srun: each copy would start all ranks.
void check_not_inside_a_launch(const Variables& variable);
void check_one_copy(const SlurmJob& job);

// "Open MPI 4.1.4" of what `mpirun --version` or MPI_Get_library_version says; empty: it is not Open MPI, or
// does not say.
[[nodiscard]] std::string open_mpi_version(const std::string& text);
// Open MPI 4 is supported. Throws UsageError, naming `what` ("mpirun", "the MPI library"), where `text` is of
// another major version or of another MPI.
void check_open_mpi(const std::string& what, const std::string& text);
// mpirun in PATH. UsageError.
void check_mpirun();

// The least that Open MPI and the ranks of this host write there. Throws IoError where a folder is missing,
// cannot be written, or has less room.
void check_room(const std::string& temporary_folder, const std::string& shared_memory, int ranks_here);

}  // namespace pesc
