// The CUDA library: its operators register themselves; this is what it can say about itself.
#include "common.h"

namespace landscapex {
namespace {
std::string cuda_architectures() { return LX_CUDA_ARCHITECTURES; }
}  // namespace
}  // namespace landscapex

STABLE_TORCH_LIBRARY_IMPL(landscapex, CompositeExplicitAutograd, m) {
  m.impl("cuda_architectures", TORCH_BOX(&landscapex::cuda_architectures));
}
