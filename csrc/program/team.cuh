// Who works on four lanes of a row of numbers (those that are normalised together): one thread, or
// for long rows the threads of a block, 16 lanes of a row in each block. What a block reads stays
// in its cache from the first pass over the row to the last.
#pragma once

#include "quad.cuh"

namespace landscapex::program::cuda {

// A number of each of four lanes.
struct Wide {
  double v[kQuad];
};

struct Alone {
  static constexpr int kParts = 1;
  __device__ __forceinline__ int part() const { return 0; }
  template <typename F>
  __device__ __forceinline__ Wide combine(const Wide& mine, F) const {
    return mine;
  }
};

constexpr int kTeamQuads = 4, kTeamLanes = kTeamQuads * kQuad;  // of a block
constexpr int kTeamWarps = kThreads / 32;
constexpr int64_t kLongRow = 128;  // numbers: two for each thread of a team

static __device__ inline double* shared_by_team() {
  __shared__ double sums[kTeamWarps * kTeamLanes];
  return sums;
}

// Neighbouring threads have neighbouring quads, so that those of one quad are 4 apart.
struct Team {
  static constexpr int kParts = kThreads / kTeamQuads;
  __device__ __forceinline__ int part() const { return threadIdx.x / kTeamQuads; }
  __device__ __forceinline__ int quad() const { return threadIdx.x % kTeamQuads; }
  // f over the parts of all threads of a quad, in a fixed order. All threads of the block call it.
  template <typename F>
  __device__ __forceinline__ Wide combine(Wide mine, F f) const {
    constexpr unsigned kAllLanes = 0xffffffffu;
    double* shared = shared_by_team() + quad() * kQuad;
    const int warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
#pragma unroll
      for (int apart = 16; apart >= kTeamQuads; apart /= 2)
        mine.v[i] = f(mine.v[i], __shfl_xor_sync(kAllLanes, mine.v[i], apart));
      if (threadIdx.x % 32 < kTeamQuads) shared[warp * kTeamLanes + i] = mine.v[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      mine.v[i] = shared[i];
      for (int w = 1; w < kTeamWarps; ++w) mine.v[i] = f(mine.v[i], shared[w * kTeamLanes + i]);
    }
    __syncthreads();
    return mine;
  }
};

// Sums that lose nothing to their length: short ones in float32, added in float64.
class QuadSum {
 public:
  __device__ __forceinline__ void add(const Quad& q) {
#pragma unroll
    for (int i = 0; i < kQuad; ++i) part_.v[i] += q.v[i];
    if (++count_ % kPart == 0) flush();
  }
  __device__ __forceinline__ Wide total() const {
    Wide sum;
#pragma unroll
    for (int i = 0; i < kQuad; ++i) sum.v[i] = totals_.v[i] + part_.v[i];
    return sum;
  }

 private:
  static constexpr int kPart = 32;
  __device__ __forceinline__ void flush() {
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      totals_.v[i] += part_.v[i];
      part_.v[i] = 0;
    }
  }
  Quad part_ = {};
  Wide totals_ = {};
  int count_ = 0;
};

// Four lanes of a row.
struct Row {
  const float* in;
  float* out;
  int lanes, count;
  const int32_t *sources, *to;

  __device__ __forceinline__ Quad read(int c) const {
    return load(in + __ldg(sources + c) * lanes);
  }
  __device__ __forceinline__ float* place(int c) const { return out + __ldg(to + c) * lanes; }
};
template <typename Args>
__device__ __forceinline__ Row row_of(const Args& args, const Cells& cells, const Cell& cell,
                                      int row, int lane) {
  const int64_t first = row * args.count;
  return {address(args.input, cell) + lane,
          address(args.out, cell) + lane,
          static_cast<int>(cells.lanes),
          static_cast<int>(args.count),
          args.sources + first,
          args.to + first};
}

// A block of a team works on 16 lanes of one row; blocks follow each other along the lanes.
struct Block {
  int row, lane;
};
__device__ __forceinline__ Block block_of_team(const Cells& cells, const Team& team) {
  const unsigned blocks = static_cast<unsigned>(cells.lanes) / kTeamLanes;
  return {static_cast<int>(blockIdx.x / blocks),
          static_cast<int>(blockIdx.x % blocks) * kTeamLanes + team.quad() * kQuad};
}

// Launches the kernel for short rows or the one for long rows.
template <typename Args>
cudaError_t run_rows(void (*of_threads)(Args, Cells), void (*of_teams)(Args, Cells),
                     const Args& args, const Cells& cells, cudaStream_t stream) {
  if (args.groups == 0) return cudaSuccess;  // no empty grids
  const bool teams = args.count >= kLongRow;
  const unsigned blocks = teams ? static_cast<unsigned>(args.groups * cells.lanes / kTeamLanes)
                                : blocks_for(args.groups * cells.lanes / kQuad, 1);
  launch(teams ? of_teams : of_threads, grid_of(cells, blocks), kThreads, 0, stream, args, cells);
  return cudaGetLastError();
}

}  // namespace landscapex::program::cuda
