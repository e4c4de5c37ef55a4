// What the kernels of the contraction share that give a block of threads a rectangle of results.
#pragma once

#include "contract.cuh"

namespace landscapex::program::cuda {

// What a block of threads computes: some outputs of a group at some columns, which are all
// positions and lanes of the cell, lanes innermost. Blocks that share columns are neighbours.
struct Part {
  int group, first_output, first_column;
};
template <int kBlockRows, int kBlockColumns>
__device__ __forceinline__ Part this_part(int outputs, int columns) {
  const unsigned down = (outputs + kBlockRows - 1) / kBlockRows;
  const unsigned across = (columns + kBlockColumns - 1) / kBlockColumns;
  const unsigned column = blockIdx.x / down;
  return {static_cast<int>(column / across),
          static_cast<int>(blockIdx.x - column * down) * kBlockRows,
          static_cast<int>(column % across) * kBlockColumns};
}

// Columns past the end are the last ones again; they are not stored.
__device__ __forceinline__ Column column_at(int index, int columns, int lanes) {
  const int inside = index < columns ? index : columns - kQuad;
  const int position = inside / lanes;
  return {position, inside - position * lanes};
}

// Sums of stretches of this thread, in shared memory: registers hold those of the present one.
template <int kThreadsOfBlock>
class SharedTotals {
 public:
  __device__ explicit SharedTotals(float* shared) : own_(shared + threadIdx.x * kQuad) {}

  template <int kVectors, int kCount>
  __device__ __forceinline__ void put_away(Quad (&sums)[kVectors][kCount], bool is_first) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        float* total = own_ + (v * kCount + i) * kThreadsOfBlock * kQuad;
        store(total, is_first ? sums[v][i] : load(total) + sums[v][i]);
        sums[v][i] = splat(0);
      }
    }
  }
  template <int kVectors, int kCount>
  __device__ __forceinline__ void add_to(Quad (&sums)[kVectors][kCount]) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        sums[v][i] = load(own_ + (v * kCount + i) * kThreadsOfBlock * kQuad) + sums[v][i];
    }
  }

 private:
  float* own_;
};

}  // namespace landscapex::program::cuda
