// Contractions in bf16: the weights of a point and the inputs are rounded to bf16 (to nearest
// even), their products are added in fp32; bias, scale, residual and activation stay fp32.
#pragma once

#include <memory>
#include <string>

#include "kernels.h"

namespace landscapex::program {

// Instructions that multiply bf16; `portable` rounds, and leaves the rest to the fp32 kernel.
// Each adds in an order of its own.
Bf16Kernel bf16_kernel();                // the one in use
bool set_bf16_kernel(const char* name);  // false: not built, or the processor lacks it
const char* bf16_kernel_name(Bf16Kernel kernel);
std::string bf16_kernels();  // all that can be used here, separated by commas

// Where a contraction finds its rounded inputs and weights. Taps are (channel, offset) pairs:
// inputs are stored position by position, two neighbouring channels of a sample beside each other,
// so that one rounded element serves all positions of a kernel, and the channels of neighbouring
// offsets follow each other without a gap:
//   inputs [position][pairs][lanes][2], weights [group][block][tile][rows][kTilePairs][2].
struct Bf16Layout {
  static constexpr int64_t kTilePairs = 16;  // pairs of taps in a tile, at most; rows of weights
  static constexpr int64_t kTileRows = 16;   // outputs in a tile, at most

  bool packed;                       // false: the portable kernel serves this contraction better
  int64_t input_elements;            // of the whole buffer: what the portable kernel rounds
  int64_t pairs;                     // of a position, the last ones zeros
  std::vector<int32_t> positions;    // [U]: elements of the input, relative to the group
  std::vector<int32_t> channels;     // [C]: relative to the position
  int64_t tile_pairs;                // in each tile
  std::vector<int32_t> tiles;        // [T]: first pair of each, relative to that of an output
  std::vector<int32_t> at;           // [P]: first pair of each output
  std::vector<int32_t> to;           // [P]
  std::vector<int32_t> residual_at;  // [P] or empty
  int64_t rows, blocks;              // of a tile; of a group
  std::vector<int32_t> weights;      // by packed entry: entry of the fp32 weights, or -1: zero

  int64_t input_floats(int64_t lanes) const {  // of scratch, for any kernel
    const int64_t rounded = packed ? static_cast<int64_t>(positions.size()) * pairs : 0;
    return (rounded > input_elements ? rounded : input_elements) * lanes;
  }
};

// For a contraction whose tables count elements.
std::shared_ptr<const Bf16Layout> bf16_layout(const Contract& step, int64_t input_elements);

inline bool uses_packed(const Contract& step, Bf16Kernel kernel) {
  return step.bf16->packed && kernel != Bf16Kernel::portable;
}

inline int64_t rounded_floats(const Contract& step, Bf16Kernel kernel) {  // of its weights
  return uses_packed(step, kernel) ? static_cast<int64_t>(step.bf16->weights.size()) / 2
                                   : step.groups * step.outputs * step.num_taps;
}

// The weights of a point as the kernel takes them.
LX_DECLARE_KERNEL(round_weights,
                  (const Contract& step, Bf16Kernel kernel, const float* weights, float* rounded),
                  (step, kernel, weights, rounded))
LX_DECLARE_KERNEL(run_contract_portable, (const Contract& step, const Frame& frame), (step, frame))

#if defined(LX_BF16_AVX512)
namespace avx512 {
void run_contract_bf16(const Contract& step, const Frame& frame);
}
#endif
#if defined(LX_BF16_AMX)
namespace avx512 {
void run_contract_amx(const Contract& step, const Frame& frame);
}
#endif

void run_contract_rounded(const Contract& step, const Frame& frame);

}  // namespace landscapex::program
