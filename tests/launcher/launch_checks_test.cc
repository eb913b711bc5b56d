// What is looked at before anything is started: MPI's version and the room for its files.
#include "launcher/launch_checks.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include "launcher/launch_process.h"
#include "ops/core/check.h"

namespace pesc {
namespace {

TEST(OpenMpi, IsToldByName) {
  EXPECT_EQ(open_mpi_version("mpirun (Open MPI) 4.1.4\n\nReport bugs to http://www.open-mpi.org/\n"),
            "Open MPI 4.1.4");
  EXPECT_EQ(open_mpi_version("Open MPI v5.0.3rc1, package: Debian OpenMPI, ident: 5.0.3rc1"),
            "Open MPI 5.0.3");
  EXPECT_EQ(open_mpi_version("HYDRA build details:\n    Version: 4.1\n"), "");
  EXPECT_EQ(open_mpi_version("Open MPI"), "");
  EXPECT_EQ(open_mpi_version(""), "");
}

TEST(OpenMpi, FourIsSupportedAndOthersAreRefusedByName) {
  EXPECT_NO_THROW(check_open_mpi("mpirun", "mpirun (Open MPI) 4.0.3"));
  EXPECT_NO_THROW(check_open_mpi("the MPI library", "Open MPI v4.1.4, package: x"));
  for (const char* text : {"mpirun (Open MPI) 5.0.3", "Open MPI v5.0.0, package", "mpirun (Open MPI) 3.1.0",
                           "mpirun (Open MPI) 40.1", "HYDRA build details:", "Intel(R) MPI Library 2021.5"}) {
    try {
      check_open_mpi("mpirun", text);
      ADD_FAILURE() << text;
    } catch (const UsageError& e) {
      EXPECT_NE(std::string(e.what()).find("supports Open MPI 4"), std::string::npos) << e.what();
    }
  }
}

TEST(Copies, OfWhichMpiKnowsNothingAreRefused) {
  const auto with = [](const char* name, const char* value) {
    return [=](const char* n) { return std::string(n) == name ? value : nullptr; };
  };
  EXPECT_THROW(check_one_world(with("SLURM_STEP_NUM_TASKS", "4"), 1), UsageError);
  EXPECT_THROW(check_one_world(with("PMI_SIZE", "2"), 1), UsageError);
  EXPECT_NO_THROW(check_one_world(with("SLURM_STEP_NUM_TASKS", "4"), 4));
  EXPECT_NO_THROW(check_one_world(with("SLURM_STEP_NUM_TASKS", "1"), 1));
  EXPECT_NO_THROW(check_one_world(with("PMI_SIZE", "x"), 1));
  EXPECT_NO_THROW(check_one_world(with("SLURM_NTASKS", "4"), 1));  // a shell of a job
  // A rank that mpirun started through srun; and a shell of another mpirun, out of which srun started copies.
  const auto started = [](const char* world) {
    return [=](const char* name) {
      return std::string(name) == "OMPI_COMM_WORLD_SIZE"   ? world
             : std::string(name) == "SLURM_STEP_NUM_TASKS" ? "2"
                                                           : nullptr;
    };
  };
  EXPECT_NO_THROW(check_one_world(started("1"), 1));
  EXPECT_THROW(check_one_world(started("2"), 1), UsageError);
}

TEST(GridEngine, ItsVariablesCountWhereTheyNameThisHost) {
  const std::string path =
      (std::filesystem::temp_directory_path() / str_cat("pesc-pe-", ::getpid())).string();
  std::map<std::string, std::string> set{
      {"SGE_ROOT", "/sge"}, {"ARC", "lx"}, {"JOB_ID", "7"}, {"PE_HOSTFILE", path}};
  const Variables variable = [&set](const char* name) {
    const auto found = set.find(name);
    return found == set.end() ? nullptr : found->second.c_str();
  };
  EXPECT_EQ(left_over_grid_engine(variable, "node1"), "PE_HOSTFILE=" + path + " cannot be read");
  std::ofstream(path) << "node2.cluster 4 all.q@node2 UNDEFINED\nnode1.cluster 4 all.q@node1 UNDEFINED\n";
  EXPECT_EQ(left_over_grid_engine(variable, "node1"), "");
  EXPECT_EQ(left_over_grid_engine(variable, "node2.elsewhere"), "");
  EXPECT_EQ(left_over_grid_engine(variable, "node"),
            "PE_HOSTFILE=" + path + " does not name this host, node");
  std::filesystem::remove(path);
  set.erase("ARC");  // mpirun does not look either
  EXPECT_EQ(left_over_grid_engine(variable, "node1"), "");
}

TEST(Room, IsLookedAtBeforeTheStart) {
  const auto folder = std::filesystem::temp_directory_path() / str_cat("pesc-room-", ::getpid());
  std::filesystem::create_directories(folder);
  const std::string path = folder.string();
  std::ofstream(path + "/file") << "x";
  EXPECT_NO_THROW(check_room(path, path, 2));
  EXPECT_THROW(check_room(path + "/none", path, 1), IoError);
  EXPECT_THROW(check_room(path + "/file", path, 1), IoError);
  EXPECT_NO_THROW(check_room(path, path + "/none", 1));  // one rank shares nothing
  EXPECT_THROW(check_room(path, path + "/none", 2), IoError);
  try {
    check_room(path, path, 2000000000);  // 4 MiB for each
    ADD_FAILURE();
  } catch (const IoError& e) {
    EXPECT_NE(std::string(e.what()).find("MiB of room, and the launch needs"), std::string::npos) << e.what();
  }
  std::filesystem::remove_all(folder);
}

TEST(AskProgram, HearsBothOutputsAndDoesNotWaitForEver) {
  const Answer both = ask_program({"sh", "-c", "echo one; echo two >&2; exit 3"}, std::chrono::seconds(20));
  EXPECT_EQ(both.text, "one\ntwo\n");
  EXPECT_EQ(both.status, 3 << 8);
  EXPECT_FALSE(both.late);
  const Answer much = ask_program({"sh", "-c", "head -c 1000000 /dev/zero"}, std::chrono::seconds(20));
  EXPECT_EQ(much.status, 0);  // a full pipe would have stopped it
  const Answer late = ask_program({"sleep", "100"}, std::chrono::milliseconds(100));
  EXPECT_TRUE(late.late);
  const Answer none = ask_program({"pesc-no-such-program"}, std::chrono::seconds(20));
  EXPECT_EQ(none.status, 127 << 8);
  EXPECT_NE(none.text.find("pesc-no-such-program is not in PATH"), std::string::npos) << none.text;
}

}  // namespace
}  // namespace pesc
