// Layer, group, instance and RMS norm: an item is four lanes of one group.
#pragma once

#include "device_steps.h"
#include "team.cuh"

namespace landscapex::program::cuda {

// A number that float32 does not hold, in two parts.
struct Mean {
  Quad high, low;
  __device__ __forceinline__ Quad center(const Quad& x) const {
    return each([](float v, float h, float l) { return (v - h) - l; }, x, high, low);
  }
};

template <typename Team>
__device__ __forceinline__ Mean mean_of(const Row& row, double share, const Team& team) {
  Wide sum = {};
#pragma unroll 4
  for (int c = team.part(); c < row.count; c += Team::kParts) {
    const Quad x = row.read(c);
#pragma unroll
    for (int i = 0; i < kQuad; ++i) sum.v[i] += x.v[i];
  }
  sum = team.combine(sum, [](double a, double b) { return a + b; });
  Mean mean;
#pragma unroll
  for (int i = 0; i < kQuad; ++i) {
    mean.high.v[i] = static_cast<float>(sum.v[i] * share);
    mean.low.v[i] = static_cast<float>(sum.v[i] * share - mean.high.v[i]);
  }
  return mean;
}

// Two passes, then the third that writes: a single pass would lose the variance of what lies far
// from zero; so would a mean in float32.
template <typename Team>
__device__ __forceinline__ void normalize(const NormalizeArgs& args, const Cell& cell,
                                          const Row& row, int64_t group, const Team& team) {
  const double share = 1.0 / static_cast<double>(args.count);
  Mean mean = {};
  if (!args.rms) mean = mean_of(row, share, team);
  QuadSum squares;
#pragma unroll 4
  for (int c = team.part(); c < row.count; c += Team::kParts)
    squares.add(each([](float v) { return v * v; }, mean.center(row.read(c))));
  const Wide total = team.combine(squares.total(), [](double a, double b) { return a + b; });
  Quad factor;
#pragma unroll
  for (int i = 0; i < kQuad; ++i) {
    const double variance = total.v[i] * share + static_cast<double>(args.eps);
    factor.v[i] = 1.f / sqrtf(static_cast<float>(variance));
  }
  const float *gamma = address(args.gamma, cell), *beta = address(args.beta, cell);
  const int64_t first = group * args.count;
  for (int c = team.part(); c < row.count; c += Team::kParts) {
    const float g = gamma ? __ldg(gamma + __ldg(args.gamma_at + first + c)) : 1.f;
    const float b = beta ? __ldg(beta + __ldg(args.beta_at + first + c)) : 0.f;
    const auto f = [g, b](float v, float scale) { return fmaf(v * scale, g, b); };
    store(row.place(c), activate(args.act, each(f, mean.center(row.read(c)), factor)));
  }
}

__device__ inline void work(const NormalizeArgs& args, const Cells& cells, const Cell& cell,
                            const Share& share) {
  for_quads(args.groups, cells, share, [&](int group, int lane) {
    normalize(args, cell, row_of(args, cells, cell, group, lane), group, Alone{});
  });
}

}  // namespace landscapex::program::cuda
