#include "launcher/doctor/report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <set>
#include <utility>

#include "ops/core/check.h"
#include "ops/core/cuda.h"

namespace pesc {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kMuchOpen = 1024;
constexpr double kClockSkew = 1;  // seconds

std::string bytes_text(int64_t bytes) {
  char text[48];
  const double gib = static_cast<double>(bytes) / (1024.0 * 1024 * 1024);
  std::snprintf(text, sizeof(text), gib >= 1 ? "%.1f GiB" : "%.0f MiB", gib >= 1 ? gib : 1024 * gib);
  return text;
}

std::string limit_text(int64_t limit) {
  return limit < 0 ? "no limit" : std::to_string(limit);
}

ordered_json limit_data(int64_t limit) {
  return limit < 0 ? ordered_json(nullptr) : ordered_json(limit);
}

// Collects the facts of one section after the other.
class Facts {
 public:
  void section(std::string name) { section_ = std::move(name); }
  void add(const std::string& name, const std::string& text, ordered_json data,
           FactState state = FactState::kFine) {
    all.push_back({section_, name, text, state, std::move(data)});
  }
  std::vector<Fact> all;

 private:
  std::string section_;
};

void add_build(Facts& f, const BuildFacts& b) {
  f.section("pesc");
  f.add("version", b.version, b.version);
  f.add("compiler", str_cat(b.compiler, ", for ", b.march), {{"version", b.compiler}, {"march", b.march}});
  f.add("gemm", b.gemm, b.gemm);
  f.add("built_with",
        b.cuda ? str_cat("CUDA, ", b.nccl ? "NCCL" : "no NCCL", ", ", b.cudnn ? "cuDNN" : "no cuDNN")
               : "no CUDA",
        {{"cuda", b.cuda}, {"nccl", b.nccl}, {"cudnn", b.cudnn}});
}

void add_host(Facts& f, const MachineFacts& m) {
  f.section("machine");
  f.add("host", str_cat(m.host, ", ", m.system), {{"name", m.host}, {"system", m.system}});
  const bool bounded = m.quota > 0 && m.quota < m.cores_usable;
  char quota[80] = "";
  if (m.quota > 0) std::snprintf(quota, sizeof(quota), "; the control group allows %.3g", m.quota);
  f.add("cores", str_cat(m.cores_usable, " of ", m.cores_online, quota, m.cpu.empty() ? "" : ", ", m.cpu),
        {{"online", m.cores_online},
         {"usable", m.cores_usable},
         {"quota", m.quota > 0 ? ordered_json(m.quota) : ordered_json(nullptr)},
         {"cpu", m.cpu}},
        bounded ? FactState::kNote : FactState::kFine);
  f.add("memory",
        str_cat(
            bytes_text(m.memory_available), " free of ", bytes_text(m.memory),
            m.address_space < 0 ? "" : ", at most " + bytes_text(m.address_space) + " a process (ulimit -v)"),
        {{"bytes", m.memory},
         {"available", m.memory_available},
         {"address_space", limit_data(m.address_space)}},
        m.address_space < 0 ? FactState::kFine : FactState::kNote);
  f.add("shared_memory",
        m.shared_memory_trouble.empty() ? str_cat("/dev/shm: ", bytes_text(m.shared_memory_free), " free of ",
                                                  bytes_text(m.shared_memory))
                                        : m.shared_memory_trouble,
        {{"bytes", m.shared_memory}, {"free", m.shared_memory_free}, {"trouble", m.shared_memory_trouble}},
        m.shared_memory_trouble.empty() ? FactState::kFine : FactState::kMissing);
  const bool few = m.open_files >= 0 && m.open_files < kMuchOpen;
  f.add("open_files", limit_text(m.open_files), limit_data(m.open_files),
        few ? FactState::kNote : FactState::kFine);
  // InfiniBand registers the memory that it sends.
  const bool locked = m.locked_memory >= 0 && !m.infiniband.empty();
  f.add("locked_memory",
        m.locked_memory < 0 ? "no limit"
                            : bytes_text(m.locked_memory) +
                                  (locked ? ": too little for InfiniBand; ulimit -l unlimited" : ""),
        limit_data(m.locked_memory), locked ? FactState::kNote : FactState::kFine);
  f.add("processes", limit_text(m.processes), limit_data(m.processes));
  f.add("clock",
        str_cat(m.clock, m.clock_synchronised ? "" : ", not synchronised with other hosts (chrony, ntpd)"),
        {{"time", m.clock}, {"synchronised", m.clock_synchronised}},
        m.clock_synchronised ? FactState::kFine : FactState::kNote);
  std::string networks;
  ordered_json interfaces = ordered_json::object();
  for (const NetworkInterface& i : m.interfaces) {
    networks += str_cat(networks.empty() ? "" : "; ", i.name);
    for (const std::string& address : i.addresses) networks += " " + address;
    interfaces[i.name] = i.addresses;
  }
  for (const std::string& device : m.infiniband)
    networks += str_cat(networks.empty() ? "" : "; ", "InfiniBand ", device);
  f.add("network", networks.empty() ? "none but the loopback" : networks,
        {{"interfaces", interfaces}, {"infiniband", m.infiniband}},
        networks.empty() ? FactState::kNote : FactState::kFine);
}

void add_programs(Facts& f, const MachineFacts& m) {
  f.section("mpi");
  char started[64] = ", not started for want of a folder for session files";
  if (m.temporary_trouble.empty())
    std::snprintf(started, sizeof(started), ", starts in %.1f s", m.mpi_seconds);
  f.add("library", m.mpi_trouble.empty() ? m.mpi + started : m.mpi_trouble,
        {{"version", m.mpi}, {"seconds", m.mpi_seconds}, {"trouble", m.mpi_trouble}},
        m.mpi_trouble.empty() ? FactState::kFine : FactState::kMissing);
  f.add("mpirun", m.mpirun_trouble.empty() ? m.mpirun : m.mpirun_trouble,
        {{"version", m.mpirun}, {"trouble", m.mpirun_trouble}},
        m.mpirun_trouble.empty() ? FactState::kFine : FactState::kMissing);
  f.section("slurm");
  std::string partitions = m.slurm;
  for (size_t at = 0; (at = partitions.find('\n', at)) != std::string::npos; at += 2)
    partitions.replace(at, 1, "; ");
  f.add("partitions", m.slurm_trouble.empty() ? partitions : m.slurm_trouble,
        {{"sinfo", m.slurm}, {"trouble", m.slurm_trouble}},
        m.slurm_trouble.empty() ? FactState::kFine : FactState::kMissing);
  f.add("job", m.slurm_job.empty() ? "none: this shell is in no job" : m.slurm_job,
        m.slurm_job.empty() ? ordered_json(nullptr) : ordered_json(m.slurm_job));
}

void add_gpus(Facts& f, const MachineFacts& m) {
  f.section("gpu");
  f.add(
      "driver",
      m.driver_trouble.empty() ? m.driver : str_cat(m.driver, m.driver.empty() ? "" : ": ", m.driver_trouble),
      {{"version", m.driver}, {"trouble", m.driver_trouble}},
      m.driver_trouble.empty() ? FactState::kFine : FactState::kMissing);
  int number = 0;
  for (const GpuFacts& gpu : m.gpus) {
    f.add(str_cat("gpu", number++),
          str_cat(gpu.name, ", ", bytes_text(gpu.bytes), ", compute capability ", gpu.major, ".", gpu.minor,
                  gpu.trouble.empty() ? "" : ": ", gpu.trouble),
          {{"name", gpu.name},
           {"bytes", gpu.bytes},
           {"compute_capability", str_cat(gpu.major, ".", gpu.minor)},
           {"trouble", gpu.trouble}},
          gpu.trouble.empty() ? FactState::kFine : FactState::kMissing);
  }
  for (const auto& [name, version] :
       {std::pair("cuda_runtime", m.cuda_runtime), std::pair("nccl", m.nccl), std::pair("cudnn", m.cudnn)}) {
    f.add(name, version.empty() ? "not found" : version,
          version.empty() ? ordered_json(nullptr) : ordered_json(version),
          version.empty() ? FactState::kMissing : FactState::kFine);
  }
}

void add_folder(Facts& f, const FolderFacts& d) {
  f.section("folder");
  if (!d.trouble.empty()) {
    f.add("path", str_cat(d.path, ": ", d.trouble), {{"path", d.path}, {"trouble", d.trouble}},
          FactState::kMissing);
    return;
  }
  f.add("path", d.path, {{"path", d.path}, {"trouble", ""}});
  f.add("room", str_cat(bytes_text(d.free_bytes), " free of ", bytes_text(d.bytes), ", ", d.filesystem),
        {{"bytes", d.bytes}, {"free", d.free_bytes}, {"filesystem", d.filesystem}});
  char text[96];
  std::snprintf(text, sizeof(text), "1 MiB written and synced in %.0f ms", 1e3 * d.sync_seconds);
  f.add("sync", text, d.sync_seconds);
  const std::string locks =
      d.flock && d.fcntl ? "flock and fcntl keep a second owner out"
      : d.flock          ? "flock keeps a second owner out, fcntl does not"
      : d.fcntl          ? "fcntl keeps a second owner out, flock does not"
                         : "neither flock nor fcntl works; a run is guarded by a file alone (pesc.lock.held)";
  f.add("locks", locks, {{"flock", d.flock}, {"fcntl", d.fcntl}},
        d.flock || d.fcntl ? FactState::kFine : FactState::kNote);
  const bool skewed = std::abs(d.clock_ahead) > kClockSkew;
  std::snprintf(text, sizeof(text),
                skewed ? "its files' clock is %.1f s %s ours" : "its files' clock is within 1 s of ours",
                std::abs(d.clock_ahead), d.clock_ahead < 0 ? "behind" : "ahead of");
  f.add("clock", text, d.clock_ahead, skewed ? FactState::kNote : FactState::kFine);
}

std::string coloured(const std::string& text, const char* code, DoctorColours colours) {
  return colours == DoctorColours::kTerminal ? str_cat("\033[", code, "m", text, "\033[0m") : text;
}

std::string state_text(FactState state, DoctorColours colours) {
  switch (state) {
    case FactState::kFine:
      return coloured("  ", "32", colours);
    case FactState::kNote:
      return coloured("! ", "33", colours);
    case FactState::kMissing:
      return coloured("- ", "31", colours);
  }
  return "";
}

}  // namespace

std::vector<Fact> facts(const BuildFacts& build, const MachineFacts& machine) {
  Facts f;
  add_build(f, build);
  add_host(f, machine);
  add_programs(f, machine);
  add_gpus(f, machine);
  add_folder(f, machine.folder);
  return std::move(f.all);
}

std::string doctor_text(const std::vector<Fact>& facts, const std::vector<Ability>& abilities,
                        DoctorColours colours) {
  std::string text, section;
  for (const Fact& fact : facts) {
    if (fact.section != section)
      text += str_cat(section.empty() ? "" : "\n", coloured(fact.section, "1", colours), "\n");
    section = fact.section;
    std::string name = fact.name;
    std::ranges::replace(name, '_', ' ');
    name.resize(std::max<size_t>(name.size() + 1, 15), ' ');
    text += str_cat("  ", state_text(fact.state, colours), name, fact.text, "\n");
  }
  std::set<std::string> told;  // the way out of each lack, once
  text += "\n" + coloured("what can run here", "1", colours) + "\n";
  for (const Ability& a : abilities) {
    text += str_cat("  ", a.can() ? coloured("yes", "32", colours) : coloured("no ", "31", colours), "  ",
                    a.name, "\n");
    for (const Lack& lack : a.lacks) {
      text += str_cat("         ", lack.what, "\n");
      if (told.insert(lack.what).second) text += str_cat("           ", lack.way_out, "\n");
    }
  }
  return text;
}

ordered_json doctor_json(const std::vector<Fact>& facts, const std::vector<Ability>& abilities) {
  ordered_json all;
  for (const Fact& fact : facts) all[fact.section][fact.name] = fact.data;
  for (const Ability& a : abilities) {
    ordered_json lacks = ordered_json::array();
    for (const Lack& lack : a.lacks) lacks.push_back({{"what", lack.what}, {"way_out", lack.way_out}});
    all["abilities"][a.key] = {{"name", a.name}, {"can", a.can()}, {"missing", lacks}};
  }
  return all;
}

}  // namespace pesc
