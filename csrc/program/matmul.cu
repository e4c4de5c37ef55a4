#include "matmul.cuh"

namespace landscapex::program::cuda {
namespace {

// 64 results of a thread for 32 numbers read in each step of the sum: 16 bytes of the first-level
// cache for 8 multiply-adds. Larger tiles would not leave registers for two blocks.
constexpr int kTile = 4;

__global__ void __launch_bounds__(kThreads)
    matmul_kernel(const __grid_constant__ MatMulArgs args, const __grid_constant__ Cells cells) {
  multiply<kTile>(args, cells, this_cell(), this_share());
}

}  // namespace

cudaError_t run(const MatMulArgs& args, const Cells& cells, cudaStream_t stream) {
  const int64_t tiles = args.batch * num_tiles(args.rows, kTile) * num_tiles(args.columns, kTile);
  launch(matmul_kernel, grid_of(cells, blocks_for(tiles * cells.lanes / kQuad, 1)), kThreads, 0,
         stream, args, cells);
  return cudaGetLastError();
}

}  // namespace landscapex::program::cuda
