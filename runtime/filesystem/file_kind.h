// What the first bytes of a file say about its kind. Every reader looks at them once before it parses, so
// that a Git LFS pointer, a web page or an archive is called by its name instead of being a syntax error.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace pesc {

// What the reader needs.
enum class FileUse {
  kJson,           // one JSON document
  kRows,           // JSON Lines, or a JSON array of rows
  kSafetensors,    // weights
  kSentencePiece,  // tokenizer.model
  kManifest,       // of a checkpoint
  kText,           // protobuf text
  kTemplate,       // a chat template
  kHostfile,       // of `pesc launch`
};

// As many bytes from the start of a file as `other_kind` looks at; a shorter file gives all it has.
inline constexpr size_t kFirstBytes = 512;

// How rows are made of a Parquet file, in one line.
inline constexpr const char* kParquetToRows =
    "make JSON Lines of it (pip install pyarrow): python3 -c 'import json, sys, pyarrow.parquet as p; "
    "[print(json.dumps(row, default=str)) for part in p.ParquetFile(sys.argv[1]).iter_batches() for row in "
    "part.to_pylist()]' FILE.parquet > FILE.jsonl";

// What the file is and what to do about it, when its first bytes show that it is not for `use`: "is a Git LFS
// pointer, not the file itself; run `git lfs pull` in its folder". Empty when they do not show that: the file
// may still be wrong. `first` is empty for an empty file only.
[[nodiscard]] std::string other_kind(std::string_view first, FileUse use);

// Throws DataError "PATH: is ..." where `other_kind` finds something.
void check_first_bytes(std::string_view first, const std::string& path, FileUse use);

// `text` less a UTF-8 byte order mark at its start, which JSON and protobuf text may carry.
[[nodiscard]] std::string_view without_byte_order_mark(std::string_view text);

// Says of a symbolic link at `path` that nothing is where it leads, or that it leads back to itself: "is a
// dangling symbolic link, to X, where nothing is". Empty for everything else.
[[nodiscard]] std::string dead_link(const std::string& path);

}  // namespace pesc
