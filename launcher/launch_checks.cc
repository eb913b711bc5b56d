#include "launcher/launch_checks.h"

#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include "launcher/launch_process.h"
#include "ops/core/check.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr auto kVersionWithin = std::chrono::seconds(10);
constexpr int64_t kMiB = 1 << 20;
// Measured with Open MPI 4.1.4: 8.3 MiB of its own session files, 4 KiB for each rank; in shared memory a
// segment of 4 MiB for each rank.
constexpr int64_t kSessionBytes = 9 * kMiB;
constexpr int64_t kSessionBytesOfRank = 64 << 10;
constexpr int64_t kSegmentBytes = 4 * kMiB + (64 << 10);

void check_folder(const std::string& path, const std::string& what, int64_t bytes,
                  const std::string& way_out) {
  const auto refuse = [&](const std::string& why) {
    throw IoError(str_cat(what, " ", path, " ", why, "; ", way_out));
  };
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) refuse(str_cat("cannot be used: ", std::strerror(errno)));
  if (!S_ISDIR(info.st_mode)) refuse("is no folder");
  if (::access(path.c_str(), W_OK | X_OK) != 0) refuse(str_cat("cannot be written: ", std::strerror(errno)));
  struct statvfs room {};
  if (::statvfs(path.c_str(), &room) != 0) return;
  const auto blocks = static_cast<int64_t>(::geteuid() == 0 ? room.f_bfree : room.f_bavail);
  const int64_t left = blocks * static_cast<int64_t>(room.f_frsize);
  if (left < bytes) {
    refuse(str_cat("has ", left / kMiB, " MiB of room, and the launch needs ", (bytes + kMiB - 1) / kMiB,
                   " MiB"));
  }
  if (room.f_files > 0 && room.f_ffree < 64) refuse("has no room for more files (inodes)");
}

}  // namespace

void check_not_inside_a_launch(const Variables& variable) {
  const auto refuse = [](const std::string& why) {
    throw UsageError(
        str_cat("pesc launch ", why,
                "; it starts mpirun and all ranks itself, so start it once, from a shell or a batch "
                "script. A rank that mpirun or srun starts is `pesc train`."));
  };
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PESC_LAUNCH"}) {
    if (variable(name) != nullptr)
      refuse(str_cat("was started inside ",
                     std::string(name) == "PESC_LAUNCH" ? "another pesc launch" : "mpirun", " (", name,
                     " is set)"));
  }
  // srun sets these too, also for the one shell of an interactive job.
  if (variable("SLURM_PROCID") != nullptr) return;
  for (const char* name : {"PMIX_RANK", "PMI_RANK"}) {
    if (variable(name) != nullptr) refuse(str_cat("was started inside mpirun (", name, " is set)"));
  }
}

void check_one_copy(const SlurmJob& job) {
  if (job.copies < 2) return;
  throw UsageError(str_cat("srun started pesc launch ", job.copies,
                           " times (SLURM_STEP_NUM_TASKS=", job.copies,
                           "); it starts mpirun and all ranks itself, so start it once, without srun"));
}

void check_one_world(const Variables& variable, int world_size) {
  if (world_size > 1) return;
  // mpirun sets OMPI_COMM_WORLD_SIZE for its ranks: a rank alone has 1. Another number is left over from an mpirun outside of srun.
  if (const char* size = variable("OMPI_COMM_WORLD_SIZE"); size != nullptr && std::atoi(size) == 1) return;
  for (const auto& [name, starter] :
       {std::pair{"SLURM_STEP_NUM_TASKS", "srun"}, std::pair{"PMI_SIZE", "the mpiexec of another MPI"}}) {
    const char* copies = variable(name);
    if (copies == nullptr || std::atoi(copies) < 2) continue;
    throw UsageError(str_cat(starter, " started pesc ", std::atoi(copies), " times (", name, "=",
                             printable(copies),
                             "), and MPI knows of one rank: each copy would be a job of its ",
                             "own. Start the ranks with Open MPI's mpirun, or with pesc launch"));
  }
}

std::string left_over_grid_engine(const Variables& variable, const std::string& host) {
  for (const char* name : {"SGE_ROOT", "ARC", "JOB_ID", "PE_HOSTFILE"})
    if (variable(name) == nullptr) return "";
  const std::string path = variable("PE_HOSTFILE");
  const std::string shown = str_cat("PE_HOSTFILE=", printable(path));
  std::error_code ignored;
  std::ifstream in;
  if (std::filesystem::is_regular_file(path, ignored)) in.open(path);
  if (!in.is_open()) return shown + " cannot be read";
  const auto short_name = [](const std::string& name) { return name.substr(0, name.find('.')); };
  for (std::string line; std::getline(in, line);) {
    if (short_name(line.substr(0, line.find_first_of(" \t"))) == short_name(host)) return "";
  }
  return str_cat(shown, " does not name this host, ", host);
}

std::string open_mpi_version(const std::string& text) {
  // "mpirun (Open MPI) 4.1.4", "Open MPI v4.1.4, package: ..."
  constexpr const char* kName = "Open MPI";
  size_t at = text.find(kName);
  if (at == std::string::npos) return "";
  at = text.find_first_not_of(" )v", at + std::strlen(kName));
  if (at == std::string::npos) return "";
  const size_t end = text.find_first_not_of("0123456789.", at);
  const std::string number = text.substr(at, end == std::string::npos ? end : end - at);
  return number.empty() ? "" : str_cat(kName, " ", number);
}

void check_open_mpi(const std::string& what, const std::string& text) {
  const std::string version = open_mpi_version(text);
  if (version.starts_with("Open MPI 4.")) return;
  const std::string line = text.substr(0, text.find('\n')).substr(0, 80);
  throw UsageError(str_cat(what, " is ", version.empty() ? str_cat("not Open MPI (\"", line, "\")") : version,
                           "; pesc supports Open MPI 4, whose settings it gives by name"));
}

void check_mpirun() {
  if (!is_in_path("mpirun")) throw UsageError("mpirun is not in PATH; is Open MPI installed here?");
  const Answer answer = ask_program({"mpirun", "--version"}, kVersionWithin);
  if (answer.status != 0 || answer.text.empty()) {
    throw UsageError(str_cat("`mpirun --version` ", answer.late ? "does not answer" : "fails", ": ",
                             answer.text.empty() ? "it says nothing" : answer.text.substr(0, 400)));
  }
  check_open_mpi("mpirun", answer.text);
}

void check_room(const std::string& temporary_folder, const std::string& shared_memory, int ranks_here) {
  check_folder(temporary_folder, "the folder for session files",
               kSessionBytes + kSessionBytesOfRank * ranks_here,
               "make room there, or name another folder in TMPDIR");
  if (ranks_here > 1) {
    check_folder(shared_memory, "shared memory", kSegmentBytes * ranks_here,
                 "free it, or enlarge it (mount -o remount,size=2G /dev/shm; docker run --shm-size=2g)");
  }
}

}  // namespace pesc
