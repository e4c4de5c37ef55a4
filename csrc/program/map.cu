#include "map.cuh"

namespace landscapex::program::cuda {
namespace {

constexpr int64_t kPerThread = 4;

__global__ void __launch_bounds__(kThreads, kBlocks)
    map_kernel(const __grid_constant__ MapArgs args, const __grid_constant__ Cells cells) {
  work(args, cells, this_cell(), this_share());
}

}  // namespace

cudaError_t run(const MapArgs& args, const Cells& cells, cudaStream_t stream) {
  launch(map_kernel, grid_of(cells, blocks_for(args.n * cells.lanes / kQuad, kPerThread)), kThreads,
         0, stream, args, cells);
  return cudaGetLastError();
}

}  // namespace landscapex::program::cuda
