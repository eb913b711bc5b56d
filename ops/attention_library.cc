// What cuDNN's attention needs, which is known without it: see ops/attention_library.h.
#include "ops/attention_library.h"

#include <algorithm>

namespace pesc::cuda {
// The scores' gradients, the rows' sums, and room for dq, and with grouped heads dk and dv, in float32.
int64_t library_sequence_bytes(const AttentionShape& shape, int64_t length) {
  const int64_t l = (length + 127) / 128 * 128;
  const int64_t floats = shape.head_dim * (shape.q_heads == shape.kv_heads ? 1 : 3) + 2;
  return shape.q_heads * (l * l * 2 + l * floats * int64_t{sizeof(float)});
}

int64_t library_workspace_bytes(const AttentionShape& shape, int64_t tokens, int64_t length) {
  if (tokens == 0 || length == 0 || shape.head_dim % 8 != 0 || shape.head_dim > kLibraryMaxHeadDim) return 0;
  const int64_t one = library_sequence_bytes(shape, length);
  const int64_t all = (tokens + length - 1) / length * one;
  return std::max(one, std::min(all, kLibraryBackwardBytes)) + kLibrarySlackBytes;
}

}  // namespace pesc::cuda
