// A whole program in one launch, for networks so small that all buffers of a cell fit into the
// shared memory of a multiprocessor: a block runs every step of one cell. Inputs, weights, tables
// and products stay where they are; results are those of the kernels of the single steps, bit for
// bit.
#pragma once

#include <vector>

#include "device_args.h"

namespace landscapex::program::cuda {

// A buffer that lies in the memory of the block. Its address on the device is no longer used, but
// must not be null: that would be a buffer which a step does without.
inline Ref in_block(Ref ref, int64_t floats_from_start) {
  ref.per_tile = kInBlock;
  ref.per_point = floats_from_start;
  return ref;
}

// What elements hold that no step writes: `value` from float `begin` on.
struct Filled {
  int32_t begin, count;
  float value;
};

constexpr int kMostNetworkSteps = 48;
constexpr int kMostFilled = 32;

// Whether these steps (those that run for each point) and buffers of so many floats can be run in
// this way on a device whose blocks may have so many bytes of shared memory
// (cudaDevAttrMaxSharedMemoryPerBlockOptin).
bool fits_network(const std::vector<StepArgs>& steps, int64_t arena_floats, int64_t shared_bytes);

// Enqueues the steps for all cells. What is in a block begins as zeros but for what `filled` says.
cudaError_t run_network(const std::vector<StepArgs>& steps, const std::vector<Filled>& filled,
                        int64_t arena_floats, const Cells& cells, cudaStream_t stream);

}  // namespace landscapex::program::cuda
