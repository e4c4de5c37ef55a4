// Compiled once for each instruction set, with LX_ISA naming it.
#include "../kernels/float_environment.h"
#include "activation.h"
#include "kernels.h"
#include "reader.h"

namespace landscapex::program::LX_ISA {
namespace {

struct Group {
  const float* in;
  float* out;
  int64_t lanes, count;
  const int32_t *sources, *to, *gamma_at, *beta_at;
  const float *gamma, *beta;  // or null
};

// Calls `f(i, x)` for every vector of the group.
template <int N, typename F>
LX_INLINE void each(const Group& group, F f) {
  for (int64_t c = 0; c < group.count; ++c) {
    const float* x = group.in + group.sources[c] * group.lanes;
    for (int i = 0; i < N; ++i) f(i, load(x + i * kWidth));
  }
}

// Two passes, then the third that writes: a single pass would lose the variance of what lies far
// from zero; so would a mean in float32, which has two parts here.
template <int N>
LX_INLINE void normalize(const Group& group, bool rms, float eps) {
  const double share = 1.0 / static_cast<double>(group.count);
  Vec mean[N] = {}, rest[N] = {}, factor[N];
  if (!rms) {
    Doubles sums[N] = {};
    each<N>(group, [&](int i, Vec x) { sums[i] += widened(x); });
    for (int i = 0; i < N; ++i) {
      mean[i] = narrowed(sums[i] * share);
      rest[i] = narrowed(sums[i] * share - widened(mean[i]));
    }
  }
  Sums<N> squares;
  each<N>(group, [&](int i, Vec x) {
    const Vec centered = (x - mean[i]) - rest[i];
    squares.add(i, centered * centered);
    if (i == N - 1) squares.next();
  });
  for (int i = 0; i < N; ++i) {
    factor[i] = 1.f / sqrt(narrowed(squares.total(i) * share + static_cast<double>(eps)));
  }
  for (int64_t c = 0; c < group.count; ++c) {
    const float* x = group.in + group.sources[c] * group.lanes;
    float* out = group.out + group.to[c] * group.lanes;
    const Vec gamma = splat(group.gamma ? group.gamma[group.gamma_at[c]] : 1.f);
    const Vec beta = splat(group.beta ? group.beta[group.beta_at[c]] : 0.f);
    for (int i = 0; i < N; ++i) {
      const Vec centered = (load(x + i * kWidth) - mean[i]) - rest[i];
      store(out + i * kWidth, fma(centered * factor[i], gamma, beta));
    }
  }
}

}  // namespace

void run_normalize(const Normalize& step, const Frame& frame) {
  const cpu::FloatEnvironment ieee;
  for (int64_t g = 0; g < step.groups; ++g) {
    const int64_t first = g * step.count;
    Group group = {frame.buffers[step.input],
                   frame.buffers[step.out],
                   frame.lanes,
                   step.count,
                   step.sources.data() + first,
                   step.to.data() + first,
                   step.gamma < 0 ? nullptr : step.gamma_at.data() + first,
                   step.beta < 0 ? nullptr : step.beta_at.data() + first,
                   step.gamma < 0 ? nullptr : frame.weights[step.gamma],
                   step.beta < 0 ? nullptr : frame.weights[step.beta]};
    for_lanes(frame.lanes, [&](int64_t lane, auto vectors) {
      Group part = group;
      part.in += lane;
      part.out += lane;
      normalize<decltype(vectors)::count>(part, step.rms, step.eps);
    });
    if (step.act.name == Activation::none) continue;
    for (int64_t c = 0; c < step.count; ++c) {
      activate(step.act, group.out + group.to[c] * frame.lanes, frame.lanes);
    }
  }
}

}  // namespace landscapex::program::LX_ISA
