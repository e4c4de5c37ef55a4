// Compiled once for each instruction set, with LX_ISA naming it.
#include "../kernels/float_environment.h"
#include "kernels.h"
#include "math.h"
#include "reader.h"

namespace landscapex::program::LX_ISA {
namespace {

struct Line {
  const float* in;
  float* out;
  int64_t lanes, count;
  const int32_t *sources, *to;
  bool safe;
};

// Calls `f(i, x, out)` for every vector of the line.
template <int N, typename F>
LX_INLINE void each(const Line& line, F f) {
  for (int64_t c = 0; c < line.count; ++c) {
    const float* x = line.in + line.sources[c] * line.lanes;
    float* out = line.out + line.to[c] * line.lanes;
    for (int i = 0; i < N; ++i) f(i, load(x + i * kWidth), out + i * kWidth);
  }
}

template <int N>
LX_INLINE void largest(const Line& line, Vec* most) {
  for (int i = 0; i < N; ++i) most[i] = splat(-kInfinity);
  each<N>(line, [&](int i, Vec x, float*) { most[i] = maximum(most[i], x); });
}

template <int N>
LX_INLINE void softmax(const Line& line) {
  Vec most[N], factor[N];
  largest<N>(line, most);
  if (line.safe) {  // zeros: exp(-inf - 0) over a sum that is replaced by 1 below
    for (int i = 0; i < N; ++i) most[i] = most[i] == -kInfinity ? Vec{} : most[i];
  }
  Sums<N> sums;
  each<N>(line, [&](int i, Vec x, float* out) {
    const Vec e = exp(x - most[i]);
    store(out, e);
    sums.add(i, e);
    if (i == N - 1) sums.next();
  });
  for (int i = 0; i < N; ++i) {
    const Vec sum = narrowed(sums.total(i));
    factor[i] = 1.f / (line.safe ? (sum == 0 ? splat(1) : sum) : sum);
  }
  for (int64_t c = 0; c < line.count; ++c) {
    float* out = line.out + line.to[c] * line.lanes;
    for (int i = 0; i < N; ++i) store(out + i * kWidth, load(out + i * kWidth) * factor[i]);
  }
}

// x - m - log(1 + the other terms) keeps its digits where one score stands out.
template <int N>
LX_INLINE void log_softmax(const Line& line) {
  Vec most[N];
  Doubles sums[N] = {};
  largest<N>(line, most);
  each<N>(line, [&](int i, Vec x, float*) { sums[i] += widened(exp(x - most[i])); });
  Vec logs[N];
  for (int i = 0; i < N; ++i) logs[i] = log1p(narrowed(sums[i] - 1.0));
  each<N>(line, [&](int i, Vec x, float* out) {
    const Vec value = (x - most[i]) - logs[i];
    store(out, line.safe ? (most[i] == -kInfinity ? Vec{} : value) : value);
  });
}

}  // namespace

void run_softmax(const Softmax& step, const Frame& frame) {
  const cpu::FloatEnvironment ieee;
  for (int64_t g = 0; g < step.groups; ++g) {
    for_lanes(frame.lanes, [&](int64_t lane, auto vectors) {
      constexpr int kCount = decltype(vectors)::count;
      const Line line = {frame.buffers[step.input] + lane,
                         frame.buffers[step.out] + lane,
                         frame.lanes,
                         step.count,
                         step.sources.data() + g * step.count,
                         step.to.data() + g * step.count,
                         step.safe};
      if (step.log) {
        log_softmax<kCount>(line);
      } else {
        softmax<kCount>(line);
      }
    });
  }
}

}  // namespace landscapex::program::LX_ISA
