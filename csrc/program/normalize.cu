#include "normalize.cuh"

namespace landscapex::program::cuda {
namespace {

__global__ void __launch_bounds__(kThreads, kBlocks)
    normalize_kernel(const __grid_constant__ NormalizeArgs args,
                     const __grid_constant__ Cells cells) {
  work(args, cells, this_cell(), this_share());
}

__global__ void __launch_bounds__(kThreads, kBlocks)
    long_normalize_kernel(const __grid_constant__ NormalizeArgs args,
                          const __grid_constant__ Cells cells) {
  const Team team;
  const Block block = block_of_team(cells, team);
  const Row row = row_of(args, cells, this_cell(), block.row, block.lane);
  normalize(args, this_cell(), row, block.row, team);
}

}  // namespace

cudaError_t run(const NormalizeArgs& args, const Cells& cells, cudaStream_t stream) {
  return run_rows(normalize_kernel, long_normalize_kernel, args, cells, stream);
}

}  // namespace landscapex::program::cuda
