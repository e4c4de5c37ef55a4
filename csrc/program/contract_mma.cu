#include "../kernels/ptx.cuh"
#include "contract_mma.h"
#include "quad.cuh"

// D[outputs][columns] = A[outputs][taps] B[taps][columns] for each cell and group, a column being
// a lane of a position. A warp computes up to 64 outputs by 32 columns, and goes through the taps
// in slices of 16.
//
// A, the weights, is shared by the warps of a block: copied asynchronously to shared memory, two
// stages, one barrier for each; its matrices lie there as they do in global memory, 128 bytes one
// after the other, so that ldmatrix meets no bank conflict and nothing has to be twisted.
//
// B never sees shared memory. Which columns make up a product of 16 x 8 is free: a thread takes
// four neighbouring lanes, 16 bytes, of each of its four taps in a slice, and one lane of each goes
// to each of four products. What a thread has loaded is then just its own part of the operands, and
// its results are again four neighbouring lanes: all accesses have 16 bytes, nothing is exchanged,
// every input is converted once for up to 64 outputs. The inputs of the next slice are on their way
// while the products of this one are summed. Columns of the products, c = 0..7, stand for lanes
//     4 (c / 2) + 16 (c % 2) + (0..3)
// so that the results of a row are stored 64 bytes at a time.
//
// On paper, a slice of a warp with 64 outputs in bf16x3 takes 48 products, 48 to 96 cycles of a
// multiprocessor's four tensor cores, and 8 ldmatrix and 4 loads, 48 cycles of its 128 bytes from
// shared memory or the first-level cache: near balance. bf16 (16 products, 32 cycles of memory) and
// 16 outputs (12 products, 24 cycles) are bound by the caches, because activations stay fp32. 64
// accumulators and what is on its way leave room for one block of eight warps with 64 outputs each:
// two warps for each scheduler, with 16 independent products at a time.
namespace landscapex::program::cuda {
namespace {

namespace ptx = landscapex::cuda::ptx;

constexpr int kWarp = 32;
constexpr int kSlice = 16;        // taps
constexpr int kProductRows = 16;  // outputs of one product
constexpr int kWarpColumns = 32;  // four products of eight
constexpr int kProducts = 4;
constexpr int kMatrixBytes = 128;  // 8 outputs by 16 bytes of taps
constexpr int kTaps = 4;           // of a slice, that one thread loads

template <Math kMath>
struct Format {
  static constexpr int kPlanes = kMath == Math::kBf16x3 ? 2 : 1;
  static constexpr int kWidth = kMath == Math::kTf32 ? 4 : 8;  // taps of a matrix
  static constexpr int kSteps = kMath == Math::kTf32 ? 2 : 1;  // products along a slice
  static constexpr int kMatrices = kSlice / kWidth;            // along a slice
};

// What a block computes: warps of kTiles * 16 outputs, kWarpsM by kWarpsN of them.
template <int kTiles_, int kWarpsM_, int kWarpsN_>
struct Shape {
  static constexpr int kTiles = kTiles_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_;
  static constexpr int kBlock = kWarpsM * kWarpsN * kWarp;  // threads
  static constexpr int kBlocks = kTiles == 4 ? 1 : 2;       // of a multiprocessor
  static constexpr int kWarpRows = kTiles * kProductRows;
  static constexpr int kBlockRows = kWarpsM * kWarpRows;
  static constexpr int kBlockColumns = kWarpsN * kWarpColumns;
};

// The weights of a block: copies `kAlong` matrices along the taps at a time.
template <Math kMath, typename S>
class Weights {
  using F = Format<kMath>;
  static constexpr int kRowBlocks = S::kBlockRows / kRows;
  // 16 KiB at most, and 256 bytes of a row: longer stages mean fewer barriers
  static constexpr int kOfRow = 1024 / S::kBlockRows < 16 ? 1024 / S::kBlockRows : 16;

 public:
  static constexpr int kAlong = kOfRow / F::kPlanes;
  static constexpr int kSlices = kAlong / F::kMatrices;
  static constexpr int kPlaneBytes = kRowBlocks * kAlong * kMatrixBytes;
  static constexpr int kStageBytes = F::kPlanes * kPlaneBytes;

  __device__ Weights(const ContractArgs& args, const Cell& cell, int group, int first_row)
      : rows_(static_cast<int>(args.outputs) - first_row),
        taps_(static_cast<int>(args.num_taps)),
        matrices_((taps_ + F::kWidth - 1) / F::kWidth) {
    const int64_t blocks = (args.outputs + kRows - 1) / kRows;
    const int64_t matrix = (group * blocks + first_row / kRows) * matrices_;
#pragma unroll
    for (int p = 0; p < F::kPlanes; ++p) {
      planes_[p] = static_cast<const char*>(args.planes.data[p]) +
                   cell.point * args.planes.per_point * (16 / F::kWidth) + matrix * kMatrixBytes;
    }
  }

  // Starts copying; what lies beyond the last output or tap becomes zero.
  __device__ __forceinline__ void start(char* stage, int first) const {
    constexpr int kUnits = kStageBytes / 16;
    static_assert(kUnits % S::kBlock == 0, "every thread copies the same number of units");
#pragma unroll
    for (int i = 0; i < kUnits / S::kBlock; ++i) {
      const int unit = i * S::kBlock + static_cast<int>(threadIdx.x);
      const int row = unit % kRows, along = unit / kRows % kAlong;
      const int block = unit / (kRows * kAlong) % kRowBlocks, plane = unit / (kPlaneBytes / 16);
      const int matrix = first + along, left = taps_ - matrix * F::kWidth;
      const int taps = left < F::kWidth ? left : F::kWidth;
      const bool exists = block * kRows + row < rows_ && taps > 0;
      const int64_t source = (int64_t{block} * matrices_ + matrix) * kMatrixBytes + row * 16;
      const char* from = F::kPlanes == 2 && plane == 1 ? planes_[F::kPlanes - 1] : planes_[0];
      ptx::copy_async_16(stage + unit * 16, from + (exists ? source : 0),
                         exists ? taps * (16 / F::kWidth) : 0);
    }
  }

 private:
  int rows_, taps_, matrices_;
  const char* planes_[F::kPlanes];
};

// The inputs of a thread: four neighbouring lanes of a position.
template <Math kMath>
class Inputs {
 public:
  __device__ Inputs(const ContractArgs& args, const Cells& cells, const Cell& cell, int group,
                    int column)
      : taps_(args.taps),
        num_taps_(static_cast<int>(args.num_taps)),
        lanes_(static_cast<int>(cells.lanes)) {
    const int position = column / lanes_;
    base_ = address(args.input, cell) + int64_t{args.at[position] + args.group[group]} * lanes_ +
            column % lanes_;
  }

  // Where the taps of a slice lie. Beyond the last tap: there, where nothing will be read.
  __device__ __forceinline__ void find(int slice, int (&offsets)[kTaps]) const {
    if (is_full(slice)) {
#pragma unroll
      for (int i = 0; i < kTaps; ++i) offsets[i] = taps_[tap(slice, i)] * lanes_;
    } else {
#pragma unroll
      for (int i = 0; i < kTaps; ++i) {
        const int r = tap(slice, i);
        offsets[i] = taps_[r < num_taps_ ? r : num_taps_ - 1] * lanes_;
      }
    }
  }
  __device__ __forceinline__ void read(int slice, const int (&offsets)[kTaps],
                                       Quad (&values)[kTaps]) const {
    if (is_full(slice)) {
#pragma unroll
      for (int i = 0; i < kTaps; ++i) values[i] = load(base_ + offsets[i]);
    } else {  // zeros, because not even a weight of zero takes an infinity away
#pragma unroll
      for (int i = 0; i < kTaps; ++i)
        values[i] = tap(slice, i) < num_taps_ ? load(base_ + offsets[i]) : splat(0.0f);
    }
  }

 private:
  __device__ __forceinline__ bool is_full(int slice) const {
    return (slice + 1) * kSlice <= num_taps_;
  }
  // As operands lie in the threads of a warp: pairs 2t, 2t + 1 of bf16, single ones of tf32.
  static __device__ __forceinline__ int tap(int slice, int i) {
    const int t = static_cast<int>(threadIdx.x) % 4;
    return slice * kSlice + (kMath == Math::kTf32 ? 4 * i + t : 8 * (i / 2) + 2 * t + i % 2);
  }
  const float* base_;
  const int32_t* taps_;
  int num_taps_, lanes_;
};

// The right operands of a slice.
template <Math kMath>
struct Operands {
  uint32_t words[Format<kMath>::kPlanes][Format<kMath>::kSteps][kProducts][2];

  __device__ __forceinline__ void convert(const Quad (&values)[kTaps]) {
#pragma unroll
    for (int j = 0; j < kProducts; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if constexpr (kMath == Math::kTf32) {
#pragma unroll
          for (int s = 0; s < 2; ++s)
            words[0][s][j][i] = ptx::round_to_tf32(values[2 * s + i].v[j]);
        } else {
          const float first = values[2 * i].v[j], second = values[2 * i + 1].v[j];
          const uint32_t high = ptx::pack_bf16(first, second);
          words[0][0][j][i] = high;
          if constexpr (kMath == Math::kBf16x3) {
            words[1][0][j][i] = ptx::pack_bf16(first - bit_cast<float>(high << 16),
                                               second - bit_cast<float>(high & 0xffff0000u));
          }
        }
      }
    }
  }
};

template <Math kMath>
__device__ __forceinline__ void multiply(float (&sums)[kProducts][4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[kProducts][2]) {
#pragma unroll
  for (int j = 0; j < kProducts; ++j) {
    if constexpr (kMath == Math::kTf32) {
      ptx::mma_tf32(sums[j], a, b[j][0], b[j][1]);
    } else {
      ptx::mma_bf16(sums[j], a, b[j][0], b[j][1]);
    }
  }
}

// Adds the products of a slice. `weights`: those of the warp in this stage, from the slice on.
template <Math kMath, typename W, int kTiles>
__device__ __forceinline__ void multiply_slice(const char* weights, const Operands<kMath>& b,
                                               float (&sums)[kTiles][kProducts][4]) {
  using F = Format<kMath>;
  // Matrices 0 to 3 of an operand: outputs 0-7 and 8-15 of the first taps, then of the second.
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const char* row = weights + (lane / 8 % 2 * W::kAlong + lane / 16) * kMatrixBytes + lane % 8 * 16;
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int s = 0; s < F::kSteps; ++s) {
      uint32_t a[F::kPlanes][4];
#pragma unroll
      for (int p = 0; p < F::kPlanes; ++p) {
        ptx::load_matrix_x4(a[p],
                            row + p * W::kPlaneBytes + (2 * i * W::kAlong + 2 * s) * kMatrixBytes);
      }
      if constexpr (kMath == Math::kBf16x3) {
        // low times low is below the rounding of fp32 and left out
        multiply<kMath>(sums[i], a[1], b.words[0][s]);
        multiply<kMath>(sums[i], a[0], b.words[1][s]);
      }
      multiply<kMath>(sums[i], a[0], b.words[0][s]);
    }
  }
}

// What follows the sums, and the stores. The thread has four lanes from `column` on, and from
// `column + 16` on.
template <int kTiles>
class Finish {
 public:
  __device__ Finish(const ContractArgs& args, const Cells& cells, const Cell& cell, int group,
                    int first_row, int column)
      : args_(args),
        lanes_(static_cast<int>(cells.lanes)),
        columns_(static_cast<int>(args.positions * cells.lanes)),
        column_(column),
        first_row_(first_row + static_cast<int>(threadIdx.x) % kWarp / 4),
        first_output_(group * static_cast<int>(args.outputs)),
        out_(address(args.out, cell)) {}

  __device__ __forceinline__ void store_sums(const Cells& cells, const Cell& cell,
                                             const float (&sums)[kTiles][kProducts][4]) const {
    const float* const bias = address(args_.bias, cell);
    const float* const scale = address(args_.scale, cell);
    const float* const shift = address(args_.shift, cell);
    const bool add = args_.residual.data != nullptr;
    const QuadReader residual(args_.residual, cells, cell);
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      if (column_ + 16 * q >= columns_) break;
      const int position = (column_ + 16 * q) / lanes_, lane = (column_ + 16 * q) % lanes_;
      const int to = args_.to[position], from = add ? args_.residual_at[position] : 0;
#pragma unroll
      for (int n = 0; n < 2 * kTiles; ++n) {
        const int row = first_row_ + 8 * n, output = first_output_ + row;
        if (row >= args_.outputs) break;
        const int k = n % 2 * 2 + q;
        Quad v = {{sums[n / 2][0][k], sums[n / 2][1][k], sums[n / 2][2][k], sums[n / 2][3][k]}};
        const auto plus = [](float x, float y) { return x + y; };
        const auto times = [](float x, float y) { return x * y; };
        if (bias) v = each(plus, v, splat(bias[output]));
        if (scale) v = each(times, v, splat(scale[output]));
        if (shift) v = each(plus, v, splat(shift[output]));
        if (add)
          v = each(plus, v, residual((from + args_.residual_channels[output]) * lanes_ + lane));
        if (args_.act.name == Activation::relu) v = each(relu, v);
        store(out_ + (to + args_.channels[output]) * lanes_ + lane, v);
      }
    }
  }

  // Any other activation: its code is long, so that it gets a loop of its own over what this
  // thread has stored.
  __device__ __forceinline__ void activate_stored() const {
#pragma unroll 1
    for (int n = 0; n < 4 * kTiles * kQuad; ++n) {
      const int column = column_ + n % kQuad + n / kQuad % 2 * 16;
      const int row = first_row_ + n / (2 * kQuad) * 8;
      if (column >= columns_ || row >= args_.outputs) continue;
      const int element = args_.to[column / lanes_] + args_.channels[first_output_ + row];
      float* const p = out_ + element * lanes_ + column % lanes_;
      *p = activate(args_.act, *p);
    }
  }

 private:
  const ContractArgs& args_;
  int lanes_, columns_, column_, first_row_, first_output_;
  float* out_;
};

template <Math kMath, typename S>
__global__ void __launch_bounds__(S::kBlock, S::kBlocks)
    contract_mma_kernel(const __grid_constant__ ContractArgs args,
                        const __grid_constant__ Cells cells) {
  using W = Weights<kMath, S>;
  LX_DYNAMIC_SHARED(char, shared);
  const Cell cell = this_cell();
  const int outputs = static_cast<int>(args.outputs);
  const int columns = static_cast<int>(args.positions * cells.lanes);
  // Neighbouring blocks take the same columns, which then come from the second-level cache.
  const int row_tiles = (outputs + S::kBlockRows - 1) / S::kBlockRows;
  const int column_tiles = (columns + S::kBlockColumns - 1) / S::kBlockColumns;
  const int tile = static_cast<int>(blockIdx.x) / row_tiles;
  const int group = tile / column_tiles;
  const int block_row = static_cast<int>(blockIdx.x) % row_tiles * S::kBlockRows;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first_row = block_row + warp % S::kWarpsM * S::kWarpRows;
  const int first_column =
      tile % column_tiles * S::kBlockColumns + warp / S::kWarpsM * kWarpColumns;
  const bool busy = first_row < outputs && first_column < columns;

  const Weights<kMath, S> weights(args, cell, group, block_row);
  // Columns beyond the last one read what the first one reads; their results are not stored.
  const int wanted = first_column + lane / 8 * 4 + lane / 4 % 2 * 16;
  const Inputs<kMath> inputs(args, cells, cell, group, wanted < columns ? wanted : 0);
  const int slices = (static_cast<int>(args.num_taps) + kSlice - 1) / kSlice;
  const int stages = (slices + W::kSlices - 1) / W::kSlices;

  float sums[S::kTiles][kProducts][4] = {};
  Quad values[kTaps];
  int offsets[kTaps];
  weights.start(shared, 0);
  ptx::commit_group();
  if (busy) {
    inputs.find(0, offsets);
    inputs.read(0, offsets, values);
    inputs.find(1, offsets);
  }
  for (int stage = 0; stage < stages; ++stage) {
    ptx::wait_group<0>();
    // Two things at once: the weights of this stage are visible to all threads, and all have left
    // the stage before, whose place the next copies take.
    __syncthreads();
    if (stage + 1 < stages) {
      weights.start(shared + (stage + 1) % 2 * W::kStageBytes, (stage + 1) * W::kAlong);
      ptx::commit_group();
    }
    if (!busy) continue;
    const char* here = shared + stage % 2 * W::kStageBytes +
                       warp % S::kWarpsM * (S::kWarpRows / kRows) * W::kAlong * kMatrixBytes;
#pragma unroll 1
    for (int s = 0; s < W::kSlices; ++s) {
      const int slice = stage * W::kSlices + s;
      if (slice >= slices) break;
      Operands<kMath> operands;
      operands.convert(values);
      if (slice + 1 < slices) {
        inputs.read(slice + 1, offsets, values);
        inputs.find(slice + 2, offsets);
      }
      multiply_slice<kMath, W>(here + s * Format<kMath>::kMatrices * kMatrixBytes, operands, sums);
    }
  }
  if (!busy) return;
  const Finish<S::kTiles> finish(args, cells, cell, group, first_row, first_column + lane % 4 * 4);
  finish.store_sums(cells, cell, sums);
  if (!is_cheap(args.act)) finish.activate_stored();
}

template <Math kMath, typename S>
cudaError_t launch_shape(const ContractArgs& args, const Cells& cells, cudaStream_t stream) {
  const int64_t columns = args.positions * cells.lanes;
  const int64_t row_tiles = (args.outputs + S::kBlockRows - 1) / S::kBlockRows;
  const int64_t column_tiles = (columns + S::kBlockColumns - 1) / S::kBlockColumns;
  const int64_t blocks = args.groups * row_tiles * column_tiles;
  if (columns > INT32_MAX || blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  constexpr int kShared = 2 * Weights<kMath, S>::kStageBytes;
  static_assert(kShared <= 48 * 1024, "more must be asked for");
  launch(contract_mma_kernel<kMath, S>, grid_of(cells, static_cast<unsigned>(blocks)), S::kBlock,
         kShared, stream, args, cells);
  return cudaGetLastError();
}

// Wide tiles read each input once for many outputs, and each weight for many columns. The sum of a
// result takes the same course in all of them.
template <Math kMath>
cudaError_t launch_math(const ContractArgs& args, const Cells& cells, cudaStream_t stream) {
  if (args.outputs <= 16) return launch_shape<kMath, Shape<1, 1, 8>>(args, cells, stream);
  if (args.outputs <= 32) return launch_shape<kMath, Shape<2, 1, 8>>(args, cells, stream);
  if (args.outputs <= 64 && args.positions * cells.lanes > 128)
    return launch_shape<kMath, Shape<4, 1, 8>>(args, cells, stream);
  return launch_shape<kMath, Shape<4, 2, 4>>(args, cells, stream);
}

}  // namespace

cudaError_t run_contract_mma(const ContractArgs& args, const Cells& cells, cudaStream_t stream) {
  if (args.groups == 0 || args.outputs == 0 || args.positions == 0) return cudaSuccess;
  if (args.num_taps == 0 || args.planes.data[0] == nullptr) return cudaErrorInvalidValue;
  switch (args.math) {
    case Math::kBf16x3:
      return launch_math<Math::kBf16x3>(args, cells, stream);
    case Math::kTf32:
      return launch_math<Math::kTf32>(args, cells, stream);
    case Math::kBf16:
      return launch_math<Math::kBf16>(args, cells, stream);
    case Math::kFp32:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace landscapex::program::cuda
