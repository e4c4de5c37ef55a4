// Compiled once for each instruction set, with LX_ISA naming it.
#include "../kernels/float_environment.h"
#include "activation.h"
#include "kernels.h"
#include "microkernel.h"

namespace landscapex::program::LX_ISA {
namespace {

// What one block of outputs at one stretch of positions needs. Steps are floats from one vector of
// samples to the next.
struct Block {
  const float* in;
  int64_t in_step;
  const int32_t* taps;
  int64_t first_tap, last_tap;
  bool begins, ends;    // whether these taps are the first, the last
  const float* weight;  // [R][rows]
  const float* bias;    // of the rows, or null
  const float* scale;
  const float* shift;
  float* out;
  int64_t out_step;
  const int32_t* channels;  // elements, of the rows
  const float* residual;    // or null
  int64_t residual_step;
  const int32_t* residual_channels;
  int64_t residual_sets;  // with their coefficients, if the residual is affine
  int64_t residual_set_stride;
  const float* coefficients;
  int64_t lanes;
  Act act;
};

LX_INLINE Vec residual_at(const Block& b, const float* p) {
  Vec sum = load(p);
  for (int64_t k = 1; k < b.residual_sets; ++k)
    sum = fma(splat(b.coefficients[k]), load(p + k * b.residual_set_stride), sum);
  return sum;
}

template <int ROWS, int VECS>
LX_INLINE void finish(const Block& b, const Vec (&sums)[ROWS][VECS]) {
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i) {
    float* out = b.out + b.channels[i] * b.lanes;
    const float* residual = b.residual ? b.residual + b.residual_channels[i] * b.lanes : nullptr;
#pragma GCC unroll 8
    for (int v = 0; v < VECS; ++v) {
      Vec value = sums[i][v];
      if (b.scale) value = value * splat(b.scale[i]);
      if (b.shift) value = value + splat(b.shift[i]);
      if (residual) value = value + residual_at(b, residual + v * b.residual_step);
      if (b.act.name == Activation::relu) {
        value = relu(value);
      } else if (b.act.name != Activation::none) {
        value = activate(b.act, value);
      }
      store(out + v * b.out_step, value);
    }
  }
}

// Long sums are sums of sums over stretches of taps, kept in the output from one to the next.
template <int ROWS, int VECS>
void compute(const Block& b) {
  Vec sums[ROWS][VECS];
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i) {
    const Vec start = splat(b.begins && b.bias ? b.bias[i] : 0.0f);
#pragma GCC unroll 8
    for (int v = 0; v < VECS; ++v) sums[i][v] = start;
  }
  accumulate<ROWS, VECS>(sums, b.first_tap, b.last_tap, TableTaps{b.taps}, b.in, b.in_step,
                         b.weight);
  if (!b.begins) {
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
      for (int v = 0; v < VECS; ++v)
        sums[i][v] = load(b.out + b.channels[i] * b.lanes + v * b.out_step) + sums[i][v];
  }
  if (b.ends) {
    finish<ROWS, VECS>(b, sums);
    return;
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < VECS; ++v)
      store(b.out + b.channels[i] * b.lanes + v * b.out_step, sums[i][v]);
}

using Compute = void (*)(const Block&);

template <int ROWS>
struct Row {
  static constexpr Compute kernels[8] = {
      compute<ROWS, 1>,
      kMaxVecs[ROWS] >= 2 ? compute<ROWS, kMaxVecs[ROWS] >= 2 ? 2 : 1> : nullptr,
      kMaxVecs[ROWS] >= 3 ? compute<ROWS, kMaxVecs[ROWS] >= 3 ? 3 : 1> : nullptr,
      kMaxVecs[ROWS] >= 4 ? compute<ROWS, kMaxVecs[ROWS] >= 4 ? 4 : 1> : nullptr,
      kMaxVecs[ROWS] >= 5 ? compute<ROWS, kMaxVecs[ROWS] >= 5 ? 5 : 1> : nullptr,
      kMaxVecs[ROWS] >= 6 ? compute<ROWS, kMaxVecs[ROWS] >= 6 ? 6 : 1> : nullptr,
      kMaxVecs[ROWS] >= 7 ? compute<ROWS, kMaxVecs[ROWS] >= 7 ? 7 : 1> : nullptr,
      kMaxVecs[ROWS] >= 8 ? compute<ROWS, kMaxVecs[ROWS] >= 8 ? 8 : 1> : nullptr,
  };
};

constexpr const Compute* kKernels[kRows + 1] = {
    nullptr,         Row<1>::kernels, Row<2>::kernels, Row<3>::kernels, Row<4>::kernels,
    Row<5>::kernels, Row<6>::kernels, Row<7>::kernels, Row<8>::kernels,
};

// A single chain of a thousand additions would show in the last digits.
constexpr int64_t kStretch = 128;  // taps
int64_t num_stretches(int64_t taps) {
  return taps <= kStretch + kStretch / 2 ? 1 : (taps + kStretch - 1) / kStretch;
}

// One block of outputs along `vectors` vectors, in groups that fit the registers.
void compute_along(Block b, int64_t rows, int64_t vectors) {
  const int64_t groups = num_groups(vectors, kMaxVecs[rows]);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t n = (vectors + groups - 1 - g) / groups;
    kKernels[rows][n - 1](b);
    b.in += n * b.in_step;
    b.out += n * b.out_step;
    if (b.residual) b.residual += n * b.residual_step;
  }
}

// The positions of one run: as one stretch if inputs and outputs are contiguous, else for each
// vector of the lanes by itself.
void compute_run(Block b, const Run& run, int64_t rows) {
  const int64_t lanes = b.lanes;
  const bool even = run.step[0] == 1 && run.step[1] == 1 && (!b.residual || run.step[2] == 1);
  b.in += run.begin[0] * lanes;
  b.out += run.begin[1] * lanes;
  if (b.residual) b.residual += run.begin[2] * lanes;
  if (even || run.count == 1) {
    b.in_step = b.out_step = b.residual_step = kWidth;
    compute_along(b, rows, run.count * (lanes / kWidth));
    return;
  }
  b.in_step = run.step[0] * lanes;
  b.out_step = run.step[1] * lanes;
  b.residual_step = run.step[2] * lanes;
  for (int64_t j = 0; j < lanes; j += kWidth) {
    compute_along(b, rows, run.count);
    b.in += kWidth;
    b.out += kWidth;
    if (b.residual) b.residual += kWidth;
  }
}

}  // namespace

void run_contract(const Contract& step, const Frame& frame) {
  const cpu::FloatEnvironment ieee;
  const auto weight = [&](int32_t id) { return id < 0 ? nullptr : frame.weights[id]; };
  const float* const bias = weight(step.bias);
  const float* const scale = weight(step.scale);
  const float* const shift = weight(step.shift);
  Block b = {};
  b.lanes = frame.lanes;
  b.taps = step.taps.data();
  b.act = step.act;
  if (step.residual >= 0) {
    b.residual_set_stride = frame.set_strides[step.residual];
    b.residual_sets = b.residual_set_stride ? frame.num_sets : 1;
    b.coefficients = frame.coefficients;
  }
  const int64_t blocks = (step.outputs + kRows - 1) / kRows;
  const int64_t stretches = num_stretches(step.num_taps);
  const Run* const runs = step.runs.data();
  const int64_t num_runs = static_cast<int64_t>(step.runs.size());
  for (int64_t r = 0; r < num_runs; ++r) {
    for (int64_t g = 0; g < step.groups; ++g) {
      // the inputs of one stretch of taps stay in the first-level cache for all outputs
      for (int64_t s = 0; s < stretches; ++s) {
        b.first_tap = step.num_taps * s / stretches;
        b.last_tap = step.num_taps * (s + 1) / stretches;
        b.begins = s == 0;
        b.ends = s == stretches - 1;
        int64_t m = g * step.outputs;
        b.in = frame.buffers[step.input] + step.group.data()[g] * frame.lanes;
        b.out = frame.buffers[step.out];
        b.residual = step.residual < 0 ? nullptr : frame.buffers[step.residual];
        for (int64_t k = 0; k < blocks; ++k) {
          const int64_t rows = (step.outputs + blocks - 1 - k) / blocks;
          b.weight = frame.weights[step.weight] + m * step.num_taps;
          b.bias = bias ? bias + m : nullptr;
          b.scale = scale ? scale + m : nullptr;
          b.shift = shift ? shift + m : nullptr;
          b.channels = step.channels.data() + m;
          b.residual_channels = step.residual < 0 ? nullptr : step.residual_channels.data() + m;
          compute_run(b, runs[r], rows);
          m += rows;
        }
      }
    }
  }
}

}  // namespace landscapex::program::LX_ISA
