#include "gaussian.h"

namespace landscapex::cuda {
namespace {

constexpr int kThreads = 256;

// One thread makes the two numbers of one Philox block. The first and the last block of a range may
// have one number inside.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    gaussian_kernel(const __grid_constant__ GaussianArgs args) {
  T* out = static_cast<T*>(args.out);
  const uint64_t first = args.offset / 2, num = static_cast<uint64_t>(args.num);
  const uint64_t blocks = args.num == 0 ? 0 : (args.offset + num - 1) / 2 - first + 1;
  const uint64_t step = uint64_t{gridDim.x} * kThreads;
  for (uint64_t b = uint64_t{blockIdx.x} * kThreads + threadIdx.x; b < blocks; b += step) {
    const Normals pair = normal_pair(first + b, args.stream, args.key);
    const uint64_t index = 2 * (first + b);
    if (index >= args.offset) out[index - args.offset] = static_cast<T>(pair.z0);
    if (index + 1 - args.offset < num) out[index + 1 - args.offset] = static_cast<T>(pair.z1);
  }
}

}  // namespace

cudaError_t gaussian(const GaussianArgs& args, cudaStream_t stream) {
  if (args.num == 0) return cudaSuccess;  // no empty grids
  const int64_t want = args.num / (2 * kThreads) + 1;
  const unsigned grid = static_cast<unsigned>(want < 65536 ? want : 65536);
  if (args.dtype == Dtype::kFloat64) {
    launch(gaussian_kernel<double>, grid, kThreads, 0, stream, args);
  } else {
    launch(gaussian_kernel<float>, grid, kThreads, 0, stream, args);
  }
  return cudaGetLastError();
}

}  // namespace landscapex::cuda
