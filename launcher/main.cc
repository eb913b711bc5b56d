// The `pesc` program: one SPMD rank of a verb. Start it under mpirun or srun, or alone for one rank.
#include <fcntl.h>
#include <glog/logging.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "launcher/bench_scaling.h"
#include "launcher/command_line.h"
#include "launcher/launch.h"
#include "launcher/launch_checks.h"
#include "launcher/launch_mark.h"
#include "launcher/standard_output.h"
#include "launcher/verbs.h"
#include "parallel/mpi_session.h"
#include "runtime/terminal/terminal.h"

namespace pesc {
namespace {

int dispatch(const Process& process, const CommandLine& command) {
  const Verb& verb = known_verb(command.verb);
  PESC_CHECK(verb.run != nullptr, "`", verb.name, "` runs without ranks");
  return verb.run(process, command);
}

// Of several copies that mpirun started one speaks.
int run_alone(const CommandLine& command) {
  const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
  if (rank != nullptr && std::string_view(rank) != "0") return 0;
  return command.scaling ? run_bench_scaling(command) : known_verb(command.verb).run_alone(command);
}

// A descriptor of 0 to 2 that is closed would become the first file that is opened, and what is printed would
// be written into it.
void open_standard_descriptors() {
  int fd = 0;
  do {
    fd = ::open("/dev/null", O_RDWR);
  } while (fd >= 0 && fd <= STDERR_FILENO);
  if (fd > STDERR_FILENO) ::close(fd);
}

void print_error(const char* what) {
  const bool red = uses_colour(STDERR_FILENO);
  std::fprintf(stderr, "%spesc: %s%s\n", red ? "\033[31m" : "", red ? "\033[0m" : "", what);
}

int run(int argc, char** argv) {
  // Before MPI starts: a signal that comes during start-up would end the rank.
  if (argc > 1 && std::string_view(argv[1]) == "train") {
    save_and_stop_on_signals();
    LaunchMark::make_shared_memory_directory();
  }
  MpiSession session;
  const auto world = session.world();
  RankWatch watch(world->rank(), world->size(), [&](double seconds) { session.set_wait_limit(seconds); });
  try {
    CommandLine command;
    run_collectively(*world, [&] {
      check_open_mpi("the MPI library", MpiSession::library_version());
      check_one_world([](const char* name) { return std::getenv(name); }, world->size());
      command = parse_command_line(argc, argv);
    });
    return dispatch({*world, session.local_rank(), session.local_size(), watch, session.cores()}, command);
  } catch (const AgreedError& e) {
    if (e.reporting) {
      print_error(e.what());
      watch.died(static_cast<int>(e.code()), e.what());
    }
    return static_cast<int>(e.code());
  } catch (const Error& e) {
    // Only this rank knows: the others may stand in a collective, so the whole job ends here.
    print_error(str_cat("rank ", world->rank(), ": ", e.what()).c_str());
    watch.died(static_cast<int>(e.code()), e.what());
    if (world->size() == 1) return static_cast<int>(e.code());
    MpiSession::abort(static_cast<int>(e.code()));
  } catch (const std::exception& e) {
    print_error(str_cat("rank ", world->rank(), ": internal error: ", e.what()).c_str());
    watch.died(static_cast<int>(ExitCode::kInternal), e.what());
    if (world->size() == 1) return static_cast<int>(ExitCode::kInternal);
    MpiSession::abort(static_cast<int>(ExitCode::kInternal));
  }
}

}  // namespace
}  // namespace pesc

int main(int argc, char** argv) {
  pesc::open_standard_descriptors();
  pesc::ignore_write_signals();
  google::InitGoogleLogging(argv[0]);
  FLAGS_logtostderr = true;
  FLAGS_colorlogtostderr = pesc::uses_colour(STDERR_FILENO);
  try {
    if (const auto alone = pesc::parse_alone(argc, argv))
      return pesc::check_standard_output(pesc::run_alone(*alone));
    // The supervisor runs no MPI itself.
    if (argc > 1 && std::string_view(argv[1]) == "launch") return pesc::run_launch(argc, argv);
    return pesc::check_standard_output(pesc::run(argc, argv));
  } catch (const pesc::Error& e) {  // from before there are ranks, or after
    pesc::print_error(e.what());
    return static_cast<int>(e.code());
  } catch (const std::exception& e) {
    pesc::print_error(pesc::str_cat("internal error: ", e.what()).c_str());
    return static_cast<int>(pesc::ExitCode::kInternal);
  }
}
