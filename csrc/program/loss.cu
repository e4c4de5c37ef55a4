#include "loss.cuh"

namespace landscapex::program::cuda {
namespace {

__global__ void __launch_bounds__(kMostSlots, kBlocks)
    cross_entropy_kernel(const __grid_constant__ CrossEntropyArgs args,
                         const __grid_constant__ Cells cells) {
  work(args, cells, this_cell(), this_share());
}

__global__ void __launch_bounds__(kMostSlots, kBlocks)
    element_loss_kernel(const __grid_constant__ ElementLossArgs args,
                        const __grid_constant__ Cells cells) {
  work(args, cells, this_cell(), this_share());
}

__global__ void __launch_bounds__(kMostSlots, kBlocks)
    hits_kernel(const __grid_constant__ HitsArgs args, const __grid_constant__ Cells cells) {
  work(args, cells, this_cell(), this_share());
}

// One block for each cell, with a thread for each item, or less.
template <typename Args>
cudaError_t run_loss(void (*kernel)(Args, Cells), const Args& args, int64_t rows,
                     const Cells& cells, cudaStream_t stream) {
  const int64_t warps = (rows * cells.lanes + 31) / 32, most = kMostSlots / 32;
  const auto threads = static_cast<unsigned>(32 * (warps < 1 ? 1 : warps < most ? warps : most));
  launch(kernel, grid_of(cells, 1), threads, 0, stream, args, cells);
  return cudaGetLastError();
}

}  // namespace

cudaError_t run(const CrossEntropyArgs& args, const Cells& cells, cudaStream_t stream) {
  return run_loss(cross_entropy_kernel, args, args.positions, cells, stream);
}
cudaError_t run(const ElementLossArgs& args, const Cells& cells, cudaStream_t stream) {
  return run_loss(element_loss_kernel, args, args.n, cells, stream);
}
cudaError_t run(const HitsArgs& args, const Cells& cells, cudaStream_t stream) {
  return run_loss(hits_kernel, args, args.positions, cells, stream);
}

}  // namespace landscapex::program::cuda
