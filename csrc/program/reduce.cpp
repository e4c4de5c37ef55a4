// Compiled once for each instruction set, with LX_ISA naming it.
#include "../kernels/float_environment.h"
#include "activation.h"
#include "kernels.h"
#include "reader.h"

namespace landscapex::program::LX_ISA {
namespace {

struct Part {
  const int32_t* sources;
  const float* coefficients;  // or null
  int64_t count;
};

template <typename Read, typename F>
LX_INLINE Vec fold(const Part& part, const Frame& frame, Read read, int64_t lane, float of_none,
                   F f) {
  if (part.count == 0) return splat(of_none);
  Vec value = read(part.sources[0] * frame.lanes + lane);
  for (int64_t j = 1; j < part.count; ++j) {
    value = f(value, read(part.sources[j] * frame.lanes + lane));
  }
  return value;
}

template <typename Read>
LX_INLINE Vec sum(const Part& part, const Frame& frame, Read read, int64_t lane, float scale) {
  Sums<1> sums;
  for (int64_t j = 0; j < part.count; ++j) {
    const Vec v = read(part.sources[j] * frame.lanes + lane);
    sums.add(0, part.coefficients ? v * part.coefficients[j] : v);
    sums.next();
  }
  return narrowed(sums.total(0) * scale);
}

// Calls `f(part, lane)` for every vector of every output and stores what it returns.
template <typename F>
LX_INLINE void for_each_output(const Reduce& step, const Frame& frame, F f) {
  const int32_t* offsets = step.offsets.data();
  const int32_t* sources = step.sources.data();
  const int32_t* to = step.to.data();
  const float* coefficients = step.coefficients.size() ? step.coefficients.data() : nullptr;
  const int64_t n = step.to.size();
  for (int64_t i = 0; i < n; ++i) {
    const int64_t begin = offsets[i];
    const Part part = {sources + begin, coefficients ? coefficients + begin : nullptr,
                       offsets[i + 1] - begin};
    float* out = frame.buffers[step.out] + to[i] * frame.lanes;
    if (step.act.name == Activation::relu) {
      for (int64_t lane = 0; lane < frame.lanes; lane += kWidth)
        store(out + lane, relu(f(part, lane)));
      continue;
    }
    for (int64_t lane = 0; lane < frame.lanes; lane += kWidth) store(out + lane, f(part, lane));
    if (step.act.name != Activation::none) activate(step.act, out, frame.lanes);
  }
}

// Windows of 2 x 2, without a loop.
template <typename Read>
LX_INLINE Vec max_of_four(const Part& part, const Frame& frame, Read read, int64_t lane) {
  const int32_t* s = part.sources;
  const Vec a = read(s[0] * frame.lanes + lane), b = read(s[1] * frame.lanes + lane);
  const Vec c = read(s[2] * frame.lanes + lane), d = read(s[3] * frame.lanes + lane);
  return maximum(maximum(a, b), maximum(c, d));
}

template <typename Read>
LX_INLINE void reduce(const Reduce& step, const Frame& frame, Read read) {
  switch (step.op) {
    case ReduceOp::sum:
      return for_each_output(step, frame, [&](const Part& part, int64_t lane) {
        return sum(part, frame, read, lane, step.scale);
      });
    case ReduceOp::max:
      return for_each_output(step, frame, [&](const Part& part, int64_t lane) {
        if (part.count == 4) return max_of_four(part, frame, read, lane);
        return fold(part, frame, read, lane, -kInfinity,
                    [](Vec a, Vec b) { return maximum(a, b); });
      });
    case ReduceOp::min:
      return for_each_output(step, frame, [&](const Part& part, int64_t lane) {
        return fold(part, frame, read, lane, kInfinity, [](Vec a, Vec b) { return minimum(a, b); });
      });
    case ReduceOp::prod:
      return for_each_output(step, frame, [&](const Part& part, int64_t lane) {
        return fold(part, frame, read, lane, 1, [](Vec a, Vec b) { return a * b; });
      });
  }
}

}  // namespace

void run_reduce(const Reduce& step, const Frame& frame) {
  const cpu::FloatEnvironment ieee;
  with_reader(frame, step.input, [&](auto read) { reduce(step, frame, read); });
}

}  // namespace landscapex::program::LX_ISA
