// Number formats shared by every kernel, on the CPU and on CUDA: dtypes, half types, conversions.
// Everything here is forced inline and has no linkage: a translation unit that is compiled for
// AVX-512 must never lend a function to one that is compiled for the baseline.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define LX_INLINE static __host__ __device__ __forceinline__
#else
#define LX_INLINE static inline __attribute__((always_inline, unused))
#endif

namespace landscapex {

enum class Dtype : uint8_t { kFloat16, kBFloat16, kFloat32, kFloat64 };

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename To, typename From>
LX_INLINE To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To out;
  memcpy(&out, &value, sizeof(out));
  return out;
}

LX_INLINE float widen(float v) { return v; }
LX_INLINE double widen(double v) { return v; }
LX_INLINE float widen(BFloat16 v) { return bit_cast<float>(uint32_t{v.bits} << 16); }
LX_INLINE float widen(Half v) {
  const uint32_t magnitude = (uint32_t{v.bits} & 0x7fffu) << 13;
  const uint32_t sign = (uint32_t{v.bits} & 0x8000u) << 16;
  // 2^112 moves the exponent to where float32 has it, subnormal numbers included
  const uint32_t finite = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7f800000u;
  return bit_cast<float>(sign | (magnitude < (0x7c00u << 13) ? finite : special));
}

// Rounding to odd: the nearest float32 towards zero, with its last bit set where `v` lies between
// two. A later rounding to at most 22 bits then gives what rounding `v` at once would have given
// (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
LX_INLINE float round_to_odd(double v) {
  const float nearest = static_cast<float>(v);
  const double back = nearest;
  const uint32_t bits = bit_cast<uint32_t>(nearest);
  const bool away = v < 0 ? back < v : back > v;
  const uint32_t truncated = away ? bits - 1 : bits;
  return bit_cast<float>(back != v && v == v ? truncated | 1u : bits);
}

// To nearest, ties to even. NaN stays NaN, with one fixed pattern.
template <typename T>
struct Narrow;
template <>
struct Narrow<float> {
  LX_INLINE float from(float v) { return v; }
  LX_INLINE float from(double v) { return static_cast<float>(v); }
};
template <>
struct Narrow<double> {
  LX_INLINE double from(float v) { return v; }
  LX_INLINE double from(double v) { return v; }
};
template <>
struct Narrow<BFloat16> {
  LX_INLINE BFloat16 from(float v) {
    const uint32_t bits = bit_cast<uint32_t>(v);
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return {static_cast<uint16_t>(v == v ? rounded : 0x7fc0u)};
  }
  LX_INLINE BFloat16 from(double v) { return from(round_to_odd(v)); }
};
template <>
struct Narrow<Half> {
  LX_INLINE Half from(float v) {
    const uint32_t bits = bit_cast<uint32_t>(v);
    const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    // at least 2^-14: move the exponent, round the 13 bits that do not fit
    const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    // below: adding 0.5 leaves the rounded multiple of 2^-24 in the last bits
    const uint32_t tiny = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - (126u << 23);
    const uint32_t finite = magnitude < (113u << 23) ? tiny : normal;
    const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    return {static_cast<uint16_t>(sign | (magnitude < (143u << 23) ? finite : special))};
  }
  LX_INLINE Half from(double v) { return from(round_to_odd(v)); }
};

template <typename T, typename From>
LX_INLINE T narrow(From v) {
  return Narrow<T>::from(v);
}

}  // namespace landscapex
