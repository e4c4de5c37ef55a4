// What does not depend on the instruction set.
#include "kernels.h"

namespace landscapex::program {

int64_t winograd_scratch(const Winograd& step) {
  // 36 numbers for each channel and tile, before and after the product, for vectors of up to 16
  constexpr int64_t kTile = 4, kGroup = 8, kWidest = 16;
  const int64_t per_row = step.width / kTile;
  const int64_t tiles = per_row < kGroup ? kGroup / per_row * per_row : per_row;
  return 36 * (step.inputs + step.outputs) * tiles * kWidest;
}

}  // namespace landscapex::program
