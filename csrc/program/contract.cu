// Which kernel multiplies a contraction in fp32: tiles, strips or the general path.
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

#include "contract_mma.h"
#include "contract_strip.cuh"
#include "contract_tile.cuh"

namespace landscapex::program::cuda {
namespace {

__global__ void __launch_bounds__(kThreads, 2)
    contract_general_kernel(const __grid_constant__ ContractArgs args,
                            const __grid_constant__ Cells cells) {
  work(args, cells, this_cell(), this_share());
}

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
  double rate;        // of its multiply-adds, as a part of what there could be: estimated
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
  if (args.groups * args.outputs * args.positions == 0) return cudaSuccess;
  if (args.math != Math::kFp32 && takes_tensor_cores(args.outputs, args.num_taps))
    return run_contract_mma(args, cells, stream);
  fastest(args, cells).launch(args, cells, stream);
  return cudaGetLastError();
}

}  // namespace landscapex::program::cuda
