// Compiled once for each instruction set, with LX_ISA naming it.
#include "activation.h"

namespace landscapex::program::LX_ISA {
namespace {

// Every vector of a stretch of memory through one function.
struct Stretch {
  float* values;
  int64_t n;
  template <typename F>
  LX_MEMBER void operator()(F f) const {
    for (int64_t i = 0; i < n; i += kWidth) store(values + i, f(load(values + i)));
  }
};
struct One {
  Vec& v;
  template <typename F>
  LX_MEMBER void operator()(F f) const {
    v = f(v);
  }
};

template <typename Each>
LX_INLINE void apply(const Act& act, Each each) {
  const float a = act.a, b = act.b;
  switch (act.name) {
    case Activation::none:
      return;
    case Activation::relu:
      return each([](Vec x) { return relu(x); });
    case Activation::leaky_relu:
      return each([a](Vec x) { return x > 0 ? x : x * a; });
    case Activation::elu:
      return each([a, b](Vec x) { return x > 0 ? x * b : expm1_of_negative(x) * (a * b); });
    case Activation::gelu:
      return each([](Vec x) { return gelu(x); });
    case Activation::gelu_tanh:
      return each([](Vec x) { return gelu_tanh(x); });
    case Activation::silu:
      return each([](Vec x) { return x * sigmoid(x); });
    case Activation::mish:
      return each([](Vec x) { return mish(x); });
    case Activation::softplus:
      return each([a, b](Vec x) { return softplus(x, a, b); });
    case Activation::sigmoid:
      return each([](Vec x) { return sigmoid(x); });
    case Activation::tanh:
      return each([](Vec x) { return tanh(x); });
    case Activation::clamp:
      return each([a, b](Vec x) { return clamp(x, a, b); });
    case Activation::hardswish:
      return each([](Vec x) { return x * (clamp(x + 3.f, 0, 6) / 6.f); });
    case Activation::hardsigmoid:
      return each([](Vec x) { return clamp(x + 3.f, 0, 6) / 6.f; });
    case Activation::hardshrink:
      return each([a](Vec x) { return absolute(x) <= a ? Vec{} : x; });
    case Activation::softshrink:  // NaN stays where neither comparison holds
      return each([a](Vec x) { return x > a ? x - a : x < -a ? x + a : x * 0.f; });
    case Activation::softsign:
      return each([](Vec x) { return x / (absolute(x) + 1.f); });
    case Activation::logsigmoid:
      return each([](Vec x) { return logsigmoid(x); });
    case Activation::exp:
      return each([](Vec x) { return exp(x); });
    case Activation::log:
      return each([](Vec x) { return log(x); });
    case Activation::log1p:
      return each([](Vec x) { return log1p(x); });
    case Activation::sqrt:
      return each([](Vec x) { return sqrt(x); });
    case Activation::rsqrt:
      return each([](Vec x) { return 1.f / sqrt(x); });
    case Activation::square:
      return each([](Vec x) { return x * x; });
    case Activation::reciprocal:
      return each([](Vec x) { return 1.f / x; });
    case Activation::abs:
      return each([](Vec x) { return absolute(x); });
    case Activation::neg:
      return each([](Vec x) { return negate(x); });
    case Activation::sin:
      return each([](Vec x) { return sin(x); });
    case Activation::cos:
      return each([](Vec x) { return cos(x); });
    case Activation::erf:
      return each([](Vec x) { return erf(x); });
    case Activation::scale:
      return each([a](Vec x) { return x * a; });
    case Activation::shift:
      return each([a](Vec x) { return x + a; });
    case Activation::power:
      if (a == 3) return each([](Vec x) { return x * x * x; });
      return each([a](Vec x) { return pow(x, splat(a)); });
    case Activation::threshold:
      return each([a, b](Vec x) { return x <= a ? splat(b) : x; });
  }
}

}  // namespace

void activate(const Act& act, float* values, int64_t n) { apply(act, Stretch{values, n}); }

Vec activate(const Act& act, Vec v) {
  apply(act, One{v});
  return v;
}

}  // namespace landscapex::program::LX_ISA
