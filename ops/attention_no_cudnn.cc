// A build without cuDNN: see ops/attention_library.h.
#include "ops/attention_library.h"
#include "ops/core/cuda.h"

namespace pesc::cuda {

bool library_attention_built() {
  return false;
}
bool library_attention_forward(Stream&, const AttentionForward&, Arena&) {
  return false;
}
bool library_attention_backward(Stream&, const AttentionBackward&, Arena&) {
  return false;
}
int64_t library_attention_scratch_bytes(const AttentionShape& shape, int64_t tokens, int64_t length) {
  return built() ? 0 : library_workspace_bytes(shape, tokens, length);
}
std::string library_attention_report(const Stream&) {
  return "own kernels: this pesc was built without cuDNN";
}

}  // namespace pesc::cuda
