// Contractions on tensor cores, on request: which steps take them, and how their weights lie.
//
// Arithmetic of a product (inputs and weights are rounded so; sums, and all that follows them, are
// fp32):
//   kBf16x3  both as a bf16 and the bf16 of what is left: high high + high low + low high, the
//            small ones first; about the accuracy of fp32. An infinity gives NaN, as the value does
//            that rounds to infinity (above 3.39e38).
//   kTf32    10 bits of mantissa, to nearest, ties away from zero
//   kBf16    7 bits of mantissa, to nearest, ties to even
// NaN stays NaN, and an infinity never gives a wrong finite number.
#pragma once

#include "device_steps.h"

namespace landscapex::program::cuda {

// Whether a device of this compute capability (its major number) can do it: mma.sync for bf16 and
// tf32 begins with 8.0.
inline bool supports(Math math, int major) { return math == Math::kFp32 || major >= 8; }

// A product is 16 outputs by 8 columns by 8 or 16 taps: smaller steps leave most of it idle, stay
// in fp32 in every mode, and have no planes. Sizes are those of one group.
inline bool takes_tensor_cores(int64_t outputs, int64_t taps) { return outputs >= 8 && taps >= 8; }

// Weights of one point in the order in which tensor cores read them: matrices of 8 outputs by 16
// bytes of taps, 128 bytes each, one after the other along the taps; then the next 8 outputs. What
// lies beyond the last output or tap is never read, and so may hold anything. Planes begin at
// multiples of 16 bytes, and so do those of the next point.
struct PlaneLayout {
  int64_t outputs, taps, matrices;    // M, R, matrices along the taps
  int64_t width;                      // taps of a matrix: 8 in bf16, 4 in tf32
  int64_t groups, planes;             // planes: 2 for high and low parts
  int64_t row_blocks, small, larger;  // of contract_order: their number, size, and how many of
                                      // them, the first ones, have one output more
  int64_t element_bytes() const { return 16 / width; }
  // Elements of a plane, for one point.
  int64_t elements() const { return groups * row_blocks * matrices * kRows * width; }

  // Where an entry of the packed weights, fewer than 2^32, lies in each plane, in elements.
  __host__ __device__ int64_t place(int64_t packed) const {
    const auto num_taps = static_cast<uint32_t>(taps), along = static_cast<uint32_t>(width);
    const auto of_group = static_cast<uint32_t>(outputs) * num_taps;
    const auto entry = static_cast<uint32_t>(packed);  // divisions of 64 bits are slow
    const uint32_t group = entry / of_group;
    uint32_t rest = entry % of_group;
    const uint32_t of_larger = static_cast<uint32_t>(larger * (small + 1)) * num_taps;
    const bool in_larger = rest < of_larger;
    if (!in_larger) rest -= of_larger;
    const auto rows = static_cast<uint32_t>(small) + (in_larger ? 1u : 0u);
    const uint32_t column = rest / rows;  // blocks follow each other, in them the taps
    const uint32_t block = column / num_taps, r = column % num_taps;
    const uint32_t first = in_larger ? 0u : static_cast<uint32_t>(larger * (small + 1));
    const uint32_t m = first + block * rows + rest % rows;
    const int64_t matrix = (group * row_blocks + m / kRows) * matrices + r / along;
    return (matrix * kRows + m % kRows) * width + r % along;
  }
};

inline PlaneLayout plane_layout(Math math, int64_t groups, int64_t outputs, int64_t taps) {
  PlaneLayout layout = {};
  layout.outputs = outputs;
  layout.taps = taps;
  layout.width = math == Math::kTf32 ? 4 : 8;
  layout.matrices = (taps + layout.width - 1) / layout.width;
  layout.groups = groups;
  layout.planes = math == Math::kBf16x3 ? 2 : 1;
  layout.row_blocks = (outputs + kRows - 1) / kRows;
  layout.small = outputs / layout.row_blocks;
  layout.larger = outputs % layout.row_blocks;
  return layout;
}

// The contraction in args.math, which is not kFp32, with weights from args.planes. The bits of a
// result depend on neither tiles, points nor lanes of the launch.
cudaError_t run_contract_mma(const ContractArgs& args, const Cells& cells, cudaStream_t stream);

}  // namespace landscapex::program::cuda
