// The lanes of a vector in float64: two registers. A vector type of twice the width would be
// shorter here, but compilers take its conversions and comparisons apart lane by lane.
#pragma once

#include "simd.h"

namespace landscapex::program::LX_ISA {

typedef double DVec __attribute__((vector_size(kWidth * 4)));
typedef float HalfVec __attribute__((vector_size(kWidth * 2)));
constexpr int kHalf = kWidth / 2;

struct Doubles {
  DVec low, high;
  LX_MEMBER double operator[](int lane) const {
    return lane < kHalf ? low[lane] : high[lane - kHalf];
  }
};

LX_INLINE DVec widened(HalfVec v) {
#if defined(__AVX512F__)
  return (DVec)_mm512_maskz_cvtps_pd(0xff, (__m256)v);
#elif defined(__AVX2__)
  return (DVec)_mm256_cvtps_pd((__m128)v);
#else
  return __builtin_convertvector(v, DVec);
#endif
}
LX_INLINE Doubles widened(Vec v) {
  HalfVec halves[2];
  memcpy(halves, &v, sizeof(v));
  return {widened(halves[0]), widened(halves[1])};
}

LX_INLINE Vec narrowed(Doubles d) {
  const HalfVec low = __builtin_convertvector(d.low, HalfVec);
  const HalfVec high = __builtin_convertvector(d.high, HalfVec);
#if defined(__AVX512F__)
  const __m512 zero = (__m512)Vec{};
  const __m512 lower = _mm512_maskz_insertf32x8(kAll, zero, (__m256)low, 0);
  return (Vec)_mm512_maskz_insertf32x8(kAll, lower, (__m256)high, 1);
#elif defined(__AVX2__)
  return (Vec)_mm256_set_m128((__m128)high, (__m128)low);
#else
  const HalfVec halves[2] = {low, high};
  Vec v;
  memcpy(&v, halves, sizeof(v));
  return v;
#endif
}

#define LX_OPERATOR(op)                                                                    \
  LX_INLINE Doubles operator op(Doubles a, Doubles b) {                                    \
    return {a.low op b.low, a.high op b.high};                                             \
  }                                                                                        \
  LX_INLINE Doubles operator op(Doubles a, double b) { return {a.low op b, a.high op b}; } \
  LX_INLINE Doubles operator op(double a, Doubles b) { return {a op b.low, a op b.high}; }
LX_OPERATOR(+)
LX_OPERATOR(-)
LX_OPERATOR(*)
LX_OPERATOR(/)
#undef LX_OPERATOR
LX_INLINE Doubles operator-(Doubles a) { return {-a.low, -a.high}; }
LX_INLINE Doubles& operator+=(Doubles& a, Doubles b) { return a = a + b; }

// `yes` where v < bound, else (NaN too) `no`.
LX_INLINE Doubles if_less(Doubles v, double bound, Doubles yes, Doubles no) {
  return {v.low < bound ? yes.low : no.low, v.high < bound ? yes.high : no.high};
}
// `yes` where the mask of a comparison is set, else `no`.
LX_INLINE Doubles where(IVec mask, Doubles yes, Doubles no) {
  return if_less(widened(mask ? splat(-1) : Vec{}), 0, yes, no);
}

// f of each lane by itself.
template <typename F>
LX_INLINE Doubles each_lane(F f, Doubles v) {
  double lanes[kWidth];
  memcpy(lanes, &v, sizeof(v));
  for (int i = 0; i < kWidth; ++i) lanes[i] = f(lanes[i]);
  memcpy(&v, lanes, sizeof(v));
  return v;
}

}  // namespace landscapex::program::LX_ISA
