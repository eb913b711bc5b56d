// Token embedding over a slice of the vocabulary. T tokens, V rows of the local table that start at global id
// `vocab_begin`, H hidden. Ids outside the slice give zero rows (their owner adds them) and no gradient; so
// do ids < 0.
#pragma once

#include <cstdint>

#include "ops/core/device.h"

namespace pesc {

// ids [1, T] I32 -> out [T, H] written.
void embedding_forward(Stream& stream, const Tensor& ids, const Tensor& table, int64_t vocab_begin,
                       const Tensor& out);
// dtable [V, H] += the rows of dout [T, H], in token order.
void embedding_backward(Stream& stream, const Tensor& ids, const Tensor& dout, int64_t vocab_begin,
                        const Tensor& dtable);

}  // namespace pesc
