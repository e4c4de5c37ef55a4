// Vectors of one instruction set. A lane is a sample; tiles have a multiple of 16 lanes, so loops
// over lanes need no remainder. Everything lies in the namespace of the instruction set and has no
// linkage: a wide instruction must not reach code that is compiled for a narrow processor.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "../kernels/numeric.h"

#define LX_MEMBER __attribute__((always_inline)) inline

namespace landscapex::program::LX_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vec __attribute__((vector_size(kWidth * 4)));
typedef int32_t IVec __attribute__((vector_size(kWidth * 4)));
typedef uint32_t UVec __attribute__((vector_size(kWidth * 4)));

LX_INLINE Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof(v));
  return v;
}
LX_INLINE IVec load(const int32_t* p) {
  IVec v;
  memcpy(&v, p, sizeof(v));
  return v;
}
LX_INLINE void store(float* p, Vec v) { memcpy(p, &v, sizeof(v)); }
LX_INLINE Vec splat(float x) { return x - Vec{}; }  // not x + 0: -0 stays -0

LX_INLINE UVec bits(Vec v) { return (UVec)v; }
LX_INLINE Vec from_bits(UVec v) { return (Vec)v; }

#if defined(__AVX512F__)
constexpr __mmask16 kAll = 0xffff;  // the unmasked intrinsics of GCC 12 warn about themselves
#endif

// One rounding where the processor has such an instruction, two elsewhere.
LX_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

LX_INLINE Vec sqrt(Vec v) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_sqrt_ps(kAll, (__m512)v);
#elif defined(__AVX2__)
  return (Vec)_mm256_sqrt_ps((__m256)v);
#elif defined(__x86_64__)
  return (Vec)_mm_sqrt_ps((__m128)v);
#elif defined(__aarch64__)
  return (Vec)vsqrtq_f32((float32x4_t)v);
#else
  for (int i = 0; i < kWidth; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

// `v` where it is larger or NaN: the instruction of x86 returns its second operand then.
LX_INLINE Vec larger_or_nan(Vec low, Vec v) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_max_ps(kAll, (__m512)low, (__m512)v);
#elif defined(__AVX2__)
  return (Vec)_mm256_max_ps((__m256)low, (__m256)v);
#elif defined(__x86_64__)
  return (Vec)_mm_max_ps((__m128)low, (__m128)v);
#else
  return low > v ? low : v;
#endif
}
LX_INLINE Vec smaller_or_nan(Vec high, Vec v) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_min_ps(kAll, (__m512)high, (__m512)v);
#elif defined(__AVX2__)
  return (Vec)_mm256_min_ps((__m256)high, (__m256)v);
#elif defined(__x86_64__)
  return (Vec)_mm_min_ps((__m128)high, (__m128)v);
#else
  return high < v ? high : v;
#endif
}

LX_INLINE Vec relu(Vec v) { return larger_or_nan(Vec{}, v); }
LX_INLINE Vec absolute(Vec v) { return from_bits(bits(v) & 0x7fffffffu); }
LX_INLINE Vec negate(Vec v) { return from_bits(bits(v) ^ 0x80000000u); }

// NaN if either is NaN, as torch's maximum and max pooling have it.
LX_INLINE Vec maximum(Vec a, Vec b) { return a != a ? a : larger_or_nan(a, b); }
LX_INLINE Vec minimum(Vec a, Vec b) { return a != a ? a : smaller_or_nan(a, b); }

// f of each lane by itself: for functions that are rarely used.
template <typename F>
LX_INLINE Vec each_lane(F f, Vec v) {
  for (int i = 0; i < kWidth; ++i) v[i] = f(v[i]);
  return v;
}

}  // namespace landscapex::program::LX_ISA
