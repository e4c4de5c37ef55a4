#include "reduce.cuh"

namespace landscapex::program::cuda {
namespace {

__global__ void __launch_bounds__(kThreads, kBlocks)
    reduce_kernel(const __grid_constant__ ReduceArgs args, const __grid_constant__ Cells cells) {
  work(args, cells, this_cell(), this_share());
}

}  // namespace

cudaError_t run(const ReduceArgs& args, const Cells& cells, cudaStream_t stream) {
  launch(reduce_kernel, grid_of(cells, blocks_for(args.n * cells.lanes / kQuad, 1)), kThreads, 0,
         stream, args, cells);
  return cudaGetLastError();
}

}  // namespace landscapex::program::cuda
