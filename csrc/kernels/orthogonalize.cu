#include "orthogonalize.h"

namespace landscapex::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * 32;
constexpr unsigned kAllLanes = 0xffffffffu;
static_assert(kLanes == 32, "a lane of a sum is a lane of a warp");

// Sum over the warp, the same in every lane: the tree of lanes.h.
__device__ __forceinline__ double warp_sum(double value) {
  for (int half = kLanes / 2; half > 0; half /= 2) value += __shfl_xor_sync(kAllLanes, value, half);
  return value;
}

// A chunk of w, in float64. Not in the template below: compilers of the host put shared arrays of
// templates where the emulation does not see them.
__device__ double* shared_chunk() {
  __shared__ double wide[kDotChunk];
  return wide;
}

// A block does a chunk. With `take`, its threads first take `found` out of the entries of w; with
// `dots`, its warps then take the inner products, a row each, of what is left.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    chunk_kernel(const __grid_constant__ OrthogonalizeArgs args, bool take, bool dots) {
  double* wide = shared_chunk();
  const int64_t begin = blockIdx.x * kDotChunk, left = args.num_params - begin;
  const int size = static_cast<int>(left < kDotChunk ? left : kDotChunk);
  T* w = static_cast<T*>(args.w) + begin;
  const T* q = static_cast<const T*>(args.basis) + begin;
  for (int i = threadIdx.x; i < size; i += kThreads) {
    double value = w[i];
    if (take) {
      for (int64_t k = 0; k < args.num_rows; ++k)
        value -= args.found[k] * static_cast<double>(q[k * args.num_params + i]);
      const T rounded = static_cast<T>(value);
      w[i] = rounded;
      value = rounded;
    }
    wide[i] = value;
  }
  if (!dots) return;
  __syncthreads();
  const int lane = threadIdx.x % 32;
  const int64_t chunks = num_chunks(args.num_params);
  for (int64_t k = threadIdx.x / 32; k < args.num_rows; k += kWarps) {
    const T* row = q + k * args.num_params;
    double sum = 0;
    for (int i = lane; i < size; i += kLanes) sum += wide[i] * static_cast<double>(row[i]);
    sum = warp_sum(sum);
    if (lane == 0) args.sums[k * chunks + blockIdx.x] = sum;
  }
}

// A warp adds what the chunks of one row have.
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const __grid_constant__ OrthogonalizeArgs args, bool again) {
  const int lane = threadIdx.x % 32;
  const int64_t k = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (k >= args.num_rows) return;
  const int64_t chunks = num_chunks(args.num_params);
  double sum = 0;
  for (int64_t s = lane; s < chunks; s += kLanes) sum += args.sums[k * chunks + s];
  sum = warp_sum(sum);
  if (lane != 0) return;
  args.found[k] = sum;
  args.coefficients[k] = again ? args.coefficients[k] + sum : sum;
}

template <typename T>
cudaError_t launch_typed(const OrthogonalizeArgs& args, cudaStream_t stream) {
  const int64_t chunks = num_chunks(args.num_params), rows = (args.num_rows + kWarps - 1) / kWarps;
  if (chunks > 2147483647 || rows > 2147483647) return cudaErrorInvalidConfiguration;
  const auto pass = [&](bool take, bool dots) {
    if (chunks == 0) return;  // no empty grids
    launch(chunk_kernel<T>, static_cast<unsigned>(chunks), kThreads, 0, stream, args, take, dots);
  };
  const auto sum = [&](bool again) {
    launch(sum_kernel, static_cast<unsigned>(rows), kThreads, 0, stream, args, again);
  };
  pass(false, true);
  sum(false);
  pass(true, true);
  sum(true);
  pass(true, false);
  return cudaGetLastError();
}

}  // namespace

cudaError_t orthogonalize(const OrthogonalizeArgs& args, cudaStream_t stream) {
  if (args.num_rows == 0) return cudaSuccess;
  return args.dtype == Dtype::kFloat64 ? launch_typed<double>(args, stream)
                                       : launch_typed<float>(args, stream);
}

}  // namespace landscapex::cuda
