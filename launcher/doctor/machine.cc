// The host itself: cores, memory, limits, clock, network, Slurm; and MPI.
#include "launcher/doctor/machine.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/timex.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>

#include "launcher/doctor/probe.h"
#include "launcher/launch_checks.h"
#include "launcher/launch_process.h"
#include "ops/attention_library.h"
#include "ops/core/check.h"
#include "ops/core/cuda.h"
#include "parallel/gpu_world.h"
#include "parallel/host_cores.h"
#include "parallel/mpi_session.h"
#include "runtime/cpu_quota.h"
#include "runtime/machine.h"
#include "runtime/text/printable.h"
#include "runtime/versions.h"

namespace pesc {
namespace {

constexpr auto kMpiWithin = std::chrono::seconds(20), kProgramWithin = std::chrono::seconds(5);

// The value behind "NAME :" in a file of /proc.
std::string value_of(const char* path, const std::string& name) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos || !line.starts_with(name)) continue;
    const size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : printable(line.substr(begin));
  }
  return "";
}

int64_t limit_of(int resource) {
  struct rlimit limit {};
  if (::getrlimit(static_cast<__rlimit_resource_t>(resource), &limit) != 0) return -1;
  return limit.rlim_cur == RLIM_INFINITY ? -1 : static_cast<int64_t>(limit.rlim_cur);
}

template <class Check>
std::string trouble_of(Check check) {
  try {
    check();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

void look_at_memory(MachineFacts& m) {
  m.memory = static_cast<int64_t>(host_memory());
  const std::string available = value_of("/proc/meminfo", "MemAvailable");  // "1234 kB"
  m.memory_available = std::min<int64_t>(std::atoll(available.c_str()) * 1024, m.memory);
  struct statvfs room {};
  if (::statvfs("/dev/shm", &room) == 0) {
    m.shared_memory = static_cast<int64_t>(room.f_blocks) * static_cast<int64_t>(room.f_frsize);
    m.shared_memory_free = static_cast<int64_t>(room.f_bavail) * static_cast<int64_t>(room.f_frsize);
  }
  const char* temporary = std::getenv("TMPDIR");
  const std::string folder = temporary != nullptr && *temporary != '\0' ? temporary : "/tmp";
  m.temporary_trouble = trouble_of([&] { check_room(folder, "/dev/shm", 1); });
  if (m.temporary_trouble.empty())
    m.shared_memory_trouble =
        trouble_of([&] { check_room(folder, "/dev/shm", std::max(m.cores_usable, 2)); });
}

void look_at_clock(MachineFacts& m) {
  const std::time_t now = std::time(nullptr);
  struct tm parts {};
  ::gmtime_r(&now, &parts);
  char text[64];
  std::strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S UTC", &parts);
  m.clock = text;
  struct timex clock {};  // reads alone, without modes
  const int state = ::adjtimex(&clock);
  m.clock_synchronised = state >= 0 && state != TIME_ERROR && (clock.status & STA_UNSYNC) == 0;
}

void look_at_network(MachineFacts& m) {
  struct ifaddrs* first = nullptr;
  if (::getifaddrs(&first) != 0) return;
  for (const struct ifaddrs* i = first; i != nullptr; i = i->ifa_next) {
    if (i->ifa_addr == nullptr || (i->ifa_flags & IFF_UP) == 0 || (i->ifa_flags & IFF_LOOPBACK) != 0)
      continue;
    const int family = i->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    char text[INET6_ADDRSTRLEN] = {};
    const void* address =
        family == AF_INET ? static_cast<const void*>(&reinterpret_cast<sockaddr_in*>(i->ifa_addr)->sin_addr)
                          : &reinterpret_cast<sockaddr_in6*>(i->ifa_addr)->sin6_addr;
    ::inet_ntop(family, address, text, sizeof(text));
    const std::string name = printable(i->ifa_name);
    auto found = std::ranges::find(m.interfaces, name, &NetworkInterface::name);
    if (found == m.interfaces.end()) found = m.interfaces.insert(found, {name, {}});
    found->addresses.emplace_back(text);
  }
  ::freeifaddrs(first);
  std::error_code none;
  for (const auto& device : std::filesystem::directory_iterator("/sys/class/infiniband", none))
    m.infiniband.push_back(printable(device.path().filename().string()));
  std::ranges::sort(m.infiniband);
  m.ssh = is_in_path("ssh");
}

// What a program says within a short time; its trouble otherwise.
std::string said_by(const std::vector<std::string>& words, std::string& trouble) {
  try {
    const Answer answer = ask_program(words, kProgramWithin);
    if (!answer.late && answer.status == 0) return printable(answer.text, 2000, Keep::kLines);
    trouble = str_cat(words.front(), answer.late ? " does not answer" : " fails", ": ",
                      printable(answer.text.substr(0, answer.text.find('\n'))));
  } catch (const Error& e) {
    trouble = e.what();
  }
  return "";
}

void look_at_slurm(MachineFacts& m) {
  if (const char* job = std::getenv("SLURM_JOB_ID")) m.slurm_job = printable(job);
  if (!is_in_path("sinfo")) {
    m.slurm_trouble = "sinfo is not in PATH";
    return;
  }
  m.slurm = said_by({"sinfo", "--noheader", "--format=%P %D nodes %t, %l"}, m.slurm_trouble);
  while (!m.slurm.empty() && m.slurm.back() == '\n') m.slurm.pop_back();
}

}  // namespace

BuildFacts look_at_build() {
  const std::map<std::string, std::string> versions = library_versions(Device{});
  const auto of = [&](const char* name) {
    const auto found = versions.find(name);
    return found == versions.end() ? std::string() : found->second;
  };
  BuildFacts b{of("pesc"), of("compiler"), of("march"), of("gemm")};
  b.cuda = cuda::built();
  b.nccl = b.cuda && nccl_version().starts_with("NCCL");
  b.cudnn = b.cuda && cuda::library_attention_built();
  return b;
}

void look_at_mpi(MachineFacts& m) {
  const std::string library = MpiSession::library_version();
  m.mpi = open_mpi_version(library);
  if (m.mpi.empty()) m.mpi = printable(library);
  m.mpi_trouble = trouble_of([&] { check_open_mpi("the MPI library", library); });
  // Where there is no folder for session files Open MPI makes one, as root anywhere; a look changes nothing.
  if (m.mpi_trouble.empty() && m.temporary_trouble.empty()) {
    const ProbeResult answer = probe(
        [] {
          const MpiSession session;
          return std::string("started");
        },
        kMpiWithin);
    m.mpi_seconds = answer.seconds;
    if (!answer.trouble.empty()) m.mpi_trouble = "MPI does not start: " + answer.trouble;
  }
  m.mpirun_trouble = trouble_of([] { check_mpirun(); });
  std::string ignored;
  if (m.mpirun_trouble.empty()) m.mpirun = open_mpi_version(said_by({"mpirun", "--version"}, ignored));
}

MachineFacts look_at_machine(const std::string& folder) {
  MachineFacts m;
  struct utsname name {};
  if (::uname(&name) == 0) {
    m.host = printable(name.nodename);
    m.system = str_cat(printable(name.sysname), " ", printable(name.release));
  }
  m.cpu = value_of("/proc/cpuinfo", "model name");
  m.cores_online = static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN));
  m.cores_usable = static_cast<int>(cores_of_start().size());
  m.quota = cpu_quota();
  m.address_space = limit_of(RLIMIT_AS);
  m.open_files = limit_of(RLIMIT_NOFILE);
  m.locked_memory = limit_of(RLIMIT_MEMLOCK);
  m.processes = limit_of(RLIMIT_NPROC);
  look_at_memory(m);
  look_at_clock(m);
  look_at_network(m);
  look_at_slurm(m);
  look_at_mpi(m);
  look_at_gpus(m);
  m.folder = look_at_folder(folder);
  return m;
}

}  // namespace pesc
