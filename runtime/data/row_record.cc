#include "runtime/data/row_record.h"

#include <algorithm>
#include <cstdio>
#include <sstream>

#include "ops/core/check.h"

namespace pesc {
namespace {

struct FileRecord {
  int64_t rows = 0;
  std::string digest, path;
};

std::vector<FileRecord> parse(const std::string& record) {
  std::vector<FileRecord> files;
  std::istringstream lines(record);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    FileRecord file;
    if (!(words >> file.rows >> file.digest) || words.get() != ' ' || !std::getline(words, file.path))
      throw DataError(str_cat("a record of training rows reads '", line.substr(0, 200),
                              "'; the checkpoint was not written by pesc, or was changed"));
    files.push_back(file);
  }
  return files;
}

}  // namespace

std::string row_record(const Dataset& dataset) {
  std::string text;
  for (const DatasetContent& file : dataset.content()) {
    char digest[20];
    std::snprintf(digest, sizeof digest, "%016llx", static_cast<unsigned long long>(file.digest));
    std::string path = file.path;
    for (char& c : path)
      if (c == '\n') c = '?';
    text += str_cat(file.rows, " ", digest, " ", path, "\n");
  }
  return text;
}

std::vector<std::string> row_differences(const std::string& before, const std::string& now) {
  const std::vector<FileRecord> a = parse(before);
  const std::vector<FileRecord> b = parse(now);
  std::vector<std::string> found;
  if (a.size() != b.size()) {
    found.push_back(str_cat("data.train: ", b.size(), " files instead of ", a.size()));
    return found;
  }
  const auto digests = [](const std::vector<FileRecord>& files) {
    std::vector<std::string> all;
    for (const FileRecord& file : files) all.push_back(file.digest);
    return all;
  };
  if (digests(a) != digests(b) && std::ranges::is_permutation(digests(a), digests(b))) {
    found.push_back("data.train: the same files in another order, which would change the order of the rows");
    return found;
  }
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].digest == b[i].digest && a[i].rows == b[i].rows) continue;
    const std::string how = a[i].rows == b[i].rows ? " rows, but others, or in another order"
                                                   : str_cat(" rows instead of ", a[i].rows);
    found.push_back(str_cat("data.train[", i, "].path: ", b[i].path, " has ", b[i].rows, how));
  }
  return found;
}

}  // namespace pesc
