// Compiled once for each instruction set, with LX_ISA naming it.
#include "kernels.h"
#include "simd.h"

namespace landscapex::program::LX_ISA {

void run_embedding(const Embedding& step, const Frame& frame) {
  constexpr int kGroup = 16;  // lanes whose rows of the table are read side by side
  const int64_t n = step.at.size(), width = step.width;
  const float* weight = frame.weights[step.weight];
  for (int64_t i = 0; i < n; ++i) {
    const int32_t* index = frame.indices[step.index] + step.at.data()[i] * frame.lanes;
    const int32_t* to = step.to.data() + i * width;
    for (int64_t lane = 0; lane < frame.lanes; lane += kGroup) {
      const float* rows[kGroup];
      for (int l = 0; l < kGroup; ++l) rows[l] = weight + index[lane + l] * width;
      for (int64_t d = 0; d < width; ++d) {
        float* out = frame.buffers[step.out] + to[d] * frame.lanes + lane;
        for (int l = 0; l < kGroup; ++l) out[l] = rows[l][d];
      }
    }
  }
}

}  // namespace landscapex::program::LX_ISA
