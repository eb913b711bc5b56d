// pesc inspect: shows the contents of a checkpoint, verifies its bytes, and compares two checkpoints. One
// rank, no experiment file; tensors are read in bands.
//
// --checkpoint and --against name a step-N folder or a run directory. A run directory alone is listed; in a
// comparison it stands for its newest checkpoint that verifies. A comparison verifies both checkpoints first.
// Exit codes: 0; 1 when a compared tensor differs; 65 when a checkpoint is damaged.
#include <algorithm>
#include <cstdio>
#include <map>
#include <optional>

#include "configs/schema/manifest.pb.h"
#include "launcher/command_line.h"
#include "launcher/help.h"
#include "runtime/checkpoint/best_checkpoint.h"
#include "runtime/checkpoint/comparison.h"
#include "runtime/checkpoint/manifest.h"
#include "runtime/checkpoint/run_identity.h"
#include "runtime/checkpoint/store.h"
#include "runtime/text/printable.h"

namespace pesc {
namespace {

using Verdict = TensorComparison::Verdict;
constexpr int kDifferent = 1;

std::string size_text(int64_t bytes) {
  char text[64];
  if (bytes < 1 << 20) {
    std::snprintf(text, sizeof(text), "%lld bytes", static_cast<long long>(bytes));
  } else {
    std::snprintf(text, sizeof(text), "%lld bytes (%.1f MiB)", static_cast<long long>(bytes),
                  static_cast<double>(bytes) / (1 << 20));
  }
  return text;
}

std::string layout_text(const LoadedCheckpoint& c) {
  const int tp = std::max(1, c.state.tp);
  return str_cat(c.world, c.world == 1 ? " rank" : " ranks", ": dp ", c.world / tp, ", tp ", c.state.tp,
                 ", ep ", c.state.ep);
}

// Where the pieces of a tensor are: "shard-00000 whole", "shard-00001 rows 8-15".
std::string pieces_text(const proto::Manifest& manifest, const proto::ManifestTensor& t) {
  std::string text;
  for (const auto& p : t.pieces()) {
    const std::string& file = manifest.files(p.file()).name();
    text += str_cat(text.empty() ? "" : "; ", file.substr(0, file.find('.')));
    if (p.rows() == t.rows() && p.cols() == t.cols()) text += " whole";
    if (p.rows() != t.rows()) text += str_cat(" rows ", p.row(), '-', p.row() + p.rows() - 1);
    if (p.cols() != t.cols()) text += str_cat(" cols ", p.col(), '-', p.col() + p.cols() - 1);
  }
  return text;
}

void print_tensors(const proto::Manifest& manifest) {
  // A parameter and its moments mostly stand alike: one line for those that do.
  struct Line {
    std::string kinds;
    int64_t bytes = 0;
  };
  std::map<std::string, std::map<std::pair<std::string, std::string>, Line>> tensors;
  for (const auto& t : manifest.tensors()) {
    const std::string shape = str_cat('[', t.rows(), ", ", t.cols(), ']');
    Line& line = tensors[t.name()][{shape, pieces_text(manifest, t)}];
    line.kinds += str_cat(line.kinds.empty() ? "" : "+", kind_name(t.kind()));
    line.bytes += t.rows() * t.cols() * static_cast<int64_t>(sizeof(float));
  }
  size_t longest = 0;
  for (const auto& [name, lines] : tensors) longest = std::max(longest, printable(name, kUncut).size());
  const auto width = static_cast<int>(std::clamp<size_t>(longest, 6, 100));
  std::printf("\n%-*s %-14s %12s  %-26s %s\n", width, "tensor", "shape", "bytes", "kinds", "where");
  for (const auto& [name, lines] : tensors) {
    for (const auto& [key, line] : lines) {
      std::printf("%-*s %-14s %12lld  %-26s %s\n", width, printable(name, kUncut).c_str(), key.first.c_str(),
                  static_cast<long long>(line.bytes), line.kinds.c_str(), key.second.c_str());
    }
  }
}

void print_checkpoint(const LoadedCheckpoint& c, bool verified) {
  const CheckpointState& s = c.state;
  std::map<proto::TensorKind::Value, int64_t> elements;
  for (const auto& t : c.manifest->tensors()) elements[t.kind()] += t.rows() * t.cols();
  std::printf("checkpoint  %s\n", printable(c.directory, kUncut).c_str());
  std::printf("bytes       %s\n",
              verified ? "every one verified" : "not verified (--verify reads every one)");
  std::printf("step        %lld\n", static_cast<long long>(s.step));
  std::printf("launch id   %llu\n", static_cast<unsigned long long>(c.launch_id));
  std::printf("saved by    %s\n", layout_text(c).c_str());
  std::printf("data        %lld rows consumed, seed %llu\n", static_cast<long long>(s.consumed_samples),
              static_cast<unsigned long long>(s.seed));
  if (s.best)
    std::printf("best        step %lld, eval loss %.6g\n", static_cast<long long>(s.best->step),
                s.best->eval_loss);
  std::printf("base        %s\n",
              s.base_digest.empty()
                  ? "none (random initial weights)"
                  : printable(str_cat(s.base_path, ", digest ", s.base_digest), kUncut).c_str());
  for (const auto& [name, value] : s.versions)
    std::printf("version     %s %s\n", printable(name, kUncut).c_str(), printable(value, kUncut).c_str());
  for (const auto& [name, value] : s.extra)
    std::printf("extra       %s, %zu bytes\n", printable(name, kUncut).c_str(), value.size());
  std::printf("size        %s in %d files\n", size_text(c.bytes).c_str(), c.manifest->files_size());
  for (const auto& file : c.manifest->files())
    std::printf("            %s  %lld\n", file.name().c_str(), static_cast<long long>(file.size()));
  std::printf("tensors     %d:", c.manifest->tensors_size());
  for (const auto& [kind, n] : elements)
    std::printf(" %s %lld elements%s", kind_name(kind), static_cast<long long>(n),
                kind == elements.rbegin()->first ? "\n" : ",");
  if (elements.empty()) std::printf("\n");
  print_tensors(*c.manifest);
  std::printf("\nconfig\n");
  for (size_t begin = 0; begin < s.config_text.size();) {
    const size_t end = std::min(s.config_text.find('\n', begin), s.config_text.size());
    std::printf("  %s\n", printable(s.config_text.substr(begin, end - begin), kUncut).c_str());
    begin = end + 1;
  }
}

enum class Place { kCheckpoint, kRunDirectory };

Place place_of(FileSystem& files, const std::string& directory) {
  if (files.kind(directory) != FileKind::kDirectory)
    throw DataError(str_cat("'", directory, "' is not a folder; name a step-N folder or a run directory"));
  const size_t end = directory.find_last_not_of('/');
  const std::string path = directory.substr(0, end == std::string::npos ? 1 : end + 1);
  const std::string name = path.substr(path.rfind('/') + 1);
  const bool named = step_of_directory(name.substr(0, name.find('.'))).has_value();
  return named || files.exists(join_path(directory, kManifestName)) ? Place::kCheckpoint
                                                                    : Place::kRunDirectory;
}

int list_run_directory(FileSystem& files, Communicator& world, const std::string& directory) {
  std::vector<std::pair<int64_t, std::string>> found;  // newest first; then what is no checkpoint (yet)
  std::vector<std::string> others;
  const RunIdentity run = read_run_identity(files, directory);
  const std::optional<BestCheckpoint> best = read_best_mark(files, directory);
  for (const std::string& name : files.list(directory)) {
    if (const auto step = step_of_directory(name)) {
      if (const std::string why = why_no_checkpoint(files, join_path(directory, name)); !why.empty()) {
        std::printf("%-16s no checkpoint: %s\n", name.c_str(), why.c_str());
      } else {
        found.emplace_back(*step, name);
      }
    } else if (looks_like_checkpoint_name(name)) {
      std::printf("%-16s no checkpoint: no such name is given to one\n", printable(name, kUncut).c_str());
    } else if (step_of_directory(name.substr(0, name.find('.')))) {
      others.push_back(name);
    }
  }
  std::sort(found.rbegin(), found.rend());
  if (found.empty())
    throw DataError(
        str_cat("'", directory,
                "' holds no checkpoint; name a step-N folder or the run directory of a run that has saved"));
  std::string newest;
  int damaged = 0;
  for (const auto& [step, name] : found) {
    try {
      const LoadedCheckpoint c = open_checkpoint(files, world, join_path(directory, name));
      if (c.state.step != step)
        throw DataError(str_cat("checkpoint '", c.directory, "' is of step ", c.state.step,
                                ", and its name says another"));
      const bool of_this_run = continues(run, *c.manifest);
      char mark[64] = "";
      if (best && best->step == step)
        std::snprintf(mark, sizeof mark, ", best: eval loss %.6g", best->eval_loss);
      std::printf("%-16s verified  launch %llu, %s, %s%s%s\n", name.c_str(),
                  static_cast<unsigned long long>(c.launch_id), layout_text(c).c_str(),
                  size_text(c.bytes).c_str(), mark, of_this_run ? "" : ", of another run");
      if (newest.empty() && of_this_run) newest = name;
    } catch (const DataError& error) {
      std::printf("%-16s DAMAGED   %s\n", name.c_str(), printable(error.what(), kUncut).c_str());
      ++damaged;
    }
  }
  for (const std::string& name : others) {
    const char* what = name.find(".tmp.") != std::string::npos   ? "being written, or left over"
                       : name.find(".bad.") != std::string::npos ? "damaged and put aside"
                                                                 : "being removed, or left over";
    std::printf("%-16s %s\n", printable(name, kUncut).c_str(), what);
  }
  std::printf("%s\n",
              newest.empty() ? "nothing to resume from" : str_cat("a restart resumes from ", newest).c_str());
  if (damaged > 0)
    throw DataError(str_cat(damaged, " of ", found.size(), " checkpoints in '", directory, "' are damaged"));
  return 0;
}

// Verified.
LoadedCheckpoint open_for_comparison(FileSystem& files, Communicator& world, const std::string& directory) {
  if (place_of(files, directory) == Place::kCheckpoint) return open_checkpoint(files, world, directory);
  CheckpointStore store(files, directory, {});
  Discovery found = store.find_newest(world);
  for (const std::string& line : found.passed_over())
    std::fprintf(stderr, "%s\n", printable(line, kUncut).c_str());
  if (!found.checkpoint) throw DataError(str_cat("'", directory, "' holds no checkpoint that verifies"));
  return *found.checkpoint;
}

void print_differing_states(const LoadedCheckpoint& a, const LoadedCheckpoint& b) {
  const auto line = [](const char* what, const auto& x, const auto& y) {
    if (x != y)
      std::printf("%s: %s -> %s\n", what, printable(str_cat(x), kUncut).c_str(),
                  printable(str_cat(y), kUncut).c_str());
  };
  line("step", a.state.step, b.state.step);
  line("data rows consumed", a.state.consumed_samples, b.state.consumed_samples);
  line("seed", a.state.seed, b.state.seed);
  line("saved by", layout_text(a), layout_text(b));
  line("base digest", a.state.base_digest, b.state.base_digest);
  for (const auto& [name, value] : a.state.versions) {
    const auto other = b.state.versions.find(name);
    if (other != b.state.versions.end()) line(("version " + name).c_str(), value, other->second);
  }
  try {
    for (const std::string& d : experiment_differences(a.state.config_text, b.state.config_text))
      std::printf("config %s\n", printable(d, kUncut).c_str());
  } catch (const DataError& error) {  // written by another version of the schema
    std::printf("config: cannot be compared: %s\n", printable(error.what(), kUncut).c_str());
  }
}

int compare(FileSystem& files, Communicator& world, const std::string& first, const std::string& second) {
  const LoadedCheckpoint a = open_for_comparison(files, world, first);
  const LoadedCheckpoint b = open_for_comparison(files, world, second);
  std::printf("%s -> %s, every byte of both verified\n", printable(a.directory, kUncut).c_str(),
              printable(b.directory, kUncut).c_str());
  print_differing_states(a, b);
  Stream stream{Device{}};
  const std::vector<TensorComparison> all = compare_checkpoints(files, stream, a, b);
  struct Worst {
    double absolute = 0, relative = 0;
    int64_t tensors = 0, equal = 0;
  };
  std::map<std::string, Worst> worst;
  for (const TensorComparison& c : all) {
    Worst& w = worst[c.kind];
    ++w.tensors;
    const std::string label = printable(str_cat(c.name, " (", c.kind, ")"), kUncut);
    switch (c.verdict) {
      case Verdict::kEqual:
        ++w.equal;
        break;
      case Verdict::kDifferent:
        w.absolute = std::max(w.absolute, c.max_absolute);
        w.relative = std::max(w.relative, c.max_relative);
        std::printf("differs  %-66s %lld of %lld elements, max abs %.3e, max rel %.3e\n", label.c_str(),
                    static_cast<long long>(c.differing), static_cast<long long>(c.rows * c.cols),
                    c.max_absolute, c.max_relative);
        break;
      case Verdict::kOnlyInFirst:
      case Verdict::kOnlyInSecond:
        std::printf("only in the %s  %s [%lld, %lld]\n",
                    c.verdict == Verdict::kOnlyInFirst ? "first" : "second", label.c_str(),
                    static_cast<long long>(c.rows), static_cast<long long>(c.cols));
        break;
      case Verdict::kOtherShape:
        std::printf("differs  %s: shape [%lld, %lld] -> [%lld, %lld]\n", label.c_str(),
                    static_cast<long long>(c.rows), static_cast<long long>(c.cols),
                    static_cast<long long>(c.second_rows), static_cast<long long>(c.second_cols));
        break;
    }
  }
  bool equal = true;
  for (const auto& [kind, w] : worst) {
    equal = equal && w.equal == w.tensors;
    std::printf("%-10s  %lld of %lld tensors equal bit for bit", kind.c_str(),
                static_cast<long long>(w.equal), static_cast<long long>(w.tensors));
    if (w.equal != w.tensors) std::printf("; max abs %.3e, max rel %.3e", w.absolute, w.relative);
    std::printf("\n");
  }
  std::printf("%s\n", equal ? "EQUAL" : "DIFFERENT");
  return equal ? 0 : kDifferent;
}

}  // namespace

int run_inspect(const Process& process, const CommandLine& command) {
  Communicator& world = process.world;
  int code = 0;
  rethrow_agreed(world, [&] {
    if (world.size() != 1) throw UsageError("pesc inspect runs on one rank; start it without mpirun");
    if (command.checkpoint.empty())
      throw UsageError(str_cat("pesc inspect needs --checkpoint DIR, a step-N folder or a run directory",
                               see_help("inspect")));
    FileSystem& files = posix_filesystem();
    if (!command.against.empty()) {
      code = compare(files, world, command.checkpoint, command.against);
    } else if (place_of(files, command.checkpoint) == Place::kRunDirectory) {
      code = list_run_directory(files, world, command.checkpoint);
    } else {
      const LoadedCheckpoint checkpoint = command.verify ? open_checkpoint(files, world, command.checkpoint)
                                                         : peek_checkpoint(files, command.checkpoint);
      print_checkpoint(checkpoint, command.verify);
    }
  });
  return code;
}

}  // namespace pesc
