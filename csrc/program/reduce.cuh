// Pooling, means, maxima: an item is four lanes of one output.
#pragma once

#include "device_steps.h"
#include "team.cuh"

namespace landscapex::program::cuda {

// The first source by itself, so that nothing is assumed of a neutral number but where there is
// none.
template <typename Read, typename F>
__device__ __forceinline__ Quad fold(int begin, int end, float of_none, const Read& read, F f) {
  if (begin == end) return splat(of_none);
  Quad value = read(begin);
#pragma unroll 4
  for (int j = begin + 1; j < end; ++j) value = each(f, value, read(j));
  return value;
}

template <typename Read>
__device__ __forceinline__ Quad reduce(const ReduceArgs& args, int begin, int end,
                                       const Read& read) {
  switch (args.op) {
    case ReduceOp::max:
      return fold(begin, end, -kInfinity, read, [](float a, float b) { return maximum(a, b); });
    case ReduceOp::min:
      return fold(begin, end, kInfinity, read, [](float a, float b) { return minimum(a, b); });
    case ReduceOp::prod:
      return fold(begin, end, 1, read, [](float a, float b) { return a * b; });
    case ReduceOp::sum:
      break;
  }
  QuadSum sum;
#pragma unroll 4
  for (int j = begin; j < end; ++j) {
    const Quad x = read(j);
    sum.add(args.coefficients ? each([](float v, float c) { return v * c; }, x,
                                     splat(__ldg(args.coefficients + j)))
                              : x);
  }
  const Wide total = sum.total();
  Quad out;
#pragma unroll
  for (int i = 0; i < kQuad; ++i) out.v[i] = static_cast<float>(total.v[i] * args.scale);
  return out;
}

__device__ inline void work(const ReduceArgs& args, const Cells& cells, const Cell& cell,
                            const Share& share) {
  const QuadReader input(args.input, cells, cell);
  float* out = address(args.out, cell);
  const int lanes = static_cast<int>(cells.lanes);
  for_quads(args.n, cells, share, [&](int i, int lane) {
    const auto read = [&](int j) { return input(__ldg(args.sources + j) * lanes + lane); };
    const Quad value = reduce(args, __ldg(args.offsets + i), __ldg(args.offsets + i + 1), read);
    store(out + __ldg(args.to + i) * lanes + lane, activate(args.act, value));
  });
}

}  // namespace landscapex::program::cuda
