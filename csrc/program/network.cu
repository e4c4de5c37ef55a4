#include <algorithm>
#include <cstring>

#include "cells.cuh"
#include "contract.cuh"
#include "embedding.cuh"
#include "loss.cuh"
#include "map.cuh"
#include "matmul.cuh"
#include "network.h"
#include "normalize.cuh"
#include "reduce.cuh"
#include "softmax.cuh"

namespace landscapex::program::cuda {
namespace {

// Of a block: many where several of them fill a multiprocessor, more where one or two do.
constexpr int kManyThreads = 256, kFewThreads = 128;
constexpr size_t kSmallBlock = 48 << 10;  // bytes

template <size_t kKind>
using ArgsOf = std::variant_alternative_t<kKind, StepArgs>;
constexpr size_t kNumKinds = std::variant_size_v<StepArgs>;

constexpr size_t largest_args() {
  size_t largest = 0;
  for (const size_t size :
       {sizeof(ArgsOf<0>), sizeof(ArgsOf<1>), sizeof(ArgsOf<2>), sizeof(ArgsOf<3>),
        sizeof(ArgsOf<4>), sizeof(ArgsOf<5>), sizeof(ArgsOf<6>), sizeof(ArgsOf<7>),
        sizeof(ArgsOf<8>), sizeof(ArgsOf<9>), sizeof(ArgsOf<10>), sizeof(ArgsOf<11>)})
    if (size > largest) largest = size;
  return largest;
}
static_assert(kNumKinds == 12, "all of them are in largest_args");

// A step as plain bytes: which alternative of StepArgs, and that.
struct AnyStep {
  alignas(8) unsigned char args[largest_args()];
  int64_t kind;
};

// Everything that a launch needs, in its arguments: nothing is copied to the device.
struct NetworkLaunch {
  Cells cells;
  int32_t num_steps, num_filled, floats;
  Filled filled[kMostFilled];
  AnyStep steps[kMostNetworkSteps];
};
static_assert(sizeof(NetworkLaunch) <= 32764, "fits the arguments of compute 7.0 and later");

template <size_t kKind = 0>
__device__ __forceinline__ void run_step(const AnyStep& step, const Cells& cells,
                                         const Cell& cell) {
  if (step.kind == kKind) {
    const auto& args = *reinterpret_cast<const ArgsOf<kKind>*>(step.args);
    work(args, cells, cell, {threadIdx.x, blockDim.x});
  } else if constexpr (kKind + 1 < kNumKinds) {
    run_step<kKind + 1>(step, cells, cell);
  }
}

__device__ __forceinline__ void fill(float* memory, int begin, int count, float value) {
  for (int i = begin + threadIdx.x; i < begin + count; i += blockDim.x) memory[i] = value;
  __syncthreads();
}

__global__ void __launch_bounds__(kManyThreads)
    network_kernel(const __grid_constant__ NetworkLaunch network) {
  LX_DYNAMIC_SHARED(float, memory);
  fill(memory, 0, network.floats, 0);
  for (int i = 0; i < network.num_filled; ++i) {
    const Filled& f = network.filled[i];
    fill(memory, f.begin, f.count, f.value);
  }
  Cell cell = this_cell();
  cell.memory = memory;
  for (int i = 0; i < network.num_steps; ++i) {
    run_step(network.steps[i], network.cells, cell);
    __syncthreads();
  }
}

// Those whose kernel sums a long row in another order than one thread does.
bool has_long_rows(const StepArgs& step) {
  if (const auto* s = std::get_if<SoftmaxArgs>(&step)) return s->count >= kLongRow;
  if (const auto* n = std::get_if<NormalizeArgs>(&step)) return n->count >= kLongRow;
  return false;
}
bool is_fp32(const StepArgs& step) {
  const auto* c = std::get_if<ContractArgs>(&step);
  return c == nullptr || c->math == Math::kFp32;
}

}  // namespace

bool fits_network(const std::vector<StepArgs>& steps, int64_t arena_floats, int64_t shared_bytes) {
  constexpr int64_t kFixed = 4096;  // of the steps themselves
  return arena_floats * int64_t{sizeof(float)} + kFixed <= shared_bytes &&
         steps.size() <= kMostNetworkSteps &&
         std::none_of(steps.begin(), steps.end(), has_long_rows) &&
         std::all_of(steps.begin(), steps.end(), is_fp32);
}

cudaError_t run_network(const std::vector<StepArgs>& steps, const std::vector<Filled>& filled,
                        int64_t arena_floats, const Cells& cells, cudaStream_t stream) {
  if (steps.size() > kMostNetworkSteps || filled.size() > kMostFilled)
    return cudaErrorInvalidConfiguration;
  NetworkLaunch network = {};
  network.cells = cells;
  network.num_steps = static_cast<int32_t>(steps.size());
  network.num_filled = static_cast<int32_t>(filled.size());
  network.floats = static_cast<int32_t>(arena_floats);
  std::copy(filled.begin(), filled.end(), network.filled);
  for (size_t i = 0; i < steps.size(); ++i) {
    network.steps[i].kind = static_cast<int64_t>(steps[i].index());
    std::visit([&](const auto& args) { std::memcpy(network.steps[i].args, &args, sizeof(args)); },
               steps[i]);
  }
  const size_t bytes = static_cast<size_t>(arena_floats) * sizeof(float);
  const cudaError_t status = cudaFuncSetAttribute(
      network_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (status != cudaSuccess) return status;
  launch(network_kernel, grid_of(cells, 1), bytes <= kSmallBlock ? kFewThreads : kManyThreads,
         bytes, stream, network);
  return cudaGetLastError();
}

}  // namespace landscapex::program::cuda
