#include "runtime/routing_record.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <tuple>

#include "ops/core/check.h"
#include "runtime/checkpoint/run_identity.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr size_t kMostOfFirstLine = 200;
constexpr size_t kRunDigits = 32;

bool parse_first_line(const std::string& line, RoutingOwner& o) {
  std::istringstream in(line);
  std::string pesc, routing, version, run, launch, rank, of, top_k, more;
  in >> pesc >> routing >> version >> run >> o.run >> launch >> o.launch >> rank >> o.rank >> of >> o.ranks >>
      top_k >> o.top_k;
  const bool good = in && pesc == "pesc" && routing == "routing" && version == "1" && run == "run" &&
                    launch == "launch" && rank == "rank" && of == "of" && top_k == "top_k" && !(in >> more);
  return good && o.run.size() == kRunDigits && o.rank >= 0 && o.rank < o.ranks && o.top_k > 0;
}

}  // namespace

std::string routing_file_name(const RoutingOwner& o) {
  return str_cat("routing-", o.launch, "-", o.rank, ".bin");
}

std::string routing_first_line(const RoutingOwner& o) {
  return str_cat("pesc routing 1 run ", o.run, " launch ", o.launch, " rank ", o.rank, " of ", o.ranks,
                 " top_k ", o.top_k, "\n");
}

std::vector<RoutingFile> routing_files(const std::string& folder) {
  std::vector<RoutingFile> files;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename();
    if (!name.starts_with("routing-") || !name.ends_with(".bin")) continue;
    std::ifstream in(entry.path(), std::ios::binary);
    std::string begin(kMostOfFirstLine, '\0');
    in.read(begin.data(), static_cast<std::streamsize>(begin.size()));
    begin.resize(static_cast<size_t>(in.gcount()));
    const size_t end = begin.find('\n');
    const std::string known = "pesc routing ";
    if (end == std::string::npos && begin.size() < kMostOfFirstLine &&
        begin.substr(0, known.size()) == known.substr(0, begin.size()))
      continue;
    RoutingFile file{entry.path(), {}, end + 1};
    if (end == std::string::npos || !parse_first_line(begin.substr(0, end), file.owner)) {
      throw DataError(
          str_cat("'", printable(file.path),
                  "' does not say which run has recorded it (an older pesc, or damage); record again, in a "
                  "folder of its own"));
    }
    if (name != routing_file_name(file.owner)) {
      throw DataError(str_cat("'", printable(file.path), "' is what run ", printable(file.owner.run),
                              " recorded as ", routing_file_name(file.owner), "; give it that name again"));
    }
    files.push_back(file);
  }
  std::sort(files.begin(), files.end(), [](const RoutingFile& a, const RoutingFile& b) {
    return std::tie(a.owner.launch, a.owner.rank) < std::tie(b.owner.launch, b.owner.rank);
  });
  return files;
}

void check_routing_folder(const std::string& folder, const std::string& run) {
  const auto refuse = [&](const std::string& what) {
    throw UsageError(
        str_cat("debug.routing_record: '", folder, "' ", what, ", and this is run ", run,
                " (pesc.run in a run_dir names its run); name another folder, or remove that record"));
  };
  std::vector<RoutingFile> files;
  try {
    files = routing_files(folder);
  } catch (const DataError& error) {
    refuse(str_cat("holds another record: ", error.what()));
  }
  for (const RoutingFile& file : files) {
    if (file.owner.run != run)
      refuse(str_cat("holds the record of run ", printable(file.owner.run), " ('",
                     routing_file_name(file.owner), "')"));
  }
}

}  // namespace pesc
