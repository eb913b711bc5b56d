#include "runtime/recovery/rank_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "ops/core/check.h"

namespace pesc {
namespace {

constexpr size_t kLineBytes = 256;

std::string heartbeat_path(const std::string& run_dir, int rank) {
  return str_cat(run_dir, "/heartbeats/rank-", rank);
}

std::string death_path(const std::string& run_dir, uint64_t launch_id, int rank) {
  return str_cat(run_dir, "/deaths/launch-", launch_id, "-rank-", rank);
}

Section section_of(int number) {
  return number >= 0 && number <= static_cast<int>(Section::kEval) ? static_cast<Section>(number)
                                                                   : Section::kSetup;
}

std::optional<std::string> read_small(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return std::nullopt;
  std::string text(1 << 16, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  return text;
}

std::optional<Heartbeat> parse_heartbeat(const std::string& line) {
  Heartbeat h;
  char host[65] = {};
  unsigned long long launch_id = 0, count = 0;
  long long step = 0;
  int section = 0;
  const int n = std::sscanf(line.c_str(),
                            "launch %llu rank %d host %64s pid %d count %llu section %d step %lld limit %lf.",
                            &launch_id, &h.rank, host, &h.pid, &count, &section, &step, &h.limit);
  if (n != 8 || line.size() != kLineBytes || line.back() != '\n') return std::nullopt;
  h.launch_id = launch_id;
  h.host = host;
  h.count = count;
  h.section = section_of(section);
  h.step = step;
  return h;
}

}  // namespace

std::string host_name() {
  char name[65] = {};
  return gethostname(name, sizeof(name) - 1) == 0 && name[0] != '\0' ? name : "?";
}

HeartbeatFile::HeartbeatFile(const std::string& run_dir, int rank) {
  const std::string path = heartbeat_path(run_dir, rank);
  std::error_code error;
  std::filesystem::create_directories(run_dir + "/heartbeats", error);
  if (error) throw IoError(str_cat("cannot create '", run_dir, "/heartbeats': ", error.message()));
  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (fd_ < 0) throw IoError(str_cat("cannot create '", path, "': ", std::strerror(errno)));
  struct stat info {};
  if (::fstat(fd_, &info) == 0 && info.st_size >= static_cast<off_t>(kLineBytes)) return;
  // Its room on a disk that is about to be full.
  const std::string blank(kLineBytes, ' ');
  const ssize_t n = ::pwrite(fd_, blank.data(), blank.size(), 0);
  const int why = n < 0 ? errno : ENOSPC;
  if (n == static_cast<ssize_t>(blank.size())) return;
  ::close(fd_);
  throw IoError(str_cat("cannot write '", path, "': ", std::strerror(why)));
}

HeartbeatFile::~HeartbeatFile() {
  ::close(fd_);
}

void HeartbeatFile::write(const Heartbeat& h) noexcept {
  char line[kLineBytes + 1];
  const int n = std::snprintf(
      line, sizeof(line), "launch %llu rank %d host %.64s pid %d count %llu section %d step %lld limit %.3f",
      static_cast<unsigned long long>(h.launch_id), h.rank, h.host.c_str(), h.pid,
      static_cast<unsigned long long>(h.count), static_cast<int>(h.section), static_cast<long long>(h.step),
      h.limit);
  if (n < 0 || n >= static_cast<int>(kLineBytes)) return;
  for (size_t i = static_cast<size_t>(n); i < kLineBytes; ++i) line[i] = ' ';
  line[kLineBytes - 1] = '\n';
  [[maybe_unused]] const ssize_t written = ::pwrite(fd_, line, kLineBytes, 0);
}

std::vector<Heartbeat> read_heartbeats(const std::string& run_dir, int ranks, uint64_t launch_id) {
  std::vector<Heartbeat> all;
  for (int r = 0; r < ranks; ++r) {
    const auto text = read_small(heartbeat_path(run_dir, r));
    const auto h = text ? parse_heartbeat(*text) : std::nullopt;
    if (h && h->launch_id == launch_id && h->rank == r) all.push_back(*h);
  }
  return all;
}

void write_death(const std::string& run_dir, const Death& d) noexcept {
  try {
    const nlohmann::json j = {{"launch", d.launch_id},
                              {"rank", d.rank},
                              {"host", d.host},
                              {"pid", d.pid},
                              {"section", static_cast<int>(d.section)},
                              {"section_name", section_name(d.section)},
                              {"step", d.step},
                              {"exit_code", d.exit_code},
                              {"error", d.error.substr(0, 4096)}};
    std::filesystem::create_directory(run_dir + "/deaths");  // a run directory that was removed stays so
    std::ofstream out(death_path(run_dir, d.launch_id, d.rank), std::ios::trunc);
    out << j.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
  } catch (const std::exception& e) {
    std::fprintf(stderr, "pesc: rank %d could not write its cause of death: %s\n", d.rank, e.what());
  }
}

std::vector<Death> read_deaths(const std::string& run_dir, int ranks, uint64_t launch_id) {
  std::vector<Death> all;
  for (int r = 0; r < ranks; ++r) {
    const auto text = read_small(death_path(run_dir, launch_id, r));
    if (!text) continue;
    const nlohmann::json j = nlohmann::json::parse(*text, nullptr, false);
    if (!j.is_object()) continue;
    try {
      all.push_back({launch_id, r, j.at("host"), j.at("pid"), section_of(j.at("section")), j.at("step"),
                     j.at("exit_code"), j.at("error")});
    } catch (const nlohmann::json::exception&) {
      continue;  // cut off while it was written
    }
  }
  return all;
}

}  // namespace pesc
