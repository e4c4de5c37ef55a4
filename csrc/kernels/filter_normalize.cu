#include "filter_normalize.h"

namespace landscapex::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32;
constexpr int kBlocksPerMultiprocessor = 8;  // 64 registers for each thread: none is spilled
constexpr unsigned kAllLanes = 0xffffffffu;
static_assert(kLanes == 32, "a segment is the work of a warp");

// Sum over the warp, the same in every lane: the tree of the header.
__device__ __forceinline__ double warp_sum(double value) {
  for (int half = kLanes / 2; half > 0; half /= 2) value += __shfl_xor_sync(kAllLanes, value, half);
  return value;
}

struct Sums {
  double direction, center;
};

// Adds what the warps of the block have found, in the order of the warps, to every thread's total;
// only the first `count` warps have something. Not a template: compilers of the host put shared
// arrays of templates where the emulation does not see them.
__device__ void add_warps(Sums mine, int64_t count, Sums* total) {
  __shared__ Sums warps[kWarps];
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = mine;
  __syncthreads();
  for (int w = 0; w < kWarps && w < count; ++w) {
    total->direction += warps[w].direction;
    total->center += warps[w].center;
  }
  __syncthreads();  // the next call overwrites them
}

// The segments of one group, dealt to the warps of its block in turn.
struct Segments {
  const FilterNormalizeArgs& args;
  int64_t s, end, r;

  __device__ Segments(const FilterNormalizeArgs& args_, int64_t f)
      : args(args_),
        s(args.segments[args.groups[f]] + threadIdx.x / 32),
        end(args.segments[args.groups[f + 1]]),
        r(args.groups[f]) {
    find_run();
  }
  __device__ bool valid() const { return s < end; }
  __device__ void advance() {
    s += kWarps;
    find_run();
  }
  __device__ const Run& run() const { return args.runs[r]; }
  __device__ int64_t first_entry() const { return (s - args.segments[r]) * kSegment; }
  __device__ int64_t end_entry() const {
    const int64_t entries = run().count * run().inner, full = first_entry() + kSegment;
    return full < entries ? full : entries;
  }

 private:
  __device__ void find_run() {
    while (s < end && args.segments[r + 1] <= s) ++r;
  }
};

// One block for each group and direction: the lengths of the group in the direction and in the
// centre in one pass, then the scaling. With no direction there is one block, for the centre.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    filter_normalize_kernel(const __grid_constant__ FilterNormalizeArgs args) {
  const int lane = threadIdx.x % 32;
  const T* center = static_cast<const T*>(args.center);
  for (int64_t k = blockIdx.y; k == 0 || k < args.num_directions; k += gridDim.y) {
    const bool has_direction = k < args.num_directions;
    T* d = static_cast<T*>(args.directions) + k * args.num_params;
    for (int64_t f = blockIdx.x; f < args.num_groups; f += gridDim.x) {
      Sums total = {0, 0};
      const int64_t num = args.segments[args.groups[f + 1]] - args.segments[args.groups[f]];
      Segments segment(args, f);
      for (int64_t base = 0; base < num; base += kWarps) {
        Sums mine = {0, 0};
        if (segment.valid()) {
          const int64_t end = segment.end_entry();
          for (int64_t e = segment.first_entry() + lane; e < end; e += kLanes) {
            const int64_t i = entry_of(segment.run(), e);
            const double theta = widen(center[i]);
            mine.center += theta * theta;
            if (!has_direction) continue;
            const double value = widen(d[i]);
            mine.direction += value * value;
          }
          segment.advance();
        }
        add_warps({warp_sum(mine.direction), warp_sum(mine.center)}, num - base, &total);
      }
      const double direction_norm = sqrt(total.direction), center_norm = sqrt(total.center);
      if (threadIdx.x == 0) {
        if (has_direction) args.norms[k * args.num_groups + f] = direction_norm;
        if (k == 0) args.norms[args.num_directions * args.num_groups + f] = center_norm;
      }
      if (!has_direction) continue;
      const double scale = scale_of(center_norm, direction_norm);
      for (Segments s(args, f); s.valid(); s.advance()) {
        const int64_t end = s.end_entry();
        for (int64_t e = s.first_entry() + lane; e < end; e += kLanes) {
          const int64_t i = entry_of(s.run(), e);
          d[i] = args.elementwise ? multiplied(d[i], center[i]) : scaled(d[i], scale);
        }
      }
    }
  }
}

template <typename T>
cudaError_t launch_typed(const FilterNormalizeArgs& args, cudaStream_t stream) {
  const int64_t x = args.num_groups < 2147483647 ? args.num_groups : 2147483647;
  const int64_t y = args.num_directions < 1       ? 1
                    : args.num_directions < 65535 ? args.num_directions
                                                  : 65535;
  launch(filter_normalize_kernel<T>, dim3(static_cast<unsigned>(x), static_cast<unsigned>(y)),
         kThreads, 0, stream, args);
  return cudaGetLastError();
}

}  // namespace

cudaError_t filter_normalize(const FilterNormalizeArgs& args, cudaStream_t stream) {
  if (args.num_groups == 0) return cudaSuccess;  // no empty grids
  switch (args.dtype) {
    case Dtype::kFloat16:
      return launch_typed<Half>(args, stream);
    case Dtype::kBFloat16:
      return launch_typed<BFloat16>(args, stream);
    case Dtype::kFloat32:
      return launch_typed<float>(args, stream);
    case Dtype::kFloat64:
      return launch_typed<double>(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace landscapex::cuda
