// Softmax and its logarithm: an item is four lanes of one row.
#pragma once

#include "device_steps.h"
#include "team.cuh"

namespace landscapex::program::cuda {

template <typename Team>
__device__ __forceinline__ Quad largest(const Row& row, const Team& team) {
  Quad most = splat(-kInfinity);
#pragma unroll 4
  for (int c = team.part(); c < row.count; c += Team::kParts)
    most = each([](float a, float b) { return maximum(a, b); }, most, row.read(c));
  const Wide all = team.combine({{most.v[0], most.v[1], most.v[2], most.v[3]}},
                                [](double a, double b) { return a > b || a != a ? a : b; });
#pragma unroll
  for (int i = 0; i < kQuad; ++i) most.v[i] = static_cast<float>(all.v[i]);
  return most;
}

template <typename Team>
__device__ __forceinline__ void softmax(const Row& row, bool safe, const Team& team) {
  Quad most = largest(row, team);
  // zeros: exp(-inf - 0) over a sum that is replaced by 1 below
  if (safe) most = each([](float m) { return m == -kInfinity ? 0.f : m; }, most);
  QuadSum sum;
#pragma unroll 2
  for (int c = team.part(); c < row.count; c += Team::kParts) {
    const Quad e = each([](float x, float m) { return expf(x - m); }, row.read(c), most);
    store(row.place(c), e);
    sum.add(e);
  }
  const Wide total = team.combine(sum.total(), [](double a, double b) { return a + b; });
  Quad factor;
#pragma unroll
  for (int i = 0; i < kQuad; ++i) {
    const float rounded = static_cast<float>(total.v[i]);
    factor.v[i] = 1.f / (safe && rounded == 0 ? 1.f : rounded);
  }
#pragma unroll 4
  for (int c = team.part(); c < row.count; c += Team::kParts) {
    float* out = row.place(c);
    store(out, each([](float e, float f) { return e * f; }, load(out), factor));
  }
}

// x - m - log(1 + the other terms) keeps its digits where one score stands out.
template <typename Team>
__device__ __forceinline__ void log_softmax(const Row& row, bool safe, const Team& team) {
  const Quad most = largest(row, team);
  Wide sum = {};
  for (int c = team.part(); c < row.count; c += Team::kParts) {
    const Quad x = row.read(c);
#pragma unroll
    for (int i = 0; i < kQuad; ++i) sum.v[i] += expf(x.v[i] - most.v[i]);
  }
  sum = team.combine(sum, [](double a, double b) { return a + b; });
  Quad log;
#pragma unroll
  for (int i = 0; i < kQuad; ++i) log.v[i] = log1pf(static_cast<float>(sum.v[i] - 1.0));
#pragma unroll 4
  for (int c = team.part(); c < row.count; c += Team::kParts) {
    const auto f = [safe](float x, float m, float l) {
      return safe && m == -kInfinity ? 0.f : (x - m) - l;
    };
    store(row.place(c), each(f, row.read(c), most, log));
  }
}

template <typename Team>
__device__ __forceinline__ void compute(const SoftmaxArgs& args, const Row& row, const Team& team) {
  if (args.log) {
    log_softmax(row, args.safe, team);
  } else {
    softmax(row, args.safe, team);
  }
}

__device__ inline void work(const SoftmaxArgs& args, const Cells& cells, const Cell& cell,
                            const Share& share) {
  for_quads(args.groups, cells, share, [&](int group, int lane) {
    compute(args, row_of(args, cells, cell, group, lane), Alone{});
  });
}

}  // namespace landscapex::program::cuda
