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
  int64_t num_taps;
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

// Stores each sum after `f` of it.
template <int ROWS, int VECS, typename F>
LX_INLINE void store_sums(const Block& b, const Vec (&sums)[ROWS][VECS], F f) {
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i) {
    float* out = b.out + b.channels[i] * b.lanes;
#pragma GCC unroll 8
    for (int v = 0; v < VECS; ++v) store(out + v * b.out_step, f(sums[i][v], i, v));
  }
}

template <int ROWS, int VECS>
void store_modified(const Block& b, const Vec (&sums)[ROWS][VECS]) {
  for (int i = 0; i < ROWS; ++i) {
    float* out = b.out + b.channels[i] * b.lanes;
    const float* residual = b.residual ? b.residual + b.residual_channels[i] * b.lanes : nullptr;
    for (int v = 0; v < VECS; ++v) {
      Vec value = sums[i][v];
      if (b.scale) value = value * splat(b.scale[i]);
      if (b.shift) value = value + splat(b.shift[i]);
      if (residual) value = value + residual_at(b, residual + v * b.residual_step);
      if (b.act.name != Activation::none) value = activate(b.act, value);
      store(out + v * b.out_step, value);
    }
  }
}

// The usual ends of a layer are compiled by themselves.
template <int ROWS, int VECS>
LX_INLINE void finish(const Block& b, const Vec (&sums)[ROWS][VECS]) {
  const bool is_relu = b.act.name == Activation::relu;
  const bool simple = is_relu || b.act.name == Activation::none;
  if (!simple || b.scale || b.shift || b.residual_sets > 1) {
    store_modified<ROWS, VECS>(b, sums);
  } else if (b.residual) {
    const Vec low = is_relu ? Vec{} : splat(-__builtin_inff());
    store_sums<ROWS, VECS>(b, sums, [&](Vec sum, int i, int v) {
      const float* residual = b.residual + b.residual_channels[i] * b.lanes;
      return larger_or_nan(low, sum + load(residual + v * b.residual_step));
    });
  } else if (is_relu) {
    store_sums<ROWS, VECS>(b, sums, [](Vec sum, int, int) { return relu(sum); });
  } else {
    store_sums<ROWS, VECS>(b, sums, [](Vec sum, int, int) { return sum; });
  }
}

template <int ROWS, int VECS>
void compute(const Block& b) {
  Vec sums[ROWS][VECS];
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i) {
    const Vec start = splat(b.bias ? b.bias[i] : 0.0f);
#pragma GCC unroll 8
    for (int v = 0; v < VECS; ++v) sums[i][v] = start;
  }
  accumulate<ROWS, VECS>(sums, b.num_taps, TableTaps{b.taps}, b.in, b.in_step, b.weight);
  finish<ROWS, VECS>(b, sums);
}

using Compute = void (*)(const Block&);

template <int ROWS>
struct Row {
  static constexpr Compute kernels[8] = {
      compute<ROWS, 1>,
      // clang-format off
      kMaxVecs[ROWS] >= 2 ? compute<ROWS, kMaxVecs[ROWS] >= 2 ? 2 : 1> : nullptr,
      kMaxVecs[ROWS] >= 3 ? compute<ROWS, kMaxVecs[ROWS] >= 3 ? 3 : 1> : nullptr,
      kMaxVecs[ROWS] >= 4 ? compute<ROWS, kMaxVecs[ROWS] >= 4 ? 4 : 1> : nullptr,
      kMaxVecs[ROWS] >= 5 ? compute<ROWS, kMaxVecs[ROWS] >= 5 ? 5 : 1> : nullptr,
      kMaxVecs[ROWS] >= 6 ? compute<ROWS, kMaxVecs[ROWS] >= 6 ? 6 : 1> : nullptr,
      kMaxVecs[ROWS] >= 7 ? compute<ROWS, kMaxVecs[ROWS] >= 7 ? 7 : 1> : nullptr,
      kMaxVecs[ROWS] >= 8 ? compute<ROWS, kMaxVecs[ROWS] >= 8 ? 8 : 1> : nullptr,
      // clang-format on
  };
};

constexpr const Compute* kKernels[kRows + 1] = {
    nullptr,         Row<1>::kernels, Row<2>::kernels, Row<3>::kernels, Row<4>::kernels,
    Row<5>::kernels, Row<6>::kernels, Row<7>::kernels, Row<8>::kernels,
};

// The outputs of one group: blocks of rows, with everything that belongs to them.
struct Outputs {
  int64_t count;  // M
  int64_t num_blocks;
  const float* weight;  // packed, [M * R]
  const float* bias;    // [M], or null
  const float* scale;
  const float* shift;
  const int32_t* channels;
  const int32_t* residual_channels;
};

// All taps and some vectors, for the blocks from `first` to `last`.
void compute_blocks(Block b, const Outputs& all, int64_t first, int64_t last, int64_t vectors) {
  const int64_t small = all.count / all.num_blocks, larger = all.count % all.num_blocks;
  for (int64_t k = first; k < last; ++k) {
    const int64_t rows = small + (k < larger);
    const int64_t m = k * small + (k < larger ? k : larger);
    b.weight = all.weight + m * b.num_taps;
    b.bias = all.bias ? all.bias + m : nullptr;
    b.scale = all.scale ? all.scale + m : nullptr;
    b.shift = all.shift ? all.shift + m : nullptr;
    b.channels = all.channels + m;
    b.residual_channels = all.residual_channels ? all.residual_channels + m : nullptr;
    kKernels[rows][vectors - 1](b);
  }
}

constexpr int64_t kNearFloats = 1 << 16;  // of weights that stay in the second-level cache

// Every block of outputs along `vectors` vectors, in groups that fit the registers. Weights that
// stay near are read again for each group, whose inputs then come from the first-level cache for
// all blocks but the first; others are read once.
void compute_along(const Block& start, const Outputs& all, int64_t vectors) {
  const bool near = all.count * start.num_taps <= kNearFloats;
  const int64_t at_once = near ? all.num_blocks : 1;
  const int64_t largest = (all.count + all.num_blocks - 1) / all.num_blocks;
  const int64_t groups = num_groups(vectors, kMaxVecs[largest]);
  for (int64_t k = 0; k < all.num_blocks; k += at_once) {
    Block b = start;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t n = (vectors + groups - 1 - g) / groups;
      compute_blocks(b, all, k, k + at_once, n);
      b.in += n * b.in_step;
      b.out += n * b.out_step;
      if (b.residual) b.residual += n * b.residual_step;
    }
  }
}

// The positions of one run: as one stretch if inputs and outputs are contiguous, else for each
// vector of the lanes by itself.
void compute_run(Block b, const Outputs& all, const Run& run) {
  const int64_t lanes = b.lanes;
  const bool even = run.step[0] == 1 && run.step[1] == 1 && (!b.residual || run.step[2] == 1);
  b.in += run.begin[0] * lanes;
  b.out += run.begin[1] * lanes;
  if (b.residual) b.residual += run.begin[2] * lanes;
  if (even || run.count == 1) {
    b.in_step = b.out_step = b.residual_step = kWidth;
    compute_along(b, all, run.count * (lanes / kWidth));
    return;
  }
  b.in_step = run.step[0] * lanes;
  b.out_step = run.step[1] * lanes;
  b.residual_step = run.step[2] * lanes;
  for (int64_t j = 0; j < lanes; j += kWidth) {
    compute_along(b, all, run.count);
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
  b.num_taps = step.num_taps;
  b.act = step.act;
  if (step.residual >= 0) {
    b.residual_set_stride = frame.set_strides[step.residual];
    b.residual_sets = b.residual_set_stride ? frame.num_sets : 1;
    b.coefficients = frame.coefficients;
  }
  Outputs all = {};
  all.count = step.outputs;
  all.num_blocks = (step.outputs + kRows - 1) / kRows;
  const Run* const runs = step.runs.data();
  const int64_t num_runs = static_cast<int64_t>(step.runs.size());
  for (int64_t r = 0; r < num_runs; ++r) {
    for (int64_t g = 0; g < step.groups; ++g) {
      const int64_t m = g * step.outputs;
      b.in = frame.buffers[step.input] + step.group.data()[g] * frame.lanes;
      b.out = frame.buffers[step.out];
      b.residual = step.residual < 0 ? nullptr : frame.buffers[step.residual];
      all.weight = frame.weights[step.weight] + m * step.num_taps;
      all.bias = bias ? bias + m : nullptr;
      all.scale = scale ? scale + m : nullptr;
      all.shift = shift ? shift + m : nullptr;
      all.channels = step.channels.data() + m;
      all.residual_channels = step.residual < 0 ? nullptr : step.residual_channels.data() + m;
      compute_run(b, all, runs[r]);
    }
  }
}

}  // namespace landscapex::program::LX_ISA
