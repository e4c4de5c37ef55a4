// Products of two live matrices: every sample has its own, so that nothing is shared among lanes.
// An item is four lanes of a tile of results, which stay in registers while the inner index goes
// by.
#pragma once

#include "device_steps.h"
#include "quad.cuh"

namespace landscapex::program::cuda {

__host__ __device__ __forceinline__ int64_t num_tiles(int64_t n, int tile) {
  return (n + tile - 1) / tile;
}

// Tiles at the edge compute their last row or column more than once, and store it once.
template <int kTile>
__device__ __forceinline__ void multiply_tile(const MatMulArgs& args, const float* x,
                                              const float* y, float* out, int lanes, int batch,
                                              int row, int column) {
  const int rows = static_cast<int>(args.rows), inner = static_cast<int>(args.inner);
  const int columns = static_cast<int>(args.columns);
  const int32_t* x_at = args.x_at + int64_t{batch} * rows * inner;
  const int32_t* y_at = args.y_at + int64_t{batch} * inner * columns;
  int of_row[kTile], of_column[kTile];
#pragma unroll
  for (int i = 0; i < kTile; ++i) {
    of_row[i] = (row + i < rows ? row + i : rows - 1) * inner;
    of_column[i] = column + i < columns ? column + i : columns - 1;
  }
  Quad sums[kTile][kTile] = {};
  for (int k = 0; k < inner; ++k, ++x_at, y_at += columns) {
    Quad from_y[kTile];
#pragma unroll
    for (int j = 0; j < kTile; ++j) from_y[j] = load(y + __ldg(y_at + of_column[j]) * lanes);
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
      const Quad from_x = load(x + __ldg(x_at + of_row[i]) * lanes);
#pragma unroll
      for (int j = 0; j < kTile; ++j) sums[i][j] = fma(from_x, from_y[j], sums[i][j]);
    }
  }
  const int32_t* to = args.to + int64_t{batch} * rows * columns;
  const Quad scale = splat(args.scale);
#pragma unroll
  for (int i = 0; i < kTile; ++i) {
#pragma unroll
    for (int j = 0; j < kTile; ++j) {
      if (row + i >= rows || column + j >= columns) continue;
      store(out + __ldg(to + (row + i) * columns + column + j) * lanes,
            each([](float v, float s) { return v * s; }, sums[i][j], scale));
    }
  }
}

// kTile: rows and columns of a tile. The bits of a result do not depend on it.
template <int kTile>
__device__ __forceinline__ void multiply(const MatMulArgs& args, const Cells& cells,
                                         const Cell& cell, const Share& share) {
  const float *x = address(args.x, cell), *y = address(args.y, cell);
  float* out = address(args.out, cell);
  const int row_tiles = static_cast<int>(num_tiles(args.rows, kTile));
  const int column_tiles = static_cast<int>(num_tiles(args.columns, kTile));
  for_quads(args.batch * row_tiles * column_tiles, cells, share, [&](int tile, int lane) {
    const int column = tile % column_tiles, rest = tile / column_tiles;
    multiply_tile<kTile>(args, x + lane, y + lane, out + lane, static_cast<int>(cells.lanes),
                         rest / row_tiles, rest % row_tiles * kTile, column * kTile);
  });
}

// With few results for each thread, as it suits a block that has a cell to itself.
__device__ inline void work(const MatMulArgs& args, const Cells& cells, const Cell& cell,
                            const Share& share) {
  multiply<2>(args, cells, cell, share);
}

}  // namespace landscapex::program::cuda
