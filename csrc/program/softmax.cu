#include "softmax.cuh"

namespace landscapex::program::cuda {
namespace {

__global__ void __launch_bounds__(kThreads, kBlocks)
    softmax_kernel(const __grid_constant__ SoftmaxArgs args, const __grid_constant__ Cells cells) {
  work(args, cells, this_cell(), this_share());
}

__global__ void __launch_bounds__(kThreads, kBlocks)
    long_softmax_kernel(const __grid_constant__ SoftmaxArgs args,
                        const __grid_constant__ Cells cells) {
  const Team team;
  const Block block = block_of_team(cells, team);
  compute(args, row_of(args, cells, this_cell(), block.row, block.lane), team);
}

}  // namespace

cudaError_t run(const SoftmaxArgs& args, const Cells& cells, cudaStream_t stream) {
  return run_rows(softmax_kernel, long_softmax_kernel, args, cells, stream);
}

}  // namespace landscapex::program::cuda
