// Compiled once for each instruction set, with LX_ISA naming it.
#include "gaussian.h"

#include "float_environment.h"

namespace landscapex::cpu::LX_ISA {
namespace {

constexpr int kPairs = 64;  // made together, so that every step is a loop over lanes

void make_pairs(const GaussianArgs& args, uint64_t block, double* __restrict__ z0,
                double* __restrict__ z1) {
  for (int i = 0; i < kPairs; ++i) {
    const Normals pair = normal_pair(block + static_cast<uint64_t>(i), args.stream, args.key);
    z0[i] = pair.z0;
    z1[i] = pair.z1;
  }
}

template <typename T>
void write(const GaussianArgs& args, int64_t first, int64_t last) {
  T* out = static_cast<T*>(args.out);
  for (int64_t i = first; i < last;) {
    const uint64_t index = args.offset + static_cast<uint64_t>(i);
    double z[2][kPairs];
    make_pairs(args, index / 2, z[0], z[1]);
    for (int64_t j = static_cast<int64_t>(index % 2); j < 2 * kPairs && i < last; ++j, ++i)
      out[i] = static_cast<T>(z[j % 2][j / 2]);
  }
}

}  // namespace

void gaussian(const GaussianArgs& args, int64_t first, int64_t last) {
  const FloatEnvironment ieee;
  if (args.dtype == Dtype::kFloat64) {
    write<double>(args, first, last);
  } else {
    write<float>(args, first, last);
  }
}

}  // namespace landscapex::cpu::LX_ISA
