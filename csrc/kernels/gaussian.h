// Entries of a stream of standard normal numbers: out_i is number offset + i of (key, stream). The
// numbers are defined in normal.h.
#pragma once

#include "isa.h"
#include "normal.h"

#if defined(LX_CUDA) || defined(LX_EMULATE_CUDA)
#include "launch.h"
#endif

namespace landscapex {

// Pointers are trusted: the callers in csrc/ops/ check them.
struct GaussianArgs {
  void* out;        // [n]
  int64_t num;      // n
  uint64_t key;     // of Philox
  uint64_t stream;  // the high half of the counter
  uint64_t offset;  // of out[0] in the stream
  Dtype dtype;      // kFloat32 or kFloat64: computed in float64, cast last
};

namespace cpu {
// Writes first <= i < last.
LX_DECLARE_KERNEL(gaussian, (const GaussianArgs& args, int64_t first, int64_t last),
                  (args, first, last))
}  // namespace cpu

#if defined(LX_CUDA) || defined(LX_EMULATE_CUDA)
namespace cuda {
// Enqueues on `stream` and returns the launch status; does not synchronise.
cudaError_t gaussian(const GaussianArgs& args, cudaStream_t stream);
}  // namespace cuda
#endif

}  // namespace landscapex
