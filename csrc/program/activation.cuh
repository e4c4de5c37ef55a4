// Activations: what is applied to a value before it is stored.
#pragma once

#include "math.cuh"

namespace landscapex::program::cuda {

// Those that cost no more than the test for them: worth repeating for each of many values in
// registers. The others are hundreds of instructions in sum: a kernel should contain them once.
__device__ __forceinline__ bool is_cheap(const Act& act) {
  return act.name == Activation::none || act.name == Activation::relu;
}
__device__ __forceinline__ float activate_cheaply(const Act& act, float x) {
  return act.name == Activation::relu ? relu(x) : x;
}

// Calls `each` with the function that an activation is: each of them is compiled once, for as many
// numbers as `each` has.
template <typename Each>
__device__ __forceinline__ void apply(const Act& act, Each each) {
  const float a = act.a, b = act.b;
  switch (act.name) {
    case Activation::none:
      return;
    case Activation::relu:
      return each([](float x) { return relu(x); });
    case Activation::leaky_relu:
      return each([a](float x) { return x > 0 ? x : x * a; });
    case Activation::elu:
      return each([a, b](float x) { return x > 0 ? x * b : expm1f(x) * (a * b); });
    case Activation::gelu:
      return each([](float x) { return gelu(x); });
    case Activation::gelu_tanh:
      return each([](float x) { return gelu_tanh(x); });
    case Activation::silu:
      return each([](float x) { return x * sigmoid(x); });
    case Activation::mish:
      return each([](float x) { return mish(x); });
    case Activation::softplus:
      return each([a, b](float x) { return softplus(x, a, b); });
    case Activation::sigmoid:
      return each([](float x) { return sigmoid(x); });
    case Activation::tanh:
      return each([](float x) { return tanhf(x); });
    case Activation::clamp:
      return each([a, b](float x) { return clamp(x, a, b); });
    case Activation::hardswish:
      return each([](float x) { return x * (clamp(x + 3.f, 0, 6) / 6.f); });
    case Activation::hardsigmoid:
      return each([](float x) { return clamp(x + 3.f, 0, 6) / 6.f; });
    case Activation::hardshrink:
      return each([a](float x) { return fabsf(x) <= a ? 0.f : x; });
    case Activation::softshrink:  // NaN stays where neither comparison holds
      return each([a](float x) { return x > a ? x - a : x < -a ? x + a : x * 0.f; });
    case Activation::softsign:
      return each([](float x) { return x / (fabsf(x) + 1.f); });
    case Activation::logsigmoid:
      return each([](float x) { return logsigmoid(x); });
    case Activation::exp:
      return each([](float x) { return expf(x); });
    case Activation::log:
      return each([](float x) { return logf(x); });
    case Activation::log1p:
      return each([](float x) { return log1pf(x); });
    case Activation::sqrt:
      return each([](float x) { return sqrtf(x); });
    case Activation::rsqrt:
      return each([](float x) { return 1.f / sqrtf(x); });
    case Activation::square:
      return each([](float x) { return x * x; });
    case Activation::reciprocal:
      return each([](float x) { return 1.f / x; });
    case Activation::abs:
      return each([](float x) { return fabsf(x); });
    case Activation::neg:
      return each([](float x) { return -x; });
    case Activation::sin:
      return each([](float x) { return sinf(x); });
    case Activation::cos:
      return each([](float x) { return cosf(x); });
    case Activation::erf:
      return each([](float x) { return erff(x); });
    case Activation::scale:
      return each([a](float x) { return x * a; });
    case Activation::shift:
      return each([a](float x) { return x + a; });
    case Activation::power:
      return each([a](float x) { return a == 3 ? x * x * x : powf(x, a); });
    case Activation::threshold:
      return each([a, b](float x) { return x <= a ? b : x; });
  }
}

__device__ __forceinline__ float activate(const Act& act, float x) {
  apply(act, [&x](auto f) { x = f(x); });
  return x;
}

}  // namespace landscapex::program::cuda
