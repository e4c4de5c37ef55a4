// Rows of a table: an item is some neighbouring entries of one row, for one lane, so that what is
// fetched with the first of them serves the others.
#pragma once

#include "device_steps.h"
#include "quad.cuh"

namespace landscapex::program::cuda {

constexpr int kEntries = 8;  // 32 bytes, the least that a device fetches

__device__ inline void work(const EmbeddingArgs& args, const Cells& cells, const Cell& cell,
                            const Share& share) {
  const int32_t* index = reinterpret_cast<const int32_t*>(address(args.index, cell));
  const float* weight = address(args.weight, cell);
  float* out = address(args.out, cell);
  const int lanes = static_cast<int>(cells.lanes), width = static_cast<int>(args.width);
  const int parts = (width + kEntries - 1) / kEntries;
  for (Walk walk(share, lanes); walk.row() < args.n * parts; walk.next()) {
    const int i = walk.row() / parts, begin = (walk.row() - i * parts) * kEntries;
    const int lane = walk.column();
    const float* row = weight + int64_t{index[__ldg(args.at + i) * lanes + lane]} * width;
    const int32_t* to = args.to + int64_t{i} * width;
#pragma unroll
    for (int d = begin; d < begin + kEntries; ++d)
      if (d < width) out[__ldg(to + d) * lanes + lane] = __ldg(row + d);
  }
}

}  // namespace landscapex::program::cuda
