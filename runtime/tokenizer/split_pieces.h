// What becomes of a delimiter when a piece is split at it.
#pragma once

#include <cstddef>

#include "runtime/tokenizer/pre_tokenizer.h"

namespace pesc {

enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

// Takes the parts of a piece, delimiters and what lies between them, from left to right.
class SplitPieces {
 public:
  SplitPieces(const Piece& piece, SplitBehavior behavior, PieceSink& sink)
      : piece_(piece), behavior_(behavior), sink_(sink) {}
  // False when the sink wants no more.
  bool add(size_t begin, size_t end, bool delimiter) {
    const bool after_delimiter = previous_;
    previous_ = delimiter;
    switch (behavior_) {
      case SplitBehavior::kRemoved:
        return delimiter || give(begin, end);
      case SplitBehavior::kIsolated:
        return give(begin, end);
      case SplitBehavior::kContiguous:
        if (held_ && delimiter == after_delimiter) return extend(end);
        return hold(begin, end);
      case SplitBehavior::kMergedWithPrevious:
        if (held_ && delimiter && !after_delimiter) return extend(end);
        return hold(begin, end);
      case SplitBehavior::kMergedWithNext:
        break;
    }
    if (delimiter) return hold(begin, end);
    if (!held_) return give(begin, end);
    held_ = false;
    return give(begin_, end);
  }
  bool finish() { return !held_ || give(begin_, end_); }

 private:
  bool give(size_t begin, size_t end) { return begin == end || sink_.take(piece_.cut(begin, end)); }
  bool extend(size_t end) {
    end_ = end;
    return true;
  }
  bool hold(size_t begin, size_t end) {
    const bool more = finish();
    held_ = true;
    begin_ = begin;
    end_ = end;
    return more;
  }
  const Piece& piece_;
  SplitBehavior behavior_;
  PieceSink& sink_;
  bool previous_ = false;
  bool held_ = false;  // [begin_, end_) is not given yet
  size_t begin_ = 0;
  size_t end_ = 0;
};

}  // namespace pesc
