// Linear layers and convolutions in fp32: what all kernels of them have in common, and the general
// path, which takes any shape.
//
// The order of a sum does not depend on the kernel, so that all of them give the same bits: taps in
// ascending order, one multiply-add each, into one number that starts with the bias. Long sums are
// sums of sums over stretches, added to the bias one after the other: a single chain of a thousand
// additions would show in the last digits.
#pragma once

#include "device_steps.h"
#include "quad.cuh"

namespace landscapex::program::cuda {

constexpr int kStretch = 128;                         // taps
constexpr int kMostAtOnce = kStretch + kStretch / 2;  // taps that are no long sum

__host__ __device__ __forceinline__ bool is_long(int64_t num_taps) {
  return num_taps > kMostAtOnce;
}
__device__ __forceinline__ int end_of_stretch(int begin, int num_taps) {
  return is_long(num_taps) && num_taps - begin > kStretch ? begin + kStretch : num_taps;
}

// How the outputs of a group are packed: in blocks of at most kRows, as equal as can be, larger
// ones first. The weights of a block are [R][its rows].
struct RowBlocks {
  int count, small, larger;

  __host__ __device__ __forceinline__ explicit RowBlocks(int outputs)
      : count((outputs + kRows - 1) / kRows), small(outputs / count), larger(outputs % count) {}
  __host__ __device__ __forceinline__ int largest() const { return small + (larger > 0); }
  __device__ __forceinline__ int rows(int block) const { return small + (block < larger); }
  __device__ __forceinline__ int first(int block) const {
    return block * small + (block < larger ? block : larger);
  }
  __device__ __forceinline__ int block_of(int output) const {
    const int of_larger = larger * (small + 1);
    return output < of_larger ? output / (small + 1) : larger + (output - of_larger) / small;
  }
};

// The weights of one output: `step` floats from tap to tap.
struct WeightRow {
  const float* data;
  int step;

  __device__ __forceinline__ WeightRow(const float* weights_of_group, int num_taps, int output,
                                       int outputs) {
    const RowBlocks blocks(outputs);
    const int block = blocks.block_of(output), first = blocks.first(block);
    data = weights_of_group + int64_t{first} * num_taps + (output - first);
    step = blocks.rows(block);
  }
};
__device__ __forceinline__ const float* weights_of(const ContractArgs& args, const Cell& cell,
                                                   int group) {
  return address(args.weight, cell) + int64_t{group} * (args.outputs * args.num_taps);
}

__device__ __forceinline__ Quad operator+(const Quad& a, const Quad& b) {
  return each([](float x, float y) { return x + y; }, a, b);
}

// Four lanes at one position.
struct Column {
  int position, lane;
};
__device__ __forceinline__ const float* input_of(const ContractArgs& args, const Cells& cells,
                                                 const Cell& cell, int group,
                                                 const Column& column) {
  const int lanes = static_cast<int>(cells.lanes);
  return address(args.input, cell) +
         ((args.at[column.position] + args.group[group]) * lanes + column.lane);
}

// Some consecutive outputs of a group: as many as a thread has sums for, or fewer at the end, or
// none.
struct Outputs {
  int group, first, count;

  // Where tables of all outputs have the i-th. Past the end it is one that exists, so that nothing
  // need be asked before it is read; only what is stored must be there.
  __device__ __forceinline__ int at(const ContractArgs& args, int i) const {
    const int outputs = static_cast<int>(args.outputs);
    return group * outputs + min(first + i, outputs - 1);
  }
};

template <int kCount>
__device__ __forceinline__ void start(const ContractArgs& args, const Cell& cell,
                                      const Outputs& outputs, Quad (&sums)[kCount]) {
  const float* bias = address(args.bias, cell);
#pragma unroll
  for (int i = 0; i < kCount; ++i) sums[i] = splat(bias ? bias[outputs.at(args, i)] : 0.f);
}

// The activations that take long, by themselves: they would not fit beside the sums of a thread,
// nor should every kernel repeat them. In place, on what the thread itself has stored.
__device__ __noinline__ inline void activate_stored(Act act, float* out, const int32_t* channels,
                                                    int count, int lanes) {
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    float* p = out + channels[i] * lanes;
    store(p, activate(act, load(p)));
  }
}

// Reads as QuadReader does, but a few outputs at a time, set by set: so that they wait for memory
// together.
template <int kCount>
__device__ __forceinline__ void add_residual(const ContractArgs& args, const Cells& cells,
                                             const Cell& cell, const Outputs& outputs,
                                             const Column& column, Quad (&sums)[kCount]) {
  constexpr int kTogether = 4;
  const int lanes = static_cast<int>(cells.lanes);
  const int num_sets = args.residual.per_set == 0 ? 1 : static_cast<int>(cells.num_sets);
  const double* coordinates = cells.coordinates + cell.point * (cells.num_sets - 1);
  const float* base =
      address(args.residual, cell) + (args.residual_at[column.position] * lanes + column.lane);
#pragma unroll
  for (int i = 0; i < kCount; i += kTogether) {
    constexpr int kRest = kTogether < kCount ? kTogether : kCount;
    int offsets[kRest];
    Quad values[kRest];
#pragma unroll
    for (int j = 0; j < kRest; ++j) {
      offsets[j] = args.residual_channels[outputs.at(args, i + j)] * lanes;
      values[j] = load(base + offsets[j]);
    }
#pragma unroll 1
    for (int k = 1; k < num_sets; ++k) {
      const Quad c = splat(static_cast<float>(coordinates[k - 1]));
#pragma unroll
      for (int j = 0; j < kRest; ++j)
        values[j] = fma(c, load(base + k * args.residual.per_set + offsets[j]), values[j]);
    }
#pragma unroll
    for (int j = 0; j < kRest; ++j)
      if (i + j < kCount) sums[i + j] = sums[i + j] + values[j];
  }
}

// What comes after the sum: scale, shift, residual, activation and the store. Loads come
// before all stores, so that they need not wait for one another.
template <int kCount>
__device__ __forceinline__ void finish(const ContractArgs& args, const Cells& cells,
                                       const Cell& cell, const Outputs& outputs,
                                       const Column& column, Quad (&sums)[kCount]) {
  const int lanes = static_cast<int>(cells.lanes);
  if (const float* scale = address(args.scale, cell)) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float factor = scale[outputs.at(args, i)];
      sums[i] = each([factor](float x) { return x * factor; }, sums[i]);
    }
  }
  if (const float* shift = address(args.shift, cell)) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[i] = sums[i] + splat(shift[outputs.at(args, i)]);
  }
  if (args.residual.data) add_residual(args, cells, cell, outputs, column, sums);
  if (args.act.name == Activation::relu) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[i] = each([](float x) { return relu(x); }, sums[i]);
  }
  float* out = address(args.out, cell) + (args.to[column.position] * lanes + column.lane);
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    if (i < outputs.count) store(out + args.channels[outputs.at(args, i)] * lanes, sums[i]);
  if (!is_cheap(args.act) && outputs.count > 0)
    activate_stored(args.act, out, args.channels + outputs.at(args, 0), outputs.count, lanes);
}

// What lies together and is aligned, as numbers.
template <int kCount>
__device__ __forceinline__ void load_quads(const float* from, float (&to)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += kQuad) {
    const Quad four = load(from + i);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) to[i + j] = four.v[j];
  }
}

// sums[i] += weights[i] * x
template <int kCount>
__device__ __forceinline__ void multiply_add(const float (&weights)[kCount], const Quad& x,
                                             Quad (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) sums[i] = fma(splat(weights[i]), x, sums[i]);
}

// What the general path takes together: outputs of one block of rows at one column.
struct Item {
  Outputs outputs;
  Column column;
  const float* weights;  // of the first output
  int step;              // from tap to tap
};

// kAligned: the weights of a tap may be loaded four at a time.
template <bool kAligned, int kCount>
__device__ __forceinline__ void add_taps(const ContractArgs& args, int begin, int end, int lanes,
                                         const float* in, const Item& item, Quad (&sums)[kCount]) {
  const int32_t* taps = args.taps + begin;
  const float* from = item.weights + int64_t{begin} * item.step;
#pragma unroll 4
  for (int r = end - begin; r > 0; --r) {
    float weights[kCount];
    if constexpr (kAligned) {
      load_quads(from, weights);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) weights[i] = from[i];
    }
    multiply_add(weights, load(in + *taps * lanes), sums);
    ++taps;
    from += item.step;
  }
}

template <int kCount, bool kLong, bool kAligned = false>
__device__ __forceinline__ void compute(const ContractArgs& args, const Cells& cells,
                                        const Cell& cell, const Item& item) {
  const int lanes = static_cast<int>(cells.lanes), num_taps = static_cast<int>(args.num_taps);
  const float* in = input_of(args, cells, cell, item.outputs.group, item.column);
  Quad sums[kCount];
  start(args, cell, item.outputs, sums);
  if constexpr (kLong) {
    Quad totals[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) totals[i] = sums[i];
    for (int begin = 0, end; begin < num_taps; begin = end) {
      end = end_of_stretch(begin, num_taps);
#pragma unroll
      for (int i = 0; i < kCount; ++i) sums[i] = splat(0);
      add_taps<kAligned>(args, begin, end, lanes, in, item, sums);
#pragma unroll
      for (int i = 0; i < kCount; ++i) totals[i] = totals[i] + sums[i];
    }
    finish(args, cells, cell, item.outputs, item.column, totals);
  } else {
    add_taps<kAligned>(args, 0, num_taps, lanes, in, item, sums);
    finish(args, cells, cell, item.outputs, item.column, sums);
  }
}

constexpr int kLongRows = 4, kFewRows = 2;  // of an item at most

template <bool kLong>
__device__ __forceinline__ void compute_item(const ContractArgs& args, const Cells& cells,
                                             const Cell& cell, const Item& item) {
  switch (item.outputs.count) {
    case 1:
      return compute<1, kLong>(args, cells, cell, item);
    case 2:
      return compute<2, kLong>(args, cells, cell, item);
    case 3:
      return compute<3, kLong>(args, cells, cell, item);
    case 4:
      return compute<4, kLong>(args, cells, cell, item);
  }
  if constexpr (!kLong) {
    switch (item.outputs.count) {
      case 5:
        return compute<5, false>(args, cells, cell, item);
      case 6:
        return compute<6, false>(args, cells, cell, item);
      case 7:
        return compute<7, false>(args, cells, cell, item);
      case 8:
        if (reinterpret_cast<uintptr_t>(item.weights) % sizeof(float4) == 0)
          return compute<8, false, true>(args, cells, cell, item);
        return compute<8, false>(args, cells, cell, item);
    }
  }
}

// Items of the general path, in a cell: whole blocks of rows, or parts of them where threads would
// have nothing to do.
__host__ __device__ __forceinline__ int64_t num_items(const ContractArgs& args, const Cells& cells,
                                                      int most_rows) {
  const RowBlocks blocks(static_cast<int>(args.outputs));
  const int parts = (blocks.largest() + most_rows - 1) / most_rows;
  return args.groups * blocks.count * parts * args.positions * (cells.lanes / kQuad);
}

__device__ inline void work(const ContractArgs& args, const Cells& cells, const Cell& cell,
                            const Share& share) {
  const RowBlocks blocks(static_cast<int>(args.outputs));
  const bool is_few = num_items(args, cells, kRows) * 3 <= share.stride;
  const int most_rows = is_few ? kFewRows : is_long(args.num_taps) ? kLongRows : kRows;
  const int64_t items = num_items(args, cells, most_rows);
  const unsigned quads = static_cast<unsigned>(cells.lanes) / kQuad;
  const unsigned columns = static_cast<unsigned>(args.positions) * quads;
  const unsigned parts = (blocks.largest() + most_rows - 1) / most_rows;
  for (int64_t i = share.first; i < items; i += share.stride) {
    const unsigned which = static_cast<unsigned>(i) / columns;
    const unsigned column = static_cast<unsigned>(i) - which * columns;
    const int position = static_cast<int>(column / quads);
    const int lane = static_cast<int>(column - position * quads) * kQuad;
    const int start = static_cast<int>(which % parts) * most_rows;  // in the block
    const int block = static_cast<int>(which / parts) % blocks.count;
    const int group = static_cast<int>(which / parts) / blocks.count;
    const int rows = blocks.rows(block), first = blocks.first(block);
    const int left = rows - start;
    const float* weights = weights_of(args, cell, group) + int64_t{first} * args.num_taps + start;
    const Item item = {{group, first + start, left < most_rows ? left : most_rows},
                       {position, lane},
                       weights,
                       rows};
    if (is_long(args.num_taps))
      compute_item<true>(args, cells, cell, item);
    else
      compute_item<false>(args, cells, cell, item);
  }
}

}  // namespace landscapex::program::cuda
