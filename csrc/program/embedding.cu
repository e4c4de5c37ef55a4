#include "embedding.cuh"

namespace landscapex::program::cuda {
namespace {

__global__ void __launch_bounds__(kThreads)
    embedding_kernel(const __grid_constant__ EmbeddingArgs args,
                     const __grid_constant__ Cells cells) {
  work(args, cells, this_cell(), this_share());
}

}  // namespace

cudaError_t run(const EmbeddingArgs& args, const Cells& cells, cudaStream_t stream) {
  const int64_t items = args.n * ((args.width + kEntries - 1) / kEntries) * cells.lanes;
  launch(embedding_kernel, grid_of(cells, blocks_for(items, 1)), kThreads, 0, stream, args, cells);
  return cudaGetLastError();
}

}  // namespace landscapex::program::cuda
