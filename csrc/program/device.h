// What the CUDA kernels of the grid program see. A *cell* is one tile of samples at one grid point;
// a launch serves all cells of a chunk. The steps are those of steps.h, with their tables on the
// device and their buffers and weights as addresses.
#pragma once

#include "../kernels/launch.h"
#include "../kernels/numeric.h"
#include "steps.h"

namespace landscapex::program::cuda {

constexpr int kThreads = 256;          // of a block, unless a kernel says otherwise
constexpr int64_t kMostCells = 65535;  // tiles, and points, of one launch: limits of a grid

// A buffer, [elements][lanes] for each cell, 64-byte aligned. Inputs are the same for all points
// (per_point = 0); an AFFINE buffer has `num_sets` of them for each tile, which readers combine.
struct Ref {
  float* data = nullptr;  // of the first cell
  int64_t per_tile = 0;   // floats from one tile to the next
  int64_t per_point = 0;
  int64_t per_set = 0;  // 0: not to be combined
};

// A weight: packed numbers of each point, or the same for all (per_point = 0). Null: absent.
struct WeightRef {
  const float* data = nullptr;
  int64_t per_point = 0;
};

struct Cells {
  int64_t lanes;              // of a tile, a multiple of 16
  int64_t tiles;              // blockIdx.z
  int64_t points;             // blockIdx.y
  int64_t num_sets;           // K + 1
  const double* coordinates;  // [points][K]
  const int64_t* valid;       // [tiles]: samples in each; other lanes hold harmless numbers
  double* terms;              // [tiles][points][num_terms]: sums that loss steps add to
  int64_t num_terms;
};

// Marks a buffer that lies in the memory of the block that does a cell, `per_point` floats from its
// start (network.h).
constexpr int64_t kInBlock = -1;

// The cell that a thread works on.
struct Cell {
  int64_t tile, point;
  float* memory = nullptr;  // of the block, if it has the cell to itself
};

// The driver, which the host's compiler compiles, needs none of what follows.
#if defined(__CUDACC__) || defined(LX_EMULATE_CUDA)
using landscapex::cuda::launch;

__device__ __forceinline__ Cell this_cell() { return {blockIdx.z, blockIdx.y}; }

__device__ __forceinline__ float* address(const Ref& ref, const Cell& cell) {
  if (cell.memory != nullptr && ref.per_tile == kInBlock) return cell.memory + ref.per_point;
  return ref.data + cell.tile * ref.per_tile + cell.point * ref.per_point;
}
__device__ __forceinline__ const float* address(const WeightRef& ref, const Cell& cell) {
  return ref.data == nullptr ? nullptr : ref.data + cell.point * ref.per_point;
}

// Reads a buffer in one cell; combines its sets if it is AFFINE.
class Reader {
 public:
  __device__ Reader(const Ref& ref, const Cells& cells, const Cell& cell)
      : base_(address(ref, cell)),
        per_set_(ref.per_set),
        num_sets_(ref.per_set == 0 ? 1 : static_cast<int>(cells.num_sets)),
        coordinates_(cells.coordinates + cell.point * (cells.num_sets - 1)) {}
  // The number at an offset in floats.
  __device__ __forceinline__ float operator()(int64_t offset) const {
    float sum = base_[offset];
    for (int k = 1; k < num_sets_; ++k)
      sum = fmaf(static_cast<float>(coordinates_[k - 1]), base_[k * per_set_ + offset], sum);
    return sum;
  }

 private:
  const float* base_;
  int64_t per_set_;
  int num_sets_;
  const double* coordinates_;
};

// Work of one cell is cut into items, one thread's worth each; neighbours in neighbouring threads.
// A kernel of one step spreads them over blocks; the kernel that keeps a whole network in shared
// memory gives all of them to one block.
struct Share {
  int64_t first, stride;
};
__device__ __forceinline__ Share this_share() {
  return {int64_t{blockIdx.x} * blockDim.x + threadIdx.x, int64_t{gridDim.x} * blockDim.x};
}
#endif  // device code

// Blocks of a cell such that a thread has `per_thread` items at most.
inline unsigned blocks_for(int64_t items, int64_t per_thread) {
  const int64_t each = int64_t{kThreads} * per_thread;
  const int64_t blocks = (items + each - 1) / each;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks);
}

inline dim3 grid_of(const Cells& cells, unsigned blocks) {
  return dim3(blocks, static_cast<unsigned>(cells.points), static_cast<unsigned>(cells.tiles));
}

}  // namespace landscapex::program::cuda
