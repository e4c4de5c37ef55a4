// Compiled once for each instruction set, with LX_ISA naming it.
#include "../kernels/float_environment.h"
#include "kernels.h"
#include "math.h"
#include "reader.h"

namespace landscapex::program::LX_ISA {
namespace {

// Losses are rarely of an AFFINE value, so that number of sets is not specialised.
template <typename F>
LX_INLINE void with_input(const Frame& frame, int32_t buffer, F f) {
  const float* base = frame.buffers[buffer];
  if (!is_affine(frame, buffer)) return f(Reader<1>{base, 0, 1, frame.coefficients});
  f(Reader<0>{base, frame.set_strides[buffer], frame.num_sets, frame.coefficients});
}

// Adds `f(lane)`, a vector of what samples contribute, for the samples that are there, in the order
// of the lanes whatever the width of a vector is.
template <typename F>
LX_INLINE void add_samples(const Frame& frame, int32_t term, F f) {
  double total = 0;
  for (int64_t lane = 0; lane < frame.valid; lane += kWidth) {
    const Doubles samples = f(lane);
    for (int l = 0; l < kWidth && lane + l < frame.valid; ++l) total += samples[l];
  }
  frame.terms[term] += total;
}

// --- cross entropy -------------------------------------------------------------------------------

// exp(a - b) without the rounding of the difference, which would be an error of its size.
LX_INLINE Vec exp_of_difference(Vec a, Vec b) {
  const Vec high = a - b, back = high - a;
  const Vec low = (a - (high - back)) - (b + back);
  return exp_of_sum(high, high > -104.f ? low : Vec{});
}

// -log p_c of a position is (base - x_c) + log_rest.
struct Likelihoods {
  Doubles base, log_rest;
};

// The largest term of the sum of exponentials is exactly 1 and stays out of it, so that tiny losses
// keep their digits.
template <typename Read>
LX_INLINE Likelihoods likelihoods(const int32_t* sources, int64_t classes, int64_t lanes,
                                  Read read) {
  Vec most = read(sources[0] * lanes);
  IVec best = {};
  for (int64_t c = 1; c < classes; ++c) {
    const Vec x = read(sources[c] * lanes);
    const IVec larger = (x > most) | (x != x);
    most = larger ? x : most;
    best = larger ? IVec{} + static_cast<int32_t>(c) : best;
  }
  Doubles rest = {};
  for (int64_t c = 0; c < classes; ++c) {
    const Vec e = exp_of_difference(read(sources[c] * lanes), most);
    rest += widened(best == static_cast<int32_t>(c) ? Vec{} : e);
  }
  // of an infinite score torch makes NaN
  const Doubles unless_infinite = widened(most == kInfinity ? splat(kNotANumber) : Vec{});
  const auto log1p_of = [](double v) { return __builtin_log1p(v); };
  return {widened(most), each_lane(log1p_of, rest) + unless_infinite};
}

struct Scores {
  const int32_t* sources;  // of one position
  int64_t classes, lanes;
  const float* class_weight;  // or null
  double smoothing;
  LX_MEMBER double weight_of(int64_t c) const { return class_weight ? class_weight[c] : 1.0; }
};

template <typename Read>
LX_INLINE Doubles of_labels(const Scores& s, Likelihoods p, Read read, IVec labels,
                            int32_t ignore) {
  const double share = s.smoothing / static_cast<double>(s.classes);
  Vec chosen = {};
  Doubles smooth = {};
  double weights = 0;
  for (int64_t c = 0; c < s.classes; ++c) {
    const Vec x = read(s.sources[c] * s.lanes);
    chosen = labels == static_cast<int32_t>(c) ? x : chosen;
    if (s.smoothing == 0) continue;
    smooth += (p.base - widened(x)) * s.weight_of(c);
    weights += s.weight_of(c);
  }
  Vec weight = splat(1);
  const IVec counted = labels != ignore;
  for (int l = 0; s.class_weight && l < kWidth; ++l) {
    weight[l] = counted[l] ? s.class_weight[labels[l]] : 0;
  }
  Doubles loss = ((p.base - widened(chosen)) + p.log_rest) * widened(weight) * (1 - s.smoothing);
  if (s.smoothing != 0) loss += (smooth + p.log_rest * weights) * share;
  return where(counted, loss, Doubles{});
}

template <typename Read, typename ReadTarget>
LX_INLINE Doubles of_probabilities(const Scores& s, Likelihoods p, Read read, ReadTarget target,
                                   const int32_t* target_at) {
  const double share = s.smoothing / static_cast<double>(s.classes);
  Doubles loss = {};
  for (int64_t c = 0; c < s.classes; ++c) {
    const Doubles x = widened(read(s.sources[c] * s.lanes));
    const Doubles q = widened(target(target_at[c] * s.lanes)) * (1 - s.smoothing) + share;
    loss += q * s.weight_of(c) * ((p.base - x) + p.log_rest);
  }
  return loss;
}

template <typename Read>
LX_INLINE Doubles cross_entropy(const CrossEntropy& step, const Frame& frame, Read scores,
                                int64_t lane) {
  const auto read = [&](int64_t offset) { return scores(offset + lane); };
  Scores s = {nullptr, step.classes, frame.lanes,
              step.class_weight.size() ? step.class_weight.data() : nullptr, step.smoothing};
  Doubles sum = {};
  for (int64_t p = 0; p < step.positions; ++p) {
    s.sources = step.sources.data() + p * s.classes;
    Likelihoods likelihood = {};
    if (!step.log_input) likelihood = likelihoods(s.sources, s.classes, s.lanes, read);
    if (step.probabilities) {
      const float* target = frame.buffers[step.target] + lane;
      const auto read_target = [=](int64_t offset) { return load(target + offset); };
      sum +=
          of_probabilities(s, likelihood, read, read_target, step.target_at.data() + p * s.classes);
    } else {
      const int32_t* labels = frame.indices[step.target] + step.target_at.data()[p] * s.lanes;
      sum += of_labels(s, likelihood, read, load(labels + lane), step.ignore_index);
    }
  }
  return sum;
}

// --- losses of single numbers --------------------------------------------------------------------

LX_INLINE Doubles magnitude(Doubles v) { return if_less(v, 0, -v, v); }
LX_INLINE Doubles positive_part(Doubles v) { return if_less(v, 0, Doubles{}, v); }
LX_INLINE Doubles log_of_one_plus_exp(Doubles v) {
  return positive_part(v) + widened(log1p(exp(narrowed(-magnitude(v)))));
}
LX_INLINE Doubles at_least_minus_100(Vec v) { return widened(larger_or_nan(splat(-100), v)); }
LX_INLINE Doubles x_log_x(Doubles v) {  // by the library: what is left of it against x may be tiny
  return each_lane([](double x) { return x == 0 ? 0 : x * __builtin_log(x); }, v);
}

struct Elements {
  const Frame& frame;
  const ElementLoss& step;
};

// Sums `f(x, target)` over elements and samples.
template <typename Read, typename F>
LX_INLINE void add_elements(const Elements& e, Read read, F f) {
  const int64_t n = e.step.at.size(), lanes = e.frame.lanes;
  const int32_t *at = e.step.at.data(), *target_at = e.step.target_at.data();
  const float* weight = e.step.weight.size() ? e.step.weight.data() : nullptr;
  const float* target = e.step.target < 0 ? nullptr : e.frame.buffers[e.step.target];
  add_samples(e.frame, e.step.term, [=](int64_t lane) {
    Doubles sum = {};
    for (int64_t i = 0; i < n; ++i) {
      const Vec t = target ? load(target + target_at[i] * lanes + lane) : Vec{};
      const Doubles loss = f(read(at[i] * lanes + lane), t);
      sum += weight ? loss * static_cast<double>(weight[i]) : loss;
    }
    return sum;
  });
}

// As torch.nn.functional defines them.
template <typename Read>
void element_loss(const Elements& e, Read read) {
  const double a = e.step.a;
  const auto distance = [](Vec x, Vec t) { return magnitude(widened(x) - widened(t)); };
  switch (e.step.kind) {
    case ElementLossKind::identity:
      return add_elements(e, read, [](Vec x, Vec) { return widened(x); });
    case ElementLossKind::mse:
      return add_elements(e, read, [=](Vec x, Vec t) {
        const Doubles d = distance(x, t);
        return d * d;
      });
    case ElementLossKind::l1:
      return add_elements(e, read, distance);
    case ElementLossKind::smooth_l1:
      return add_elements(e, read, [=](Vec x, Vec t) {
        const Doubles d = distance(x, t);
        return if_less(d, a, 0.5 * d * d / a, d - 0.5 * a);
      });
    case ElementLossKind::huber:
      return add_elements(e, read, [=](Vec x, Vec t) {
        const Doubles d = distance(x, t);
        return if_less(d, a, 0.5 * d * d, a * (d - 0.5 * a));
      });
    case ElementLossKind::bce:
      return add_elements(e, read, [](Vec x, Vec t) {
        const Doubles target = widened(t);
        const Doubles negative = at_least_minus_100(log1p(negate(x)));
        return (target - 1.0) * negative - target * at_least_minus_100(log(x));
      });
    case ElementLossKind::bce_logits:
      return add_elements(e, read, [=](Vec x, Vec t) {
        const Doubles v = widened(x), target = widened(t);
        return (1.0 - target) * v + ((a - 1.0) * target + 1.0) * log_of_one_plus_exp(-v);
      });
    case ElementLossKind::poisson:
      return add_elements(e, read, [=](Vec x, Vec t) {
        const Doubles v = widened(x);
        return v - widened(t) * widened(log(narrowed(v + a)));
      });
    case ElementLossKind::poisson_log:
      return add_elements(e, read,
                          [](Vec x, Vec t) { return widened(exp(x)) - widened(t) * widened(x); });
    case ElementLossKind::soft_margin:
      return add_elements(
          e, read, [](Vec x, Vec t) { return log_of_one_plus_exp(-(widened(t) * widened(x))); });
    case ElementLossKind::kl:
      return add_elements(
          e, read, [](Vec x, Vec t) { return x_log_x(widened(t)) - widened(t) * widened(x); });
    case ElementLossKind::kl_log:
      return add_elements(e, read,
                          [](Vec x, Vec t) { return widened(exp(t)) * (widened(t) - widened(x)); });
  }
}

// --- right decisions -----------------------------------------------------------------------------

LX_INLINE Doubles as_numbers(IVec mask) { return widened(mask ? splat(1) : Vec{}); }

// How many scores come before that of the label: larger ones, equal ones of earlier classes, NaN.
template <typename Read>
LX_INLINE Doubles class_hits(const Hits& step, const int32_t* sources, IVec labels, Read read) {
  const int32_t classes = step.classes;
  Vec own = splat(kNotANumber);
  for (int32_t c = 0; c < classes; ++c) own = labels == c ? read(sources[c]) : own;
  IVec before = {};
  for (int32_t c = 0; c < classes; ++c) {
    const Vec x = read(sources[c]);
    before -= (x > own) | (x != x) | ((x == own) & (labels > c));
  }
  const IVec top = IVec{} + static_cast<int32_t>(step.top);
  return as_numbers((before < top) & (own == own) & (labels != step.ignore_index));
}

template <typename Read>
LX_INLINE Doubles hits(const Hits& step, const Frame& frame, Read scores, int64_t lane) {
  const int64_t lanes = frame.lanes;
  const auto read = [&](int64_t element) { return scores(element * lanes + lane); };
  Doubles sum = {};
  for (int64_t p = 0; p < step.positions; ++p) {
    const int32_t* sources = step.sources.data() + p * step.classes;
    const int64_t at = step.target_at.data()[p] * lanes + lane;
    IVec counted = ~IVec{}, positive;
    if (step.target_is_index) {
      const IVec labels = load(frame.indices[step.target] + at);
      if (!step.threshold_decision) {
        sum += class_hits(step, sources, labels, read);
        continue;
      }
      counted = labels != step.ignore_index;
      positive = __builtin_convertvector(labels, Vec) > step.target_threshold;
    } else {
      positive = load(frame.buffers[step.target] + at) > step.target_threshold;
    }
    const Vec score = read(sources[0]);
    const IVec decided = score > step.threshold;
    sum += as_numbers((decided == positive) & (score == score) & counted);
  }
  return sum;
}

}  // namespace

void run_cross_entropy(const CrossEntropy& step, const Frame& frame) {
  const cpu::FloatEnvironment ieee;
  with_input(frame, step.input, [&](auto read) {
    add_samples(frame, step.term,
                [&](int64_t lane) { return cross_entropy(step, frame, read, lane); });
  });
}

void run_element_loss(const ElementLoss& step, const Frame& frame) {
  const cpu::FloatEnvironment ieee;
  with_input(frame, step.input, [&](auto read) { element_loss(Elements{frame, step}, read); });
}

void run_hits(const Hits& step, const Frame& frame) {
  const cpu::FloatEnvironment ieee;
  with_input(frame, step.input, [&](auto read) {
    add_samples(frame, step.term, [&](int64_t lane) { return hits(step, frame, read, lane); });
  });
}

}  // namespace landscapex::program::LX_ISA
