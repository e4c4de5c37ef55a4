// A point of the landscape, written into the parameters of a model:
//
//     theta_i = center_i + c_0 d_0i + c_1 d_1i + ...
//
// Products and sums are float64, in this order and without fused multiply-add, rounded once to the
// dtype of the centre and then, for half types, to the dtype of the parameter. A product of zero is
// left out, so that an entry that no direction moves keeps every bit of the centre (-0.0 + 0.0
// would be +0.0).
//
// Source: Goodfellow, Vinyals, Saxe, "Qualitatively characterizing neural network optimization
// problems", ICLR 2015; Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018,
// equation (1).
#pragma once

#include "isa.h"
#include "numeric.h"

#if defined(LX_CUDA) || defined(LX_EMULATE_CUDA)
#include "launch.h"
#endif

namespace landscapex {

// Entries [start, start + numel) of the flat parameters. Tensors without entries are left out.
struct PerturbTensor {
  void* data;
  int64_t start;
  Dtype dtype;
};

// Pointers are trusted: the callers in csrc/ops/ check them.
struct PerturbArgs {
  const PerturbTensor* tensors;  // on the host, consecutive
  int64_t num_tensors;
  const void* center;         // [P]
  const void* directions;     // [K, P] row-major
  const double* coordinates;  // [K], on the host
  int64_t num_directions;     // K
  int64_t num_params;         // P, the sum of all numel
  Dtype dtype;                // of center and directions: kFloat32 or kFloat64
};

LX_INLINE double add_product(double sum, double coordinate, double direction) {
  const double product = coordinate * direction;
  const double moved = sum + product;
  return product == 0 ? sum : moved;
}

namespace cpu {
// Writes entries first <= i < last of the flat parameters.
LX_DECLARE_KERNEL(perturb, (const PerturbArgs& args, int64_t first, int64_t last),
                  (args, first, last))
}  // namespace cpu

#if defined(LX_CUDA) || defined(LX_EMULATE_CUDA)
namespace cuda {
// Enqueues on `stream` and returns the launch status; does not synchronise. `coordinates` on the
// device are read only if there are more than fit the launch (kPerturbCoordinates).
constexpr int64_t kPerturbCoordinates = 32;
cudaError_t perturb(const PerturbArgs& args, const double* device_coordinates, cudaStream_t stream);
}  // namespace cuda
#endif

}  // namespace landscapex
