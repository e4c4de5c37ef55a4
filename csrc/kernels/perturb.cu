#include "perturb.h"
#include "search.h"

namespace landscapex::cuda {
namespace {

constexpr int kThreads = 256, kPerThread = 8;
constexpr int64_t kEntriesPerBlock = int64_t{kThreads} * kPerThread;

// Everything that a launch needs, in its arguments: no table is copied to the device.
template <int kCapacity>
struct PerturbLaunch {
  void* data[kCapacity];
  int64_t start[kCapacity + 1];  // flat index of the first entry; start[count] is the end
  double coordinates[kPerturbCoordinates];
  const double* more_coordinates;  // on the device, all of them; null if those above suffice
  const void* center;
  const void* directions;
  int64_t num_directions, num_params;
  int count;
  Dtype dtype[kCapacity];
};
constexpr int kFew = 200, kMany = 1800;
static_assert(sizeof(PerturbLaunch<kFew>) <= 4096, "fits the arguments of every architecture");
static_assert(sizeof(PerturbLaunch<kMany>) <= 32764, "fits the arguments of compute 7.0 and later");

template <typename C>
__device__ __forceinline__ void store(void* data, Dtype dtype, int64_t i, C value) {
  switch (dtype) {
    case Dtype::kFloat16:
      static_cast<Half*>(data)[i] = narrow<Half>(value);
      break;
    case Dtype::kBFloat16:
      static_cast<BFloat16*>(data)[i] = narrow<BFloat16>(value);
      break;
    case Dtype::kFloat32:
      static_cast<float*>(data)[i] = narrow<float>(value);
      break;
    case Dtype::kFloat64:
      static_cast<double*>(data)[i] = narrow<double>(value);
      break;
  }
}

// Each block writes consecutive entries, neighbours in neighbouring threads, whatever tensors they
// belong to; a thread looks its first tensor up and walks on from there.
template <typename C, int kCapacity>
__global__ void __launch_bounds__(kThreads)
    perturb_kernel(const __grid_constant__ PerturbLaunch<kCapacity> args) {
  const int64_t last = args.start[args.count];
  int64_t i = args.start[0] + blockIdx.x * kEntriesPerBlock + threadIdx.x;
  if (i >= last) return;
  const C* center = static_cast<const C*>(args.center);
  const C* directions = static_cast<const C*>(args.directions);
  int64_t t = last_not_after(args.start, args.count, i);
  for (int j = 0; j < kPerThread && i < last; ++j, i += kThreads) {
    while (i >= args.start[t + 1]) ++t;
    double sum = center[i];
    for (int64_t k = 0; k < args.num_directions; ++k) {
      const double c = args.more_coordinates ? args.more_coordinates[k] : args.coordinates[k];
      sum = add_product(sum, c, directions[k * args.num_params + i]);
    }
    store(args.data[t], args.dtype[t], i - args.start[t], static_cast<C>(sum));
  }
}

template <typename C, int kCapacity>
cudaError_t launch_some(const PerturbArgs& args, const double* device_coordinates, int64_t first,
                        cudaStream_t stream) {
  PerturbLaunch<kCapacity> packed = {};
  const int64_t left = args.num_tensors - first;
  packed.count = static_cast<int>(left < kCapacity ? left : kCapacity);
  for (int t = 0; t < packed.count; ++t) {
    const PerturbTensor& tensor = args.tensors[first + t];
    packed.data[t] = tensor.data;
    packed.start[t] = tensor.start;
    packed.dtype[t] = tensor.dtype;
  }
  const int64_t next = first + packed.count;
  const int64_t last = next < args.num_tensors ? args.tensors[next].start : args.num_params;
  packed.start[packed.count] = last;
  if (args.num_directions > kPerturbCoordinates) {
    packed.more_coordinates = device_coordinates;
  } else {
    for (int64_t k = 0; k < args.num_directions; ++k) packed.coordinates[k] = args.coordinates[k];
  }
  packed.center = args.center;
  packed.directions = args.directions;
  packed.num_directions = args.num_directions;
  packed.num_params = args.num_params;
  const int64_t blocks = (last - packed.start[0] + kEntriesPerBlock - 1) / kEntriesPerBlock;
  if (blocks > 2147483647) return cudaErrorInvalidConfiguration;
  launch(perturb_kernel<C, kCapacity>, static_cast<unsigned>(blocks), kThreads, 0, stream, packed);
  return cudaGetLastError();
}

template <typename C>
cudaError_t perturb_from(const PerturbArgs& args, const double* device_coordinates,
                         cudaStream_t stream) {
  if (args.num_tensors <= kFew) return launch_some<C, kFew>(args, device_coordinates, 0, stream);
  for (int64_t first = 0; first < args.num_tensors; first += kMany) {
    const cudaError_t status = launch_some<C, kMany>(args, device_coordinates, first, stream);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t perturb(const PerturbArgs& args, const double* device_coordinates,
                    cudaStream_t stream) {
  if (args.num_params == 0) return cudaSuccess;  // no empty grids
  return args.dtype == Dtype::kFloat64 ? perturb_from<double>(args, device_coordinates, stream)
                                       : perturb_from<float>(args, device_coordinates, stream);
}

}  // namespace landscapex::cuda
