#include "launcher/launch_hostfile.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string_view>
#include <system_error>

#include "ops/core/check.h"
#include "runtime/filesystem/file_kind.h"
#include "runtime/recovery/rank_files.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

constexpr size_t kMostBytes = 4U << 20;
constexpr size_t kLongestName = 253;  // of the domain name system
constexpr int kMostSlots = 1000000;
constexpr auto kResolveFor = std::chrono::seconds(3);  // all names together

bool is_alnum(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

std::string lower(std::string text) {
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

// A word of the file, for a message.
std::string cited_word(const std::string& word) {
  return in_quotes(word, 60);
}

bool is_ipv4(const std::string& name) {
  in_addr address{};
  return ::inet_pton(AF_INET, name.c_str(), &address) == 1;
}

// mpirun takes a name up to its first dot.
std::string short_name(const std::string& name) {
  return lower(is_ipv4(name) ? name : name.substr(0, name.find('.')));
}

// Tells this machine's names and addresses from others, as mpirun does.
class LocalNames {
 public:
  LocalNames() {
    ifaddrs* all = nullptr;
    if (::getifaddrs(&all) != 0) return;
    for (const ifaddrs* a = all; a != nullptr; a = a->ifa_next) {
      if (a->ifa_addr == nullptr || a->ifa_addr->sa_family != AF_INET) continue;
      sockaddr_in in{};
      std::memcpy(&in, a->ifa_addr, sizeof(in));
      ours_.insert(in.sin_addr.s_addr);
    }
    ::freeifaddrs(all);
  }
  // "localhost", this host's name, or the name itself where it is another host's.
  std::string canonical(const std::string& name) {
    const std::string small = lower(name);
    if (small == "localhost" || small.starts_with("localhost.")) return "localhost";
    if (short_name(name) == short_name(host_name())) return host_name();
    in_addr address{};
    if (::inet_pton(AF_INET, name.c_str(), &address) == 1) {
      if (ntohl(address.s_addr) >> 24 == 127) return "localhost";
      return ours_.contains(address.s_addr) ? host_name() : name;
    }
    return is_local(name) ? host_name() : name;
  }

 private:
  bool is_local(const std::string& name) {
    const auto begin = std::chrono::steady_clock::now();
    if (spent_ > kResolveFor) return false;  // no name server: mpirun's agent may know the names nevertheless
    addrinfo want{};
    want.ai_family = AF_INET;
    addrinfo* found = nullptr;
    bool local = false;
    if (::getaddrinfo(name.c_str(), nullptr, &want, &found) == 0) {
      for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
        sockaddr_in in{};
        std::memcpy(&in, a->ai_addr, sizeof(in));
        local = local || ntohl(in.sin_addr.s_addr) >> 24 == 127 || ours_.contains(in.sin_addr.s_addr);
      }
      ::freeaddrinfo(found);
    }
    spent_ += std::chrono::steady_clock::now() - begin;
    return local;
  }
  std::set<in_addr_t> ours_;
  std::chrono::steady_clock::duration spent_{};
};

// One line, for messages.
struct HostfileLine {
  const std::string& path;
  int number;
  [[noreturn]] void refuse(const std::string& why) const {
    throw UsageError(str_cat("--hostfile ", path, ":", number, ": ", why));
  }
};

// "slots = 2" is "slots=2".
std::string join_equals(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const bool blank = c == ' ' || c == '\t';
    if (c == '=') {
      while (!out.empty() && out.back() == ' ') out.pop_back();
      out += c;
    } else if (!blank) {
      out += c;
    } else if (!out.empty() && out.back() != '=') {
      out += ' ';
    }
  }
  return out;
}

void check_name(const std::string& name, const HostfileLine& line) {
  const size_t colon = name.find(':');
  if (const size_t at = name.find('@'); at != std::string::npos) {
    line.refuse(str_cat(cited_word(name), " names a user; write '", name.substr(at + 1),
                        "' alone, and the user into ~/.ssh/config (Host ", name.substr(at + 1), ", User ",
                        name.substr(0, at), ")"));
  }
  if (name.find_first_of(",;") != std::string::npos)
    line.refuse(str_cat(cited_word(name), ": one host stands on a line; write each on a line of its own"));
  if (name.find_first_of("[]{}*?") != std::string::npos)
    line.refuse(str_cat(cited_word(name),
                        ": ranges of hosts are not expanded; write each host on a line of its own"
                        " (`scontrol show hostnames` expands Slurm's)"));
  if (colon != std::string::npos) {
    const std::string slots = name.substr(colon + 1);
    if (colon > 0 && !slots.empty() && slots.find_first_not_of("0123456789") == std::string::npos &&
        name.find(':', 0) == name.rfind(':')) {
      line.refuse(str_cat(cited_word(name), " is not how a hostfile gives slots; write '",
                          name.substr(0, colon), " slots=", slots, "'"));
    }
    line.refuse(
        str_cat(cited_word(name), " is no host name; instead of an IPv6 address write the host's name"));
  }
  if (name.find('=') != std::string::npos)
    line.refuse(str_cat(cited_word(name), ": a line begins with the name of a host; write 'name slots=N'"));
  if (name[0] == '^' || name[0] == '+')
    line.refuse(
        str_cat(cited_word(name), ": hosts are not excluded or counted here; list those to use by name"));
  if (name[0] == '/') line.refuse(str_cat(cited_word(name), " is no host name; comments begin with #"));
  const bool good = std::all_of(name.begin(), name.end(),
                                [](char c) { return is_alnum(c) || c == '.' || c == '-' || c == '_'; });
  if (!good || !is_alnum(name[0]) || name.size() > kLongestName)
    line.refuse(str_cat(cited_word(name), " is no host name (letters, digits, dots and dashes)"));
}

void take_keyword(const std::string& word, Host& host, const HostfileLine& line) {
  const size_t equals = word.find('=');
  const std::string key = word.substr(0, equals);
  const std::string example = str_cat("; write '", host.name, " slots=N'");
  if (equals == std::string::npos) {
    if (key.find_first_not_of("0123456789") == std::string::npos)
      line.refuse(str_cat(cited_word(word), " is no keyword; write '", host.name, " slots=", word, "'"));
    line.refuse(str_cat(cited_word(word), " is no keyword with a value", example));
  }
  const bool slots = key == "slots" || key == "cpu" || key == "count";
  const bool most = key == "max_slots" || key == "max-slots" || key == "slots_max" || key == "slots-max";
  if (!slots && !most) {
    line.refuse(str_cat("the keyword ", cited_word(key), " is not known", example,
                        " (and max_slots=M where more than N may run)"));
  }
  int& field = slots ? host.slots : host.max_slots;
  if (field != 0) line.refuse(str_cat("'", key, "' is given twice for host ", host.name, "; leave one out"));
  const char* last = word.data() + word.size();
  const auto [end, error] = std::from_chars(word.data() + equals + 1, last, field);
  if (error != std::errc() || end != last || field < 1 || field > kMostSlots)
    line.refuse(str_cat(cited_word(word), " is no number of slots", example));
}

// The bytes of the file, where they are text in lines.
std::string read_text(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored))
    throw UsageError(str_cat("--hostfile ", path, " is a folder; name a file with one host a line"));
  // A FIFO would wait for a writer, and is empty for the second reader.
  if (std::filesystem::exists(path, ignored) && !std::filesystem::is_regular_file(path, ignored))
    throw UsageError(
        str_cat("--hostfile ", path, " is not a regular file; name a text with one host a line"));
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  if (!in) throw UsageError(str_cat("--hostfile ", path, " cannot be read: ", std::strerror(errno)));
  std::string text(kMostBytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  if (text.size() > kMostBytes)
    throw UsageError(
        str_cat("--hostfile ", path, " is too long for a list of hosts; name a file with one host a line"));
  const HostfileLine first{path, 1};
  if (text.starts_with("\xef\xbb\xbf"))
    first.refuse("the file begins with a byte order mark; save it as UTF-8 without one");
  // Of an empty file the caller says that it names no host.
  if (const std::string kind = other_kind(std::string_view(text).substr(0, kFirstBytes), FileUse::kHostfile);
      !text.empty() && !kind.empty()) {
    first.refuse(str_cat("the file ", kind));
  }
  if (text.find('\0') != std::string::npos)
    first.refuse("the file is binary, and a hostfile is text with one host a line; give the right file");
  return text;
}

}  // namespace

std::vector<Host> read_hostfile(const std::string& path) {
  std::istringstream in(read_text(path));
  std::vector<Host> hosts;
  LocalNames names;
  int number = 0;
  for (std::string text; std::getline(in, text);) {
    const HostfileLine line{path, ++number};
    if (text.find('\r') != std::string::npos)
      line.refuse(str_cat("the line ends as on Windows (CR LF); run: sed -i 's/\\r$//' ", path));
    std::istringstream words(join_equals(text.substr(0, text.find('#'))));
    Host host;
    if (!(words >> host.name)) continue;
    check_name(host.name, line);
    for (std::string word; words >> word;) take_keyword(word, host, line);
    if (host.max_slots > 0 && host.slots > host.max_slots)
      line.refuse(str_cat("max_slots=", host.max_slots, " is below slots=", host.slots));
    const std::string written = host.name;
    host.name = names.canonical(host.name);
    host.line = number;
    const auto same = [&](const Host& h) {
      return short_name(h.name) == short_name(host.name) || (is_this_host(h.name) && is_this_host(host.name));
    };
    const auto known = std::find_if(hosts.begin(), hosts.end(), same);
    if (known == hosts.end()) {
      host.bare_lines = host.slots == 0 && host.max_slots == 0 ? 1 : 0;
      hosts.push_back(host);
      continue;
    }
    if (known->bare_lines == 0 || host.slots != 0 || host.max_slots != 0) {
      const int slots = std::max(1, host.slots) + std::max(1, known->slots);
      line.refuse(str_cat("'", written, "' is the same host as '", known->name, "' on line ", known->line,
                          "; write it once, with slots=", slots, " where you mean both"));
    }
    ++known->bare_lines;
  }
  for (Host& h : hosts) {
    if (h.bare_lines > 1) h.slots = h.bare_lines;
  }
  if (hosts.empty())
    throw UsageError(str_cat("--hostfile ", path, ":", std::max(1, number),
                             ": the file names no host; write 'name slots=N'"));
  return hosts;
}

std::string hostfile_text(const std::vector<Host>& hosts) {
  std::string text;
  for (const Host& h : hosts) {
    text += h.name;
    if (h.slots > 0) text += str_cat(" slots=", h.slots);
    if (h.max_slots > 0) text += str_cat(" max_slots=", h.max_slots);
    text += '\n';
  }
  return text;
}

void check_slots(const std::string& path, const std::vector<Host>& hosts, int ranks) {
  int64_t slots = 0;
  for (const Host& h : hosts) {
    if (h.slots < 1 && h.max_slots < 1) return;  // not said: mpirun asks the host
    slots += h.slots > 0 ? h.slots : h.max_slots;
  }
  if (slots >= ranks) return;
  const HostfileLine last{path, hosts.back().line};
  last.refuse(str_cat("the hostfile has ", slots, " slots on ", hosts.size(), " hosts, too few for -n ",
                      ranks, "; raise slots= (and max_slots=) or add hosts, or ask for fewer ranks"));
}

}  // namespace pesc
