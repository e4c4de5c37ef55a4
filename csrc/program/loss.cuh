// Steps that add to sums of a cell, in float64. The threads of a block do one cell together: all
// of them call `work`, and wait for each other before they call another.
#pragma once

#include "device_steps.h"
#include "quad.cuh"

namespace landscapex::program::cuda {

constexpr int kMostSlots = 256;

static __device__ inline double* shared_by_losses() {
  __shared__ double slots[kMostSlots];
  return slots;
}

// Adds `f(row, lane)` for the samples that are there. Each slot takes every so many of the items in
// their order, and a tree adds the slots: the order depends on the shape alone, not on how many
// threads there are.
template <typename F>
__device__ __forceinline__ void add_samples(int64_t rows, int32_t term, const Cells& cells,
                                            const Cell& cell, F f) {
  double* sums = shared_by_losses();
  const int valid = static_cast<int>(cells.valid[cell.tile]);
  int num_slots = kMostSlots;
  while (num_slots > 1 && num_slots / 2 >= rows * cells.lanes) num_slots /= 2;
  for (int slot = threadIdx.x; slot < num_slots; slot += blockDim.x) {
    double sum = 0;
    for (Walk walk({slot, num_slots}, cells.lanes); walk.row() < rows; walk.next())
      if (walk.column() < valid) sum += f(walk.row(), walk.column());
    sums[slot] = sum;
  }
  __syncthreads();
  for (int half = num_slots / 2; half > 0; half /= 2) {
    for (int slot = threadIdx.x; slot < half; slot += blockDim.x) sums[slot] += sums[slot + half];
    __syncthreads();
  }
  if (threadIdx.x == 0)
    cells.terms[(cell.tile * cells.points + cell.point) * cells.num_terms + term] += sums[0];
}

// --- cross entropy -------------------------------------------------------------------------------

// exp(a - b) without the rounding of the difference, which would be an error of its size.
__device__ __forceinline__ float exp_of_difference(float a, float b) {
  const float high = a - b, back = high - a;
  const float low = (a - (high - back)) - (b + back);
  const float e = expf(high);
  return high > -104.f ? fmaf(e, low, e) : e;
}

// -log p_c of a position is (base - x_c) + log_rest.
struct Likelihood {
  double base, log_rest;
};

// The largest term of the sum of exponentials is exactly 1 and stays out of it, so that tiny losses
// keep their digits.
template <typename Read>
__device__ __forceinline__ Likelihood likelihood(int classes, const Read& read) {
  float most = read(0);
  int best = 0;
  for (int c = 1; c < classes; ++c) {
    const float x = read(c);
    if (!(x > most || x != x)) continue;
    most = x;
    best = c;
  }
  double rest = 0;
  for (int c = 0; c < classes; ++c)
    if (c != best) rest += exp_of_difference(read(c), most);
  // of an infinite score torch makes NaN
  return {most, most == kInfinity ? most - most : log1p(rest)};
}

__device__ __forceinline__ double class_weight(const CrossEntropyArgs& args, int c) {
  return args.class_weight ? __ldg(args.class_weight + c) : 1.0;
}

template <typename Read>
__device__ __forceinline__ double of_label(const CrossEntropyArgs& args, const Likelihood& p,
                                           const Read& read, int label) {
  const int classes = static_cast<int>(args.classes);
  const bool known = label >= 0 && label < classes;
  const double chosen = known ? read(label) : 0.f, weight = known ? class_weight(args, label) : 1.0;
  const double loss = ((p.base - chosen) + p.log_rest) * weight * (1 - args.smoothing);
  if (args.smoothing == 0) return loss;
  double smooth = 0, weights = 0;
  for (int c = 0; c < classes; ++c) {
    const double w = class_weight(args, c);
    smooth += (p.base - read(c)) * w;
    weights += w;
  }
  return loss + (smooth + p.log_rest * weights) * (args.smoothing / classes);
}

template <typename Read, typename ReadTarget>
__device__ __forceinline__ double of_probabilities(const CrossEntropyArgs& args,
                                                   const Likelihood& p, const Read& read,
                                                   const ReadTarget& target) {
  const int classes = static_cast<int>(args.classes);
  const double share = args.smoothing / classes;
  double loss = 0;
  for (int c = 0; c < classes; ++c) {
    const double q = target(c) * (1 - args.smoothing) + share;
    loss += q * class_weight(args, c) * ((p.base - read(c)) + p.log_rest);
  }
  return loss;
}

__device__ inline void work(const CrossEntropyArgs& args, const Cells& cells, const Cell& cell,
                            const Share&) {
  const Reader scores(args.input, cells, cell);
  const float* target = address(args.target, cell);
  const int32_t* labels = reinterpret_cast<const int32_t*>(target);
  const int lanes = static_cast<int>(cells.lanes), classes = static_cast<int>(args.classes);
  add_samples(args.positions, args.term, cells, cell, [&](int p, int lane) -> double {
    const int32_t* sources = args.sources + int64_t{p} * classes;
    const auto read = [&](int c) { return scores(__ldg(sources + c) * lanes + lane); };
    if (args.probabilities) {
      const int32_t* at = args.target_at + int64_t{p} * classes;
      const auto q = [&](int c) -> double { return target[__ldg(at + c) * lanes + lane]; };
      const Likelihood known = args.log_input ? Likelihood{} : likelihood(classes, read);
      return of_probabilities(args, known, read, q);
    }
    const int label = labels[__ldg(args.target_at + p) * lanes + lane];
    if (label == args.ignore_index) return 0;
    const Likelihood known = args.log_input ? Likelihood{} : likelihood(classes, read);
    return of_label(args, known, read, label);
  });
}

// --- losses of single numbers --------------------------------------------------------------------

__device__ __forceinline__ double magnitude(double v) { return v < 0 ? -v : v; }
__device__ __forceinline__ double log_of_one_plus_exp(double v) {
  const double positive_part = v < 0 ? 0 : v;
  return positive_part + log1pf(expf(static_cast<float>(-magnitude(v))));
}
__device__ __forceinline__ double at_least_minus_100(float v) { return v < -100.f ? -100.f : v; }

// As torch.nn.functional defines them.
__device__ __forceinline__ double element_loss(ElementLossKind kind, float x, float t, double a) {
  const double v = x, target = t, distance = magnitude(v - target);
  switch (kind) {
    case ElementLossKind::identity:
      return v;
    case ElementLossKind::mse:
      return distance * distance;
    case ElementLossKind::l1:
      return distance;
    case ElementLossKind::smooth_l1:
      return distance < a ? 0.5 * distance * distance / a : distance - 0.5 * a;
    case ElementLossKind::huber:
      return distance < a ? 0.5 * distance * distance : a * (distance - 0.5 * a);
    case ElementLossKind::bce:
      return (target - 1) * at_least_minus_100(log1pf(-x)) - target * at_least_minus_100(logf(x));
    case ElementLossKind::bce_logits:
      return (1 - target) * v + ((a - 1) * target + 1) * log_of_one_plus_exp(-v);
    case ElementLossKind::poisson:
      return v - target * logf(static_cast<float>(v + a));
    case ElementLossKind::poisson_log:
      return expf(x) - target * v;
    case ElementLossKind::soft_margin:
      return log_of_one_plus_exp(-(target * v));
    case ElementLossKind::kl:  // in float64: what is left of it against x may be tiny
      return (target == 0 ? 0 : target * log(target)) - target * v;
    case ElementLossKind::kl_log:
      return expf(t) * (target - v);
  }
  return v;
}

__device__ inline void work(const ElementLossArgs& args, const Cells& cells, const Cell& cell,
                            const Share&) {
  const Reader input(args.input, cells, cell);
  const float* target = args.target.data == nullptr ? nullptr : address(args.target, cell);
  const int lanes = static_cast<int>(cells.lanes);
  add_samples(args.n, args.term, cells, cell, [&](int i, int lane) -> double {
    const float t = target ? target[__ldg(args.target_at + i) * lanes + lane] : 0.f;
    const float x = input(__ldg(args.at + i) * lanes + lane);
    const double loss = element_loss(args.kind, x, t, args.a);
    return args.weight ? loss * __ldg(args.weight + i) : loss;
  });
}

// --- right decisions -----------------------------------------------------------------------------

// How many scores come before that of the label: larger ones, equal ones of earlier classes, NaN.
template <typename Read>
__device__ __forceinline__ bool is_hit(const HitsArgs& args, const Read& read, int label) {
  const int classes = static_cast<int>(args.classes);
  if (label == args.ignore_index || label < 0 || label >= classes) return false;
  const float own = read(label);
  int before = 0;
#pragma unroll 2
  for (int c = 0; c < classes; ++c) {
    const float x = read(c);
    before += x > own || x != x || (x == own && label > c);
  }
  return before < args.top && own == own;
}

__device__ inline void work(const HitsArgs& args, const Cells& cells, const Cell& cell,
                            const Share&) {
  const Reader scores(args.input, cells, cell);
  const float* target = address(args.target, cell);
  const int32_t* labels = reinterpret_cast<const int32_t*>(target);
  const int lanes = static_cast<int>(cells.lanes);
  add_samples(args.positions, args.term, cells, cell, [&](int p, int lane) -> double {
    const int32_t* sources = args.sources + p * args.classes;
    const auto read = [&](int c) { return scores(__ldg(sources + c) * lanes + lane); };
    const int at = __ldg(args.target_at + p) * lanes + lane;
    if (!args.threshold_decision) return is_hit(args, read, labels[at]);
    if (args.target_is_index && labels[at] == args.ignore_index) return 0;
    const float wanted = args.target_is_index ? static_cast<float>(labels[at]) : target[at];
    const float score = read(0);
    return score == score && (score > args.threshold) == (wanted > args.target_threshold);
  });
}

}  // namespace landscapex::program::cuda
