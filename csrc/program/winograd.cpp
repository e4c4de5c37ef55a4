// Compiled once for each instruction set, with LX_ISA naming it.
#include "../kernels/float_environment.h"
#include "activation.h"
#include "kernels.h"
#include "microkernel.h"

namespace landscapex::program::LX_ISA {
namespace {

constexpr int kTile = 4;       // outputs of a tile, in each direction
constexpr int kPatch = 6;      // inputs of a tile
constexpr int kPoints = 36;    // of the transformed domain
constexpr int64_t kGroup = 8;  // tiles that are transformed together, about

// out = B^T in for one column: the input transform.
LX_INLINE void transform_input(const Vec* in, int64_t step, Vec* out, int64_t out_step) {
  const Vec four = splat(4.0f), five = splat(5.0f), two = splat(2.0f);
  const Vec d0 = in[0], d1 = in[step], d2 = in[2 * step];
  const Vec d3 = in[3 * step], d4 = in[4 * step], d5 = in[5 * step];
  out[0] = fma(four, d0, fma(negate(five), d2, d4));
  const Vec a = fma(negate(four), d2, d4), b = fma(negate(four), d1, d3);
  out[out_step] = a + b;
  out[2 * out_step] = a - b;
  const Vec c = d4 - d2, d = two * (d3 - d1);
  out[3 * out_step] = c + d;
  out[4 * out_step] = c - d;
  out[5 * out_step] = fma(four, d1, fma(negate(five), d3, d5));
}

// out = A^T in for one column: the output transform.
LX_INLINE void transform_output(const Vec* in, int64_t step, Vec* out, int64_t out_step) {
  const Vec a = in[step] + in[2 * step], b = in[step] - in[2 * step];
  const Vec c = in[3 * step] + in[4 * step], d = in[3 * step] - in[4 * step];
  out[0] = in[0] + (a + c);
  out[out_step] = fma(splat(2.0f), d, b);
  out[2 * out_step] = fma(splat(4.0f), c, a);
  out[3 * out_step] = fma(splat(8.0f), d, b) + in[5 * step];
}

// A stretch of tiles of one vector of samples.
struct Stretch {
  int64_t first, count;  // tiles, row by row
  int64_t per_row;
  int64_t lane;  // of the vector
};

// transformed[point][channel][tile][kWidth]
void load_tiles(const Winograd& step, const Frame& frame, const Stretch& s, float* transformed) {
  const int64_t lanes = frame.lanes, plane = step.inputs * s.count * kWidth;
  const float* const input = frame.buffers[step.input] + step.input_at * lanes + s.lane;
  for (int64_t c = 0; c < step.inputs; ++c) {
    for (int64_t t = 0; t < s.count; ++t) {
      const int64_t y = (s.first + t) / s.per_row * kTile, x = (s.first + t) % s.per_row * kTile;
      const float* p = input + (c * step.input_channel + y * step.input_row + x) * lanes;
      Vec columns[kPoints], all[kPoints];
      for (int j = 0; j < kPatch; ++j) {
        Vec column[kPatch];
        for (int i = 0; i < kPatch; ++i) column[i] = load(p + (i * step.input_row + j) * lanes);
        transform_input(column, 1, columns + j, kPatch);
      }
      for (int i = 0; i < kPatch; ++i)
        transform_input(columns + i * kPatch, 1, all + i * kPatch, 1);
      float* const out = transformed + (c * s.count + t) * kWidth;
      for (int k = 0; k < kPoints; ++k) store(out + k * plane, all[k]);
    }
  }
}

template <int VECS>
void multiply(int64_t inputs, const float* in, int64_t in_step, const float* weight, float* out,
              int64_t out_step) {
  Vec sums[kRows][VECS] = {};
  accumulate<kRows, VECS>(sums, inputs, EvenTaps{in_step}, in, kWidth, weight);
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < VECS; ++v) store(out + i * out_step + v * kWidth, sums[i][v]);
}

// products[point][output][tile][kWidth] from [36][M / 8][C][8] weights
void multiply_tiles(const Winograd& step, const Stretch& s, const float* weight,
                    const float* transformed, float* products) {
  const int64_t row = s.count * kWidth;
  constexpr int64_t kMost = kMaxVecs[kRows];
  const int64_t groups = num_groups(s.count, kMost);
  for (int64_t k = 0; k < kPoints; ++k) {
    for (int64_t m = 0; m < step.outputs; m += kRows) {
      const float* in = transformed + k * step.inputs * row;
      float* out = products + (k * step.outputs + m) * row;
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t n = (s.count + groups - 1 - g) / groups;
        if (n == 1) {
          multiply<1>(step.inputs, in, row, weight, out, row);
        } else if (n == 2) {
          multiply<kMost >= 2 ? 2 : 1>(step.inputs, in, row, weight, out, row);
        } else {
          multiply<kMost >= 3 ? 3 : 1>(step.inputs, in, row, weight, out, row);
        }
        in += n * kWidth;
        out += n * kWidth;
      }
      weight += step.inputs * kRows;
    }
  }
}

void store_tiles(const Winograd& step, const Frame& frame, const Stretch& s,
                 const float* products) {
  const int64_t lanes = frame.lanes, plane = step.outputs * s.count * kWidth;
  const auto weight = [&](int32_t id) { return id < 0 ? nullptr : frame.weights[id]; };
  const float* const bias = weight(step.bias);
  const float* const scale = weight(step.scale);
  const float* const shift = weight(step.shift);
  float* const output = frame.buffers[step.out] + step.out_at * lanes + s.lane;
  const float* const residual =
      step.residual < 0 ? nullptr
                        : frame.buffers[step.residual] + step.residual_at * lanes + s.lane;
  for (int64_t m = 0; m < step.outputs; ++m) {
    for (int64_t t = 0; t < s.count; ++t) {
      const int64_t y = (s.first + t) / s.per_row * kTile, x = (s.first + t) % s.per_row * kTile;
      const float* const in = products + (m * s.count + t) * kWidth;
      Vec rows[kTile * kPatch], all[kTile * kTile];
      for (int j = 0; j < kPatch; ++j) {
        Vec column[kPatch];
        for (int i = 0; i < kPatch; ++i) column[i] = load(in + (i * kPatch + j) * plane);
        transform_output(column, 1, rows + j, kPatch);
      }
      for (int i = 0; i < kTile; ++i) transform_output(rows + i * kPatch, 1, all + i * kTile, 1);
      for (int i = 0; i < kTile; ++i) {
        float* out = output + (m * step.out_channel + (y + i) * step.out_row + x) * lanes;
        const int64_t r = m * step.residual_channel + (y + i) * step.residual_row + x;
        for (int j = 0; j < kTile; ++j) {
          Vec value = all[i * kTile + j];
          if (bias) value = value + splat(bias[m]);
          if (scale) value = value * splat(scale[m]);
          if (shift) value = value + splat(shift[m]);
          if (residual) value = value + load(residual + (r + j) * lanes);
          if (step.act.name == Activation::relu) {
            value = relu(value);
          } else if (step.act.name != Activation::none) {
            value = activate(step.act, value);
          }
          store(out + j * lanes, value);
        }
      }
    }
  }
}

}  // namespace

void run_winograd(const Winograd& step, const Frame& frame) {
  const cpu::FloatEnvironment ieee;
  const int64_t per_row = step.width / kTile, rows = step.height / kTile;
  const int64_t rows_at_once = per_row < kGroup ? kGroup / per_row : 1;
  for (int64_t y = 0; y < rows; y += rows_at_once) {
    const int64_t n = rows - y < rows_at_once ? rows - y : rows_at_once;
    for (int64_t lane = 0; lane < frame.lanes; lane += kWidth) {
      const Stretch s = {y * per_row, n * per_row, per_row, lane};
      float* const products = frame.scratch + kPoints * step.inputs * s.count * kWidth;
      load_tiles(step, frame, s, frame.scratch);
      multiply_tiles(step, s, frame.weights[step.weight], frame.scratch, products);
      store_tiles(step, frame, s, products);
    }
  }
}

}  // namespace landscapex::program::LX_ISA
