#include "cells.cuh"

namespace landscapex::program::cuda {
namespace {

__global__ void __launch_bounds__(kThreads, kBlocks)
    lstm_cell_kernel(const __grid_constant__ LstmCellArgs args,
                     const __grid_constant__ Cells cells) {
  work(args, cells, this_cell(), this_share());
}

__global__ void __launch_bounds__(kThreads, kBlocks)
    gru_cell_kernel(const __grid_constant__ GruCellArgs args, const __grid_constant__ Cells cells) {
  work(args, cells, this_cell(), this_share());
}

template <typename Args>
cudaError_t run_cell(void (*kernel)(Args, Cells), const Args& args, const Cells& cells,
                     cudaStream_t stream) {
  launch(kernel, grid_of(cells, blocks_for(args.width * cells.lanes / kQuad, 1)), kThreads, 0,
         stream, args, cells);
  return cudaGetLastError();
}

}  // namespace

cudaError_t run(const LstmCellArgs& args, const Cells& cells, cudaStream_t stream) {
  return run_cell(lstm_cell_kernel, args, cells, stream);
}
cudaError_t run(const GruCellArgs& args, const Cells& cells, cudaStream_t stream) {
  return run_cell(gru_cell_kernel, args, cells, stream);
}

}  // namespace landscapex::program::cuda
