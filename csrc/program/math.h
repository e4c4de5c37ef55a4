// Elementary functions of a vector, at most about 2 units in the last place from the true value
// over the whole range of float32, subnormal numbers, infinities and NaN included. The polynomials
// are near-minimax fits (Lawson's weighted least squares) to the functions named beside them.
#pragma once

#include "doubles.h"
#include "steps.h"

namespace landscapex::program::LX_ISA {

constexpr float kInfinity = __builtin_inff();
constexpr float kNotANumber = __builtin_nanf("");
constexpr float kRounding = 0x1.8p23f;  // adding it leaves the nearest integer in the last bits
constexpr float kLog2High = 0x1.63p-1f, kLog2Low = -0x1.bd0106p-13f;  // n * High is exact

// The highest coefficient comes first.
template <int N>
LX_INLINE Vec polynomial(Vec x, const float (&coefficients)[N]) {
  Vec sum = splat(coefficients[0]);
  for (int i = 1; i < N; ++i) sum = fma(sum, x, splat(coefficients[i]));
  return sum;
}

LX_INLINE Vec clamp(Vec x, float low, float high) {
  return smaller_or_nan(splat(high), larger_or_nan(splat(low), x));
}

LX_INLINE Vec copy_sign(Vec magnitude, Vec sign) {
  return from_bits((bits(magnitude) & 0x7fffffffu) | (bits(sign) & 0x80000000u));
}

// 2^n for integers n between -126 and 127.
LX_INLINE Vec power_of_two(IVec n) { return from_bits((UVec)(n + 127) << 23); }

struct Reduced {
  Vec rest;  // x - power * log(2)
  Vec power;
};
LX_INLINE Reduced reduce_by_log2(Vec x) {
  const Vec power = fma(x, splat(0x1.715476p0f), splat(kRounding)) - kRounding;
  const Vec rest = fma(power, splat(-kLog2High), x);
  return {fma(power, splat(-kLog2Low), rest), power};
}

// (exp(r) - 1 - r) / r^2 for |r| < 0.43
LX_INLINE Vec exp_tail(Vec r) {
  constexpr float fit[] = {0x1.a27282p-13f, 0x1.6e3162p-10f, 0x1.110fe0p-7f,
                           0x1.5553c8p-5f,  0x1.555556p-3f,  0x1.000000p-1f};
  return polynomial(r, fit);
}

// exp(high + low), where |low| is at most 0.05.
LX_INLINE Vec exp_of_sum(Vec high, Vec low) {
  Reduced x = reduce_by_log2(clamp(high, -104.f, 89.f));
  x.rest += low;
  const Vec value = fma(x.rest * x.rest, exp_tail(x.rest), x.rest) + 1.f;
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_scalef_ps(kAll, (__m512)value, (__m512)x.power);
#else
  const IVec power = __builtin_convertvector(x.power, IVec), half = power >> 1;
  return value * power_of_two(half) * power_of_two(power - half);
#endif
}
LX_INLINE Vec exp(Vec x) { return exp_of_sum(x, Vec{}); }

LX_INLINE Vec expm1_of_negative(Vec x) {
  const Reduced reduced = reduce_by_log2(clamp(x, -30.f, 0.f));
  const Vec r = reduced.rest, value = fma(r * r, exp_tail(r), r);
  const Vec scale = power_of_two(__builtin_convertvector(reduced.power, IVec));
  return fma(scale, value, scale - 1.f);
}

// log(x + error) for positive x, where `relative_error` = error / x is below 2^-23.
LX_INLINE Vec log_of_sum(Vec x, Vec relative_error) {
  constexpr float fit[] = {0x1.1b40e4p-4f,  -0x1.e2e918p-4f, 0x1.e6512ep-4f,
                           -0x1.fb434ep-4f, 0x1.2332b8p-3f,  -0x1.5562e2p-3f,
                           0x1.99a546p-3f,  -0x1.ffffeep-3f, 0x1.555546p-2f};
  constexpr uint32_t kLowest = 0x3f3504f3u;  // of the mantissas: sqrt(1/2)
  const IVec tiny = x < 0x1p-126f;
  const UVec shifted = bits(tiny ? x * 0x1p23f : x) - kLowest;
  const Vec power = __builtin_convertvector((IVec)shifted >> 23, Vec) - (tiny ? splat(23) : Vec{});
  const Vec f = from_bits((shifted & 0x7fffffu) + kLowest) - 1.f;
  const Vec square = f * f;
  Vec rest = fma(power, splat(kLog2Low), relative_error);
  rest = fma(square * f, polynomial(f, fit), rest);
  rest = fma(square, splat(-0.5f), rest);
  const Vec value = (f + rest) + power * kLog2High;
  return x == 0 ? splat(-kInfinity) : x < 0 ? splat(kNotANumber) : x < kInfinity ? value : x;
}
LX_INLINE Vec log(Vec x) { return log_of_sum(x, Vec{}); }
LX_INLINE Vec log1p(Vec x) {
  const Vec sum = x + 1.f;
  const Vec error = (x - (sum - 1.f)) / sum;
  return log_of_sum(sum, sum > 0 && sum < kInfinity ? error : Vec{});
}

LX_INLINE Vec tanh(Vec x) {
  const Vec t = expm1_of_negative(-2.f * absolute(x));
  return copy_sign(t / (t + 2.f), x);
}
LX_INLINE Vec sigmoid(Vec x) {
  const Vec e = exp(negate(absolute(x)));
  return (x < 0 ? e : splat(1)) / (e + 1.f);
}

// exp(-factor * t^2). The square is taken in two parts, because exp turns an absolute error into a
// relative one.
LX_INLINE Vec exp_of_square(Vec t, float factor) {
  const Vec high = from_bits(bits(t) & 0xfffff000u);
  return exp_of_sum(high * high * -factor, (high - t) * (high + t) * factor);
}
// exp(t^2) erfc(t) for t >= 0: (1 + 2 t) times that is a fit in (t - 2) / (t + 2).
LX_INLINE Vec scaled_erfc(Vec t) {
  constexpr float fit[] = {-0x1.a453c4p-12f, -0x1.42a48cp-10f, 0x1.584620p-10f, 0x1.1adef4p-7f,
                           -0x1.08186ap-7f,  -0x1.bc0b42p-5f,  0x1.4ffc34p-3f,  -0x1.540844p-3f,
                           -0x1.7bf614p-4f,  0x1.46e80ep+0f};
  return polynomial((t - 2.f) / (t + 2.f), fit) / fma(t, splat(2), splat(1));
}
constexpr float kNoTail = 10.5f;  // erfc of more than this is 0
LX_INLINE Vec erf(Vec x) {
  constexpr float fit[] = {-0x1.463882p-17f, 0x1.d960aep-14f, -0x1.bcf72ap-11f, 0x1.562e10p-8f,
                           -0x1.b82a26p-6f,  0x1.ce2f0ep-4f,  -0x1.812746p-2f,  0x1.06eba8p-3f};
  const Vec t = absolute(x);
  const Vec near_zero = fma(x, polynomial(x * x, fit), x);
  const Vec most = smaller_or_nan(splat(kNoTail), t);
  const Vec tail = exp_of_square(most, 1) * scaled_erfc(most);
  return t < 1.f ? near_zero : copy_sign(1.f - tail, x);
}

LX_INLINE Vec gelu(Vec x) {
  const Vec most = smaller_or_nan(splat(kNoTail * 0x1.6a09e6p0f), absolute(x));
  const Vec tail = exp_of_square(most, 0.5f) * (0.5f * scaled_erfc(most * 0x1.6a09e6p-1f));
  return x * (x < 0 ? tail : 1.f - tail);
}
LX_INLINE Vec gelu_tanh(Vec x) {
  const Vec inner = fma(x * x, splat(0x1.6e4e26p-5f), splat(1)) * x;  // 0.044715
  return x * sigmoid(inner * 0x1.988454p+0f);                         // 2 sqrt(2 / pi)
}
LX_INLINE Vec softplus(Vec x, float beta, float threshold) {
  const Vec scaled = x * beta;
  return scaled > threshold ? x : log1p(exp(scaled)) / beta;
}
LX_INLINE Vec logsigmoid(Vec x) {
  return smaller_or_nan(Vec{}, x) - log1p(exp(negate(absolute(x))));
}
LX_INLINE Vec mish(Vec x) {  // tanh(log(1 + e)) = e (e + 2) / (e (e + 2) + 2)
  const Vec e = exp(x);
  const Vec product = e * (e + 2.f);
  return x > 20.f ? x : x * (product / (product + 2.f));
}
struct Angle {
  Vec rest;  // x - quadrant * pi / 2
  IVec quadrant;
};
LX_INLINE Angle angle_of(Vec x) {  // for |x| up to 10^6: the products with the first part are exact
  constexpr double kFirst = 0x1.921fb54000000p+0, kSecond = 0x1.10b4611a62633p-30;
  constexpr double kRoundingDouble = 0x1.8p52;
  const Doubles wide = widened(x);
  const Doubles quadrant = (wide * 0x1.45f306dc9c883p-1 + kRoundingDouble) - kRoundingDouble;
  return {narrowed((wide - quadrant * kFirst) - quadrant * kSecond),
          __builtin_convertvector(narrowed(quadrant), IVec)};
}
LX_INLINE Vec sin_of(Angle angle) {
  constexpr float sin_fit[] = {0x1.6cd732p-19f, -0x1.a00f98p-13f, 0x1.111108p-7f, -0x1.555556p-3f};
  constexpr float cos_fit[] = {-0x1.2429fcp-22f, 0x1.a0111cp-16f, -0x1.6c16b8p-10f, 0x1.555556p-5f};
  const Vec r = angle.rest, square = r * r;
  const Vec sine = fma(r * square, polynomial(square, sin_fit), r);
  const Vec cosine = fma(square * square, polynomial(square, cos_fit), 1.f - 0.5f * square);
  const Vec value = (angle.quadrant & 1) ? cosine : sine;
  return (angle.quadrant & 2) ? negate(value) : value;
}
// Those that are further away (or no number) by the library.
template <typename F>
LX_INLINE Vec unless_far(Vec near, Vec x, F of_lane) {
  const IVec far = ~(absolute(x) <= 1e6f);
  int64_t words[kWidth / 2], any = 0;
  memcpy(words, &far, sizeof(far));
  for (const int64_t word : words) any |= word;
  return any ? each_lane(of_lane, x) : near;
}
LX_INLINE Vec sin(Vec x) {
  return unless_far(sin_of(angle_of(x)), x, [](float v) { return __builtin_sinf(v); });
}
LX_INLINE Vec cos(Vec x) {
  Angle angle = angle_of(x);
  angle.quadrant += 1;
  return unless_far(sin_of(angle), x, [](float v) { return __builtin_cosf(v); });
}
LX_INLINE Vec pow(Vec x, Vec y) {
  for (int i = 0; i < kWidth; ++i) x[i] = __builtin_powf(x[i], y[i]);
  return x;
}

}  // namespace landscapex::program::LX_ISA
