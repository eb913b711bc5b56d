// Where dense weights come from, seen from the model: named tensors of which a rank reads only its own slice.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "model/frozen_linear.h"
#include "ops/core/check.h"
#include "parallel/shard_spec.h"

namespace pesc {

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // The number of bytes that reads have taken from the source so far.
  [[nodiscard]] virtual int64_t bytes_read() const = 0;
  [[nodiscard]] virtual bool has(const std::string& name) const = 0;
  // Reads the piece of tensor `piece.name` into host memory `to` as float32, contiguous [piece.rows,
  // piece.cols]; its replicas do not matter. The tensor must have the global shape of the piece (a vector is
  // [1, global_cols], whatever its rank in the file). Throws DataError naming the tensor, file and both
  // shapes otherwise.
  virtual void read(const ShardSpec& piece, float* to) = 0;
  // Writes the codes and scales of the piece, in the quantised format of `to`, where the source has them; else it
  // returns false, and whoever asks quantises what read() gives.
  [[nodiscard]] virtual bool write_quantized(Stream& /*stream*/, const ShardSpec& /*piece*/,
                                             const FrozenLinear& /*to*/) {
    return false;
  }
  // The format of a tensor that the source holds quantised; read() dequantises it. Absent: it holds values.
  [[nodiscard]] virtual std::optional<FrozenFormat> quantized(const std::string& /*name*/) const {
    return std::nullopt;
  }
  // Writes codes and scales of the piece, as the source has them, to `to`: [piece.rows, piece.cols] in host
  // memory, of the format that quantized() says. Columns behind its last are left as they are. Throws DataError
  // as read() does.
  virtual void read_codes(const ShardSpec& piece, const FrozenLinear& to);
};

inline void WeightSource::read_codes(const ShardSpec& piece, const FrozenLinear& /*to*/) {
  throw InternalError(str_cat(piece.name, " is not quantised"));
}

}  // namespace pesc
