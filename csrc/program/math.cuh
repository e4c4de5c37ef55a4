// Elementary functions of one number, as math.h has them for vectors: within a few units in the
// last place of the true value over the whole range of float32. NaN survives in all of them:
// fmaxf and fminf, which drop it, are not used.
#pragma once

#include "device.h"

namespace landscapex::program::cuda {

constexpr float kInfinity = __builtin_inff();

// NaN if either is NaN, as torch's maximum and max pooling have it.
__device__ __forceinline__ float maximum(float a, float b) { return a > b || a != a ? a : b; }
__device__ __forceinline__ float minimum(float a, float b) { return a < b || a != a ? a : b; }
__device__ __forceinline__ float relu(float x) { return x < 0 ? 0.f : x; }
__device__ __forceinline__ float clamp(float x, float low, float high) {
  const float raised = x < low ? low : x;
  return raised > high ? high : raised;
}

__device__ __forceinline__ float sigmoid(float x) {
  const float e = expf(-fabsf(x));
  return (x < 0 ? e : 1.f) / (e + 1.f);
}
__device__ __forceinline__ float softplus(float x, float beta, float threshold) {
  const float scaled = x * beta;
  return scaled > threshold ? x : log1pf(expf(scaled)) / beta;
}
__device__ __forceinline__ float logsigmoid(float x) {
  return (x > 0 ? 0.f : x) - log1pf(expf(-fabsf(x)));
}
__device__ __forceinline__ float mish(float x) {  // tanh(log(1 + e)) = e (e + 2) / (e (e + 2) + 2)
  const float e = expf(x), product = e * (e + 2.f);
  return x > 20.f ? x : x * (product / (product + 2.f));
}

// exp(-t^2 / 2). The square is taken in two parts, because exp turns an absolute error into a
// relative one.
__device__ __forceinline__ float exp_of_half_square(float t) {
  const float high = bit_cast<float>(bit_cast<uint32_t>(t) & 0xfffff000u);
  return expf(high * high * -0.5f) * expf((high - t) * (high + t) * 0.5f);
}
// exp(t^2) erfc(t) for t >= 0: (1 + 2 t) times that is a fit in (t - 2) / (t + 2).
__device__ __forceinline__ float scaled_erfc(float t) {
  const float x = (t - 2.f) / (t + 2.f);
  float sum = -0x1.a453c4p-12f;
  sum = fmaf(sum, x, -0x1.42a48cp-10f);
  sum = fmaf(sum, x, 0x1.584620p-10f);
  sum = fmaf(sum, x, 0x1.1adef4p-7f);
  sum = fmaf(sum, x, -0x1.08186ap-7f);
  sum = fmaf(sum, x, -0x1.bc0b42p-5f);
  sum = fmaf(sum, x, 0x1.4ffc34p-3f);
  sum = fmaf(sum, x, -0x1.540844p-3f);
  sum = fmaf(sum, x, -0x1.7bf614p-4f);
  sum = fmaf(sum, x, 0x1.46e80ep+0f);
  return sum / fmaf(t, 2.f, 1.f);
}
// By the tail of the normal distribution on both sides, so that neither loses digits.
__device__ __forceinline__ float gelu(float x) {
  constexpr float kNoTail = 10.5f * 0x1.6a09e6p0f;  // beyond, it is 0
  const float magnitude = fabsf(x), most = magnitude > kNoTail ? kNoTail : magnitude;
  const float tail = exp_of_half_square(most) * (0.5f * scaled_erfc(most * 0x1.6a09e6p-1f));
  return x * (x < 0 ? tail : 1.f - tail);
}
__device__ __forceinline__ float gelu_tanh(float x) {
  const float inner = fmaf(x * x, 0x1.6e4e26p-5f, 1.f) * x;  // 0.044715
  return x * sigmoid(inner * 0x1.988454p+0f);                // 2 sqrt(2 / pi)
}

}  // namespace landscapex::program::cuda
