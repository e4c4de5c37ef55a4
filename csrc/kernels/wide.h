// Registers full of float64, for the CPU kernels: as many numbers as the instruction set holds.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "numeric.h"

namespace landscapex::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kWide = 8;
#elif defined(__AVX2__)
constexpr int kWide = 4;
#else
constexpr int kWide = 2;
#endif
typedef double Doubles __attribute__((vector_size(8 * kWide)));
typedef float Floats __attribute__((vector_size(4 * kWide)));

LX_INLINE void load(const double* p, Doubles& out) { memcpy(&out, p, sizeof(out)); }
LX_INLINE void load(const float* p, Doubles& out) {
  Floats v;
  memcpy(&v, p, sizeof(v));
#if defined(__AVX512F__)  // compilers take the conversion of a vector apart
  out = (Doubles)_mm512_maskz_cvtps_pd(0xff, (__m256)v);
#elif defined(__AVX2__)
  out = (Doubles)_mm256_cvtps_pd((__m128)v);
#else
  out = __builtin_convertvector(v, Doubles);
#endif
}
template <typename T>
LX_INLINE void load(const T* p, Doubles& out) {
  float v[kWide];
  for (int i = 0; i < kWide; ++i) v[i] = widen(p[i]);
  load(v, out);
}

}  // namespace
}  // namespace landscapex::cpu
