// Few outputs: a thread has all of a block, and only weights and tables go through shared memory.
#pragma once

#include "contract_block.cuh"

namespace landscapex::program::cuda {

// A thread has all kCount outputs of its block at kVectors columns of four lanes.
template <int kOutputs, int kVectorsOfThread>
struct Strip {
  static constexpr int kThreads = 128;
  static constexpr int kCount = kOutputs, kVectors = kVectorsOfThread;
  static constexpr int kBlockRows = kCount, kBlockColumns = kThreads * kQuad * kVectors;
  static constexpr int kAhead = 4;  // taps whose inputs are on their way
  static constexpr int kOffsets = (kMostAtOnce + kAhead + kQuad - 1) / kQuad * kQuad;
  static constexpr int kStageFloats = kMostAtOnce * kCount + kOffsets;
  static constexpr int kTotalFloats = kBlockRows * kBlockColumns;
  static constexpr int kBlocksPerProcessor = kVectors > 1 ? 3 : 4;
};

// The weights of a stretch, [taps][kCount], and the offsets of its inputs. The last offset is
// repeated, for inputs that are fetched ahead and not used.
template <typename T>
__device__ __forceinline__ void put_stretch(const ContractArgs& args, const WeightRow& row,
                                            int lanes, int begin, int end, float* weights,
                                            int* offsets) {
  constexpr int kTapStep = T::kThreads / T::kCount;
  for (int r = begin + threadIdx.x / T::kCount; r < end; r += kTapStep)
    weights[(r - begin) * T::kCount + threadIdx.x % T::kCount] = row.data[r * row.step];
  for (int r = begin + threadIdx.x; r < end + T::kAhead; r += T::kThreads)
    offsets[r - begin] = args.taps[r < end ? r : end - 1] * lanes;
}

template <typename T>
__device__ __forceinline__ void multiply_tap(const float* from, const Quad (&x)[T::kVectors],
                                             Quad (&sums)[T::kVectors][T::kCount]) {
  float weights[T::kCount];
  load_quads(from, weights);
#pragma unroll
  for (int v = 0; v < T::kVectors; ++v) multiply_add(weights, x[v], sums[v]);
}

template <typename T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocksPerProcessor)
    contract_strip_kernel(const __grid_constant__ ContractArgs args,
                          const __grid_constant__ Cells cells) {
  LX_DYNAMIC_SHARED(float, shared);
  float* const weights = shared;
  int* const offsets = reinterpret_cast<int*>(shared + kMostAtOnce * T::kCount);
  const Cell cell = this_cell();
  const int num_taps = static_cast<int>(args.num_taps), lanes = static_cast<int>(cells.lanes);
  const int outputs = static_cast<int>(args.outputs);
  const int columns = static_cast<int>(args.positions) * lanes;
  const Part part = this_part<T::kBlockRows, T::kBlockColumns>(outputs, columns);

  const int staged = part.first_output + threadIdx.x % T::kCount;
  const WeightRow row(weights_of(args, cell, part.group), num_taps,
                      staged < outputs ? staged : outputs - 1, outputs);
  const int left = outputs - part.first_output;
  const Outputs own = {part.group, part.first_output, left < T::kCount ? left : T::kCount};
  const int first_column = part.first_column + threadIdx.x * kQuad;
  constexpr int kColumnStep = T::kThreads * kQuad;
  const float* in[T::kVectors];
  Quad sums[T::kVectors][T::kCount];
#pragma unroll
  for (int v = 0; v < T::kVectors; ++v) {
    const Column column = column_at(first_column + v * kColumnStep, columns, lanes);
    in[v] = input_of(args, cells, cell, part.group, column);
    start(args, cell, own, sums[v]);
  }
  SharedTotals<T::kThreads> totals(shared + T::kStageFloats);
  const bool in_stretches = is_long(num_taps);

  for (int begin = 0, end; begin < num_taps; begin = end) {
    end = end_of_stretch(begin, num_taps);
    if (in_stretches) totals.put_away(sums, begin == 0);
    __syncthreads();  // all have left the stretch before
    put_stretch<T>(args, row, lanes, begin, end, weights, offsets);
    __syncthreads();
    const int count = end - begin;
    Quad ahead[T::kAhead][T::kVectors];
    const auto fetch = [&](int j, int tap) {
#pragma unroll
      for (int v = 0; v < T::kVectors; ++v) ahead[j][v] = load(in[v] + offsets[tap]);
    };
#pragma unroll
    for (int j = 0; j < T::kAhead; ++j) fetch(j, j);
    int tap = 0;
    for (; tap + T::kAhead <= count; tap += T::kAhead) {
#pragma unroll
      for (int j = 0; j < T::kAhead; ++j) {
        multiply_tap<T>(weights + (tap + j) * T::kCount, ahead[j], sums);
        fetch(j, tap + j + T::kAhead);
      }
    }
#pragma unroll
    for (int j = 0; j < T::kAhead - 1; ++j)
      if (tap + j < count) multiply_tap<T>(weights + (tap + j) * T::kCount, ahead[j], sums);
  }
  if (in_stretches) totals.add_to(sums);
#pragma unroll
  for (int v = 0; v < T::kVectors; ++v) {
    const int index = first_column + v * kColumnStep;
    if (index < columns) finish(args, cells, cell, own, column_at(index, columns, lanes), sums[v]);
  }
}

}  // namespace landscapex::program::cuda
