// Which kernel multiplies a contraction in fp32, and the two that hold many results in a thread.
//
// A multiprocessor does 128 multiply-adds per clock and moves 128 bytes between registers and L1 or
// shared memory, so that what a kernel moves during the clocks of its multiply-adds bounds it. Of
// one tap:
//
//   tile 64 x 128, 8 x 8 results a thread: 64 clocks; 6 + 6 from global memory to shared memory by
//     way of registers, 16 back to registers
//   tile 32 x 128, likewise: 32 clocks; 5 + 5, 8
//   tile 64 x 32, 8 x 4 results: 16 clocks; 3 + 3, 6
//   strips, 16 x 4 or 8 x 8 results: 16 clocks of a warp; inputs go from L1 to registers, 4 or 8,
//     and only weights through shared memory, 5 or 3. With a tile of 16 x 256 it would be 29 of 32,
//     with one of 8 x 256 more than there are.
//   general path, up to 8 x 4 results: 8 clocks; 4 of inputs, 1 of their place and 2 to 8 of
//   weights
//
// Of the instructions of their inner loops 5 in 6 are multiply-adds in tiles and strips, at most 2
// in 3 in the general path (counted for sm_90). 64 sums, 16 operands and what is on its way for the
// next taps take 122 to 168 registers, which leaves room for 12 to 16 warps: each has 64
// independent sums, so that three or four of them keep a scheduler busy.
#include <algorithm>
#include <iterator>
#include <type_traits>

#include "contract.cuh"
#include "contract_mma.h"

namespace landscapex::program::cuda {

namespace {

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

// ---- tiles of both operands in shared memory

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
    const float* rows = stage + down;
    const float* values = stage + T::kTaps * T::kBlockRows + across;
#pragma unroll
    for (int k = 0; k < T::kTaps; ++k) {
      float w[T::kCount];
      load_quads(rows + k * T::kBlockRows, w);
#pragma unroll
      for (int v = 0; v < T::kVectors; ++v) {
        const int at = k * T::kBlockColumns + v * (T::kBlockColumns / T::kVectors);
        multiply_add(w, load(values + at), sums[v]);
      }
    }
    stage = shared + (stage == shared ? T::kStageFloats : 0);
  }
  if (in_stretches) totals.add_to(sums);
#pragma unroll
  for (int v = 0; v < T::kVectors; ++v) {
    const int index = part.first_column + v * (T::kBlockColumns / T::kVectors) + across;
    if (index < columns) finish(args, cells, cell, own, column_at(index, columns, lanes), sums[v]);
  }
}

// ---- few outputs: only weights and tables in shared memory

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

// ---- any shape

__global__ void __launch_bounds__(kThreads, 2)
    contract_general_kernel(const __grid_constant__ ContractArgs args,
                            const __grid_constant__ Cells cells) {
  work(args, cells, this_cell(), this_share());
}

// ---- which one

// Few items are cut into smaller ones: `work` sees from the number of threads that they are there.
constexpr int64_t kFewItems = 4 * kThreads;

void launch_general(const ContractArgs& args, const Cells& cells, cudaStream_t stream) {
  const int64_t whole = num_items(args, cells, kRows);
  const int64_t items = whole < kFewItems ? num_items(args, cells, kFewRows) : whole;
  launch(contract_general_kernel, grid_of(cells, blocks_for(items, 1)), kThreads, 0, stream, args,
         cells);
}

int64_t blocks_of(const ContractArgs& args, const Cells& cells, int rows, int columns) {
  const int64_t down = (args.outputs + rows - 1) / rows;
  const int64_t across = (args.positions * cells.lanes + columns - 1) / columns;
  return args.groups * down * across;
}

template <typename T, typename Kernel>
void launch_blocks(Kernel kernel, int stages, const ContractArgs& args, const Cells& cells,
                   cudaStream_t stream) {
  const int floats = stages * T::kStageFloats + (is_long(args.num_taps) ? T::kTotalFloats : 0);
  const int64_t blocks = blocks_of(args, cells, T::kBlockRows, T::kBlockColumns);
  launch(kernel, grid_of(cells, static_cast<unsigned>(blocks)), T::kThreads, floats * sizeof(float),
         stream, args, cells);
}
template <typename T>
void launch_tile(const ContractArgs& args, const Cells& cells, cudaStream_t stream) {
  static_assert((2 * T::kStageFloats + T::kTotalFloats) * sizeof(float) <= 48 * 1024, "no opt-in");
  const bool eights = args.outputs % kRows == 0 && args.weight.per_point % kQuad == 0 &&
                      reinterpret_cast<uintptr_t>(args.weight.data) % sizeof(float4) == 0;
  launch_blocks<T>(eights ? contract_tile_kernel<T, true> : contract_tile_kernel<T, false>, 2, args,
                   cells, stream);
}
template <typename T>
void launch_strip(const ContractArgs& args, const Cells& cells, cudaStream_t stream) {
  static_assert((T::kStageFloats + T::kTotalFloats) * sizeof(float) <= 48 * 1024, "no opt-in");
  launch_blocks<T>(contract_strip_kernel<T>, 1, args, cells, stream);
}

struct Variant {
  int rows, columns;  // that a block computes, whether they exist or not
  double rate;        // of its multiply-adds, as a part of what an SM could do: estimated
  void (*launch)(const ContractArgs&, const Cells&, cudaStream_t);
};
template <typename T>
constexpr Variant tile(double rate) {
  return {T::kBlockRows, T::kBlockColumns, rate, launch_tile<T>};
}
template <typename T>
constexpr Variant strip(double rate) {
  return {T::kBlockRows, T::kBlockColumns, rate, launch_strip<T>};
}
constexpr Variant kVariants[] = {
    tile<Tile<64, 128, 2>>(0.85), tile<Tile<32, 128, 2>>(0.8), tile<Tile<64, 32, 1>>(0.65),
    strip<Strip<16, 1>>(0.7),     strip<Strip<8, 2>>(0.65),    {1, 1, 0.4, launch_general},
};

// The shape of the step decides, not the number of cells, although all have the same results.
const Variant& fastest(const ContractArgs& args, const Cells& cells) {
  const auto time = [&](const Variant& v) {
    const double results = static_cast<double>(v.rows) * v.columns;
    return blocks_of(args, cells, v.rows, v.columns) * results / v.rate;
  };
  return *std::min_element(std::begin(kVariants), std::end(kVariants),
                           [&](const Variant& a, const Variant& b) { return time(a) < time(b); });
}

}  // namespace

cudaError_t run(const ContractArgs& args, const Cells& cells, cudaStream_t stream) {
  if (args.math != Math::kFp32 && takes_tensor_cores(args.outputs, args.num_taps))
    return run_contract_mma(args, cells, stream);
  fastest(args, cells).launch(args, cells, stream);
  return cudaGetLastError();
}

}  // namespace landscapex::program::cuda
