// Weights as tensor cores take them: called by whoever forms the weights of a point.
#pragma once

#include "../kernels/ptx.cuh"
#include "contract_mma.h"

namespace landscapex::program::cuda {

// Planes of one point, to be written.
struct PlanesOut {
  void* data[2];
};

// Rounds the value of a weight into its planes, at the element that PlaneLayout::place() names.
__device__ __forceinline__ void store_plane(Math math, const PlanesOut& out, int64_t place,
                                            float value) {
  if (math == Math::kTf32) {
    static_cast<uint32_t*>(out.data[0])[place] = landscapex::cuda::ptx::round_to_tf32(value);
    return;
  }
  const BFloat16 high = narrow<BFloat16>(value);
  static_cast<BFloat16*>(out.data[0])[place] = high;
  if (math == Math::kBf16x3)  // the difference is exact
    static_cast<BFloat16*>(out.data[1])[place] = narrow<BFloat16>(value - widen(high));
}

}  // namespace landscapex::program::cuda
