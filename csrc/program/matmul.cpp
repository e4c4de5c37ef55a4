// Compiled once for each instruction set, with LX_ISA naming it.
#include "../kernels/float_environment.h"
#include "kernels.h"
#include "simd.h"

namespace landscapex::program::LX_ISA {
namespace {

// Rows and columns whose sums stay in registers; there are 32 of them, or 16.
constexpr int kTileRows = 4;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileColumns = 4;
#else
constexpr int kTileColumns = 2;
#endif

struct Operands {
  const float *x, *y;
  float* out;
  int64_t lanes, inner, columns;
  const int32_t *x_at, *y_at, *to;  // of the first row and column of a tile
  float scale;
};

template <int R, int C>
LX_INLINE void multiply_tile(const Operands& o) {
  Vec sums[R][C] = {};
  for (int64_t k = 0; k < o.inner; ++k) {
    Vec y[C];
    for (int j = 0; j < C; ++j) y[j] = load(o.y + o.y_at[k * o.columns + j] * o.lanes);
    for (int i = 0; i < R; ++i) {
      const Vec x = load(o.x + o.x_at[i * o.inner + k] * o.lanes);
      for (int j = 0; j < C; ++j) sums[i][j] = fma(x, y[j], sums[i][j]);
    }
  }
  for (int i = 0; i < R; ++i) {
    for (int j = 0; j < C; ++j) {
      store(o.out + o.to[i * o.columns + j] * o.lanes, sums[i][j] * o.scale);
    }
  }
}

template <int R>
LX_INLINE void multiply_rows(const Operands& rows) {
  int64_t j = 0;
  for (; j + kTileColumns <= rows.columns; j += kTileColumns) {
    Operands tile = rows;
    tile.y_at += j;
    tile.to += j;
    multiply_tile<R, kTileColumns>(tile);
  }
  for (; j < rows.columns; ++j) {
    Operands tile = rows;
    tile.y_at += j;
    tile.to += j;
    multiply_tile<R, 1>(tile);
  }
}

LX_INLINE void multiply(Operands rows, int64_t num_rows) {
  int64_t i = 0;
  for (; i + kTileRows <= num_rows; i += kTileRows) {
    multiply_rows<kTileRows>(rows);
    rows.x_at += kTileRows * rows.inner;
    rows.to += kTileRows * rows.columns;
  }
  for (; i < num_rows; ++i) {
    multiply_rows<1>(rows);
    rows.x_at += rows.inner;
    rows.to += rows.columns;
  }
}

}  // namespace

void run_matmul(const MatMul& step, const Frame& frame) {
  const cpu::FloatEnvironment ieee;
  for (int64_t b = 0; b < step.batch; ++b) {
    // one vector of samples after the other: what it needs of both matrices stays in the cache
    for (int64_t lane = 0; lane < frame.lanes; lane += kWidth) {
      const Operands all = {frame.buffers[step.x] + lane,
                            frame.buffers[step.y] + lane,
                            frame.buffers[step.out] + lane,
                            frame.lanes,
                            step.inner,
                            step.columns,
                            step.x_at.data() + b * step.rows * step.inner,
                            step.y_at.data() + b * step.inner * step.columns,
                            step.to.data() + b * step.rows * step.columns,
                            step.scale};
      multiply(all, step.rows);
    }
  }
}

}  // namespace landscapex::program::LX_ISA
