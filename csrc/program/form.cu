#include <algorithm>

#include "../kernels/perturb.h"
#include "../kernels/search.h"
#include "contract_mma.cuh"
#include "form.h"

namespace landscapex::program::cuda {
namespace {

constexpr int kAtOnce = 4;  // neighbouring entries of a thread: 16 bytes
constexpr int kMostPlanes = 160;

// Everything that a launch needs, in its arguments: no table is copied to the device.
struct FormLaunch {
  FormArgs args;
  int64_t begin[kMostPlanes];
  PlaneTarget planes[kMostPlanes];
};
static_assert(sizeof(FormLaunch) <= 32764, "fits the arguments of compute 7.0 and later");

__device__ __forceinline__ void round_into(const PlaneTarget& target, Math math, int64_t entry,
                                           float value) {
  if (entry >= target.end) return;
  PlanesOut out;
  for (int p = 0; p < 2; ++p)
    out.data[p] = static_cast<char*>(target.data[p]) + blockIdx.y * target.per_point;
  store_plane(math, out, target.layout.place(entry - target.begin), value);
}

__global__ void __launch_bounds__(kThreads) form_kernel(const __grid_constant__ FormLaunch given) {
  const FormArgs& args = given.args;
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kAtOnce;
  if (i >= args.size) return;
  const float* sets = args.sets + blockIdx.y * args.per_point;
  const double* coordinates = args.coordinates + blockIdx.y * (args.num_sets - 1);
  const float4 center = *reinterpret_cast<const float4*>(sets + i);
  double sums[kAtOnce] = {center.x, center.y, center.z, center.w};
  for (int64_t k = 1; k < args.num_sets; ++k) {
    const double c = coordinates[k - 1];
    const float4 d = *reinterpret_cast<const float4*>(sets + k * args.size + i);
    sums[0] = add_product(sums[0], c, d.x);
    sums[1] = add_product(sums[1], c, d.y);
    sums[2] = add_product(sums[2], c, d.z);
    sums[3] = add_product(sums[3], c, d.w);
  }
  const float4 rounded = {static_cast<float>(sums[0]), static_cast<float>(sums[1]),
                          static_cast<float>(sums[2]), static_cast<float>(sums[3])};
  if (args.formed != nullptr)
    *reinterpret_cast<float4*>(args.formed + blockIdx.y * args.size + i) = rounded;
  if (args.num_planes == 0 || i < given.begin[0]) return;
  const PlaneTarget& target = given.planes[last_not_after(given.begin, args.num_planes, i)];
  round_into(target, args.math, i, rounded.x);
  round_into(target, args.math, i + 1, rounded.y);
  round_into(target, args.math, i + 2, rounded.z);
  round_into(target, args.math, i + 3, rounded.w);
}

__global__ void __launch_bounds__(kThreads) fill_kernel(const __grid_constant__ FillArgs args) {
  float* out = address(args.buffer, this_cell());
  const Share share = this_share();
  for (int64_t k = 0; k < args.num_sets; ++k)
    for (int64_t i = share.first; i < args.floats; i += share.stride)
      out[k * args.per_set + i] = k == 0 ? args.value : 0.0f;
}

__global__ void __launch_bounds__(kThreads)
    copy_kernel(const __grid_constant__ CopyArgs args, const __grid_constant__ Cells cells) {
  const Reader from(args.from, cells, this_cell());
  float* to = address(args.to, this_cell());
  const Share share = this_share();
  for (int64_t i = share.first; i < args.count * args.lanes; i += share.stride)
    to[i] = from(args.elements[i / args.lanes] * args.lanes + i % args.lanes);
}

__global__ void __launch_bounds__(kThreads)
    collect_kernel(const __grid_constant__ CollectArgs args) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x,
                of_tile = args.points * args.num_terms;
  if (i >= of_tile) return;
  for (int64_t t = 0; t < args.tiles; ++t)
    args.totals[args.owner[t] * args.most_points * args.num_terms + i] +=
        args.terms[t * of_tile + i];
}

}  // namespace

cudaError_t form(const FormArgs& args, cudaStream_t stream) {
  if (args.size == 0 || args.points == 0) return cudaSuccess;  // no empty grids
  const int64_t each = int64_t{kThreads} * kAtOnce;
  const dim3 grid(static_cast<unsigned>((args.size + each - 1) / each),
                  static_cast<unsigned>(args.points));
  FormLaunch packed = {};
  int64_t first = 0;
  do {  // once, unless there are more planes than fit
    packed.args = args;
    packed.args.planes = nullptr;
    packed.args.num_planes = std::min<int64_t>(kMostPlanes, args.num_planes - first);
    for (int64_t p = 0; p < packed.args.num_planes; ++p) {
      packed.planes[p] = args.planes[first + p];
      packed.begin[p] = packed.planes[p].begin;
    }
    launch(form_kernel, grid, kThreads, 0, stream, packed);
    first += packed.args.num_planes;
  } while (first < args.num_planes);
  return cudaGetLastError();
}

cudaError_t fill(const FillArgs& args, const Cells& cells, cudaStream_t stream) {
  launch(fill_kernel, grid_of(cells, blocks_for(args.floats, 8)), kThreads, 0, stream, args);
  return cudaGetLastError();
}

cudaError_t copy(const CopyArgs& args, const Cells& cells, cudaStream_t stream) {
  launch(copy_kernel, grid_of(cells, blocks_for(args.count * args.lanes, 4)), kThreads, 0, stream,
         args, cells);
  return cudaGetLastError();
}

cudaError_t collect(const CollectArgs& args, cudaStream_t stream) {
  const int64_t items = args.points * args.num_terms;
  if (items == 0 || args.tiles == 0) return cudaSuccess;
  launch(collect_kernel, static_cast<unsigned>((items + kThreads - 1) / kThreads), kThreads, 0,
         stream, args);
  return cudaGetLastError();
}

}  // namespace landscapex::program::cuda
