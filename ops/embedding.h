// Token embedding over a slice of the vocabulary. T tokens, H hidden; the local table [V, H] starts at global
// id `vocab_begin`. Ids outside the slice give zero rows, which the owner's rows are added to by the caller's
// reduce-scatter, and no gradient. So do ids < 0 (padding).
#pragma once

#include <cstdint>

#include "ops/core/device.h"

namespace pesc {

// ids [1, T] I32 -> out [T, H] written.
void embedding_forward(Stream& stream, const Tensor& ids, const Tensor& table, int64_t vocab_begin,
                       const Tensor& out);
// dtable [V, H] F32 += the rows of dout [T, H], in token order.
void embedding_backward(Stream& stream, const Tensor& ids, const Tensor& dout, int64_t vocab_begin,
                        const Tensor& dtable);

}  // namespace pesc
