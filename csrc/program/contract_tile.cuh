// Many outputs: tiles of both operands go through shared memory, two stages by turns.
#pragma once

#include <type_traits>

#include "contract_block.cuh"

namespace landscapex::program::cuda {

// A thread has 8 outputs at kVectors columns of four lanes. A warp is 4 x 8 threads, so that what
// its threads read of each operand lies in different banks or is the same.
template <int kRowsOfBlock, int kColumnsOfBlock, int kVectorsOfThread>
struct Tile {
  static constexpr int kBlockRows = kRowsOfBlock, kBlockColumns = kColumnsOfBlock;
  static constexpr int kVectors = kVectorsOfThread, kCount = 8;
  static constexpr int kThreadsDown = kBlockRows / kCount;
  static constexpr int kThreadsAcross = kBlockColumns / (kQuad * kVectors);
  static constexpr int kThreads = kThreadsDown * kThreadsAcross;
  static constexpr int kWarpsDown = kThreadsDown / 4;
  static constexpr int kTaps = 8;  // of one stage
  static constexpr int kStageFloats = kTaps * (kBlockRows + kBlockColumns);
  static constexpr int kTotalFloats = kBlockRows * kBlockColumns;
  static constexpr int kBlocksPerProcessor = (kVectors > 1 ? 384 : 512) / kThreads;
  static_assert(kStretch % kTaps == 0, "a stage belongs to one stretch");
};

// Brings the weights of a stage from global to shared memory, by way of registers, so that they
// are on their way while the stage before is multiplied. A thread keeps its outputs: four of a
// block of eight if there are only such blocks, else one.
template <typename T, bool kEights>
class WeightStager {
 public:
  __device__ WeightStager(const float* weights_of_group, int num_taps, int first_output,
                          int outputs)
      : row_(weights_of_group, num_taps, min(first_output + own_output(), outputs - kWidth),
             outputs) {}
  // Of the taps from `tap` on. What is past the last one is -0, which times 0 leaves every sum as
  // it is.
  __device__ __forceinline__ void fetch(int tap, int num_taps) {
    const int first = tap + static_cast<int>(threadIdx.x) / kAcross;
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int r = first + j * kTapStep;
      if constexpr (kEights)
        values_[j] = r < num_taps ? load(row_.data + r * kRows) : splat(-0.f);
      else
        values_[j] = r < num_taps ? row_.data[r * row_.step] : -0.f;
    }
  }
  __device__ __forceinline__ void put(float* stage) const {
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      float* to = stage + (threadIdx.x + j * T::kThreads) * kWidth;
      if constexpr (kEights)
        store(to, values_[j]);
      else
        *to = values_[j];
    }
  }

 private:
  static constexpr int kWidth = kEights ? kQuad : 1;
  static constexpr int kAcross = T::kBlockRows / kWidth;
  static constexpr int kTapStep = T::kThreads / kAcross;
  static constexpr int kLoads = T::kTaps / kTapStep;
  static_assert(kTapStep * kAcross == T::kThreads && kLoads * kTapStep == T::kTaps, "even");
  static __device__ __forceinline__ int own_output() { return threadIdx.x % kAcross * kWidth; }

  WeightRow row_;
  std::conditional_t<kEights, Quad, float> values_[kLoads];
};

// Likewise the inputs. A thread keeps its column; where its taps lie it must know a stage before it
// fetches them.
template <typename T>
class InputStager {
 public:
  __device__ InputStager(const float* in, int lanes) : in_(in), lanes_(lanes) {}
  __device__ __forceinline__ void locate(const int32_t* taps, int tap, int num_taps) {
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int r = tap + first() + j * kTapStep;
      if (r < num_taps) offsets_[j] = taps[r];
    }
  }
  __device__ __forceinline__ void fetch(int tap, int num_taps) {
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const bool exists = tap + first() + j * kTapStep < num_taps;
      values_[j] = exists ? load(in_ + offsets_[j] * lanes_) : splat(0);
    }
  }
  __device__ __forceinline__ void put(float* stage) const {
#pragma unroll
    for (int j = 0; j < kLoads; ++j)
      store(stage + (threadIdx.x + j * T::kThreads) * kQuad, values_[j]);
  }
  static __device__ __forceinline__ int column() { return threadIdx.x % kColumns * kQuad; }

 private:
  static constexpr int kColumns = T::kBlockColumns / kQuad;
  static constexpr int kTapStep = T::kThreads / kColumns;
  static constexpr int kLoads = T::kTaps / kTapStep;
  static_assert(kTapStep * kColumns == T::kThreads && kLoads * kTapStep == T::kTaps, "even");
  static __device__ __forceinline__ int first() { return threadIdx.x / kColumns; }

  const float* in_;
  int lanes_;
  int offsets_[kLoads] = {};
  Quad values_[kLoads];
};

template <typename T>
__device__ __forceinline__ void multiply_stage(const float* weights, const float* inputs,
                                               Quad (&sums)[T::kVectors][T::kCount]) {
#pragma unroll
  for (int k = 0; k < T::kTaps; ++k) {
    float w[T::kCount];
    load_quads(weights + k * T::kBlockRows, w);
#pragma unroll
    for (int v = 0; v < T::kVectors; ++v) {
      const int at = k * T::kBlockColumns + v * (T::kBlockColumns / T::kVectors);
      multiply_add(w, load(inputs + at), sums[v]);
    }
  }
}

template <typename T, bool kEights>
__global__ void __launch_bounds__(T::kThreads, T::kBlocksPerProcessor)
    contract_tile_kernel(const __grid_constant__ ContractArgs args,
                         const __grid_constant__ Cells cells) {
  LX_DYNAMIC_SHARED(float, shared);
  const Cell cell = this_cell();
  const int num_taps = static_cast<int>(args.num_taps), lanes = static_cast<int>(cells.lanes);
  const int outputs = static_cast<int>(args.outputs);
  const int columns = static_cast<int>(args.positions) * lanes;
  const Part part = this_part<T::kBlockRows, T::kBlockColumns>(outputs, columns);

  WeightStager<T, kEights> weights(weights_of(args, cell, part.group), num_taps, part.first_output,
                                   outputs);
  const Column staged_column =
      column_at(part.first_column + InputStager<T>::column(), columns, lanes);
  InputStager<T> inputs(input_of(args, cells, cell, part.group, staged_column), lanes);
  const auto fetch = [&](int tap) {
    weights.fetch(tap, num_taps);
    inputs.fetch(tap, num_taps);
    inputs.locate(args.taps, tap + T::kTaps, num_taps);
  };

  const int warp = threadIdx.x / 32, in_warp = threadIdx.x % 32;
  const int down = (warp % T::kWarpsDown * 4 + in_warp / 8) * T::kCount;
  const int across = (warp / T::kWarpsDown * 8 + in_warp % 8) * kQuad;
  const int first = part.first_output + down, left = outputs - first;
  const Outputs own = {part.group, first, left < T::kCount ? left : T::kCount};

  Quad sums[T::kVectors][T::kCount];
#pragma unroll
  for (int v = 0; v < T::kVectors; ++v) start(args, cell, own, sums[v]);
  SharedTotals<T::kThreads> totals(shared + 2 * T::kStageFloats);
  const bool in_stretches = is_long(num_taps);

  inputs.locate(args.taps, 0, num_taps);
  fetch(0);
  float* stage = shared;
  for (int tap = 0; tap < num_taps; tap += T::kTaps) {
    // The stage that is written now was read two rounds ago, before the barrier of the last one.
    weights.put(stage);
    inputs.put(stage + T::kTaps * T::kBlockRows);
    __syncthreads();
    if (tap + T::kTaps < num_taps) fetch(tap + T::kTaps);
    if (in_stretches && tap % kStretch == 0) totals.put_away(sums, tap == 0);
    multiply_stage<T>(stage + down, stage + T::kTaps * T::kBlockRows + across, sums);
    stage = shared + (stage == shared ? T::kStageFloats : 0);
  }
  if (in_stretches) totals.add_to(sums);
#pragma unroll
  for (int v = 0; v < T::kVectors; ++v) {
    const int index = part.first_column + v * (T::kBlockColumns / T::kVectors) + across;
    if (index < columns) finish(args, cells, cell, own, column_at(index, columns, lanes), sums[v]);
  }
}

}  // namespace landscapex::program::cuda
