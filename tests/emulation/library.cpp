// The schemas of landscapex_emulated::*, and the order in which the emulation runs. The operators
// register themselves, as in the CUDA library, but for CPU tensors.
#include "../../csrc/ops/common.h"
#include "../../csrc/ops/schemas.h"

namespace {

// Of threads and of blocks: 0 forward, 1 reverse, 2 random, 3 one warp ahead of the others.
void set_order(int64_t order, int64_t seed) {
  emul::order = static_cast<emul::Order>(order);
  emul::seed = static_cast<uint64_t>(seed) * 2 + 1;
}

}  // namespace

STABLE_TORCH_LIBRARY(landscapex_emulated, m) {
  for (const char* schema : landscapex::kSchemas) m.def(schema);
  m.def("set_order(int order, int seed) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(landscapex_emulated, CompositeExplicitAutograd, m) {
  m.impl("set_order", TORCH_BOX(&set_order));
}
