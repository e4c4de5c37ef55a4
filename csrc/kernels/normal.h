// Standard normal numbers that are a function of (key, stream, index) and of nothing else: the same
// bits on every device, in every instruction set, and in NumPy (landscapex/_fallback.py does the
// same steps in the same order). Only + - * / sqrt of float64 and integer operations are used,
// which IEEE 754 defines to the last bit; the C library's log, sin and cos differ between systems.
//
// Sources: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011
// (Philox 4x32-10); Box and Muller, "A note on the generation of random normal deviates", 1958.
#pragma once

#include "numeric.h"

#ifdef __CUDACC__
#define LX_SQRT(v) sqrt(v)
#else
#define LX_SQRT(v) __builtin_sqrt(v)
#endif

namespace landscapex {

struct Philox {
  uint32_t w0, w1, w2, w3;
};

LX_INLINE Philox philox4x32_10(Philox counter, uint32_t key0, uint32_t key1) {
  Philox c = counter;
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c.w0, b = uint64_t{0xCD9E8D57u} * c.w2;
    c = {static_cast<uint32_t>(b >> 32) ^ c.w1 ^ key0, static_cast<uint32_t>(b),
         static_cast<uint32_t>(a >> 32) ^ c.w3 ^ key1, static_cast<uint32_t>(a)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

// An integer below 2^52 as float64, by its bit pattern: exact, and vectorised everywhere.
LX_INLINE double exact(uint64_t n) { return bit_cast<double>(n | 0x4330000000000000u) - 0x1p52; }

// The 53 high bits of (hi, lo), as an integer in float64.
LX_INLINE double bits53(uint32_t hi, uint32_t lo) { return exact(hi) * 0x1p21 + exact(lo >> 11); }

// ln(u) for normal u in (0, 1]. u = 2^e m with sqrt(1/2) <= m < sqrt(2), and with s = (m - 1) / (m
// + 1) ln(m) = 2 s (1 + s^2/3 + s^4/5 + ...), |s| < 0.1716. Within 2 ulp.
LX_INLINE double log_unit(double u) {
  const uint64_t bits = bit_cast<uint64_t>(u);
  // exponents are counted from sqrt(1/2), whose pattern is 0x3FE6A09E667F3BCD
  const uint64_t steps = (bits + (0x3FF0000000000000u - 0x3FE6A09E667F3BCDu)) >> 52;
  const double m = bit_cast<double>(bits - (steps << 52) + 0x3FF0000000000000u);
  const double e = exact(steps) - 1023.0;
  const double s = (m - 1.0) / (m + 1.0), z = s * s;
  double p = 1.0 / 23.0;
  p = p * z + 1.0 / 21.0;
  p = p * z + 1.0 / 19.0;
  p = p * z + 1.0 / 17.0;
  p = p * z + 1.0 / 15.0;
  p = p * z + 1.0 / 13.0;
  p = p * z + 1.0 / 11.0;
  p = p * z + 1.0 / 9.0;
  p = p * z + 1.0 / 7.0;
  p = p * z + 1.0 / 5.0;
  p = p * z + 1.0 / 3.0;
  // e ln(2) in two parts, the first exact: 32 bits of ln(2) times at most 6 bits
  const double low = e * 0x1.a39ef35793c76p-33 + 2.0 * s * (z * p);
  return e * 0x1.62e42feep-1 + (2.0 * s + low);
}

// sin(x) and cos(x) for |x| <= pi/4, by their series: the first term left out is below 1e-17.
LX_INLINE double sin_octant(double x) {
  const double z = x * x;
  double p = 1.0 / 355687428096000.0;
  p = p * z - 1.0 / 1307674368000.0;
  p = p * z + 1.0 / 6227020800.0;
  p = p * z - 1.0 / 39916800.0;
  p = p * z + 1.0 / 362880.0;
  p = p * z - 1.0 / 5040.0;
  p = p * z + 1.0 / 120.0;
  p = p * z - 1.0 / 6.0;
  return x + x * (z * p);
}
LX_INLINE double cos_octant(double x) {
  const double z = x * x;
  double p = -1.0 / 6402373705728000.0;
  p = p * z + 1.0 / 20922789888000.0;
  p = p * z - 1.0 / 87178291200.0;
  p = p * z + 1.0 / 479001600.0;
  p = p * z - 1.0 / 3628800.0;
  p = p * z + 1.0 / 40320.0;
  p = p * z - 1.0 / 720.0;
  p = p * z + 1.0 / 24.0;
  p = p * z - 0.5;
  return 1.0 + z * p;
}

struct Normals {
  double z0, z1;
};

// Box-Muller: words 0, 1 give u1 in (0, 1], words 2, 3 give u2 in [0, 1).
LX_INLINE Normals box_muller(Philox words) {
  const double u1 = (bits53(words.w0, words.w1) + 1.0) * 0x1p-53;
  const double u2 = bits53(words.w2, words.w3) * 0x1p-53;
  const double radius = LX_SQRT(-2.0 * log_unit(u1));
  // u2 = quarter / 4 + rest with |rest| <= 1/8, both exact: 2^52 makes the addition round
  const double quarter = (u2 * 4.0 + 0x1p52) - 0x1p52;
  const double angle = (u2 - quarter * 0.25) * 0x1.921fb54442d18p+2;  // 2 pi
  const double sine = sin_octant(angle), cosine = cos_octant(angle);
  const bool odd = quarter == 1.0 || quarter == 3.0;
  const double c = odd ? sine : cosine, s = odd ? cosine : sine;
  const double cos_sign = quarter == 1.0 || quarter == 2.0 ? -1.0 : 1.0;
  const double sin_sign = quarter == 2.0 || quarter == 3.0 ? -1.0 : 1.0;
  return {radius * (cos_sign * c), radius * (sin_sign * s)};
}

// Normals 2 block and 2 block + 1 of a stream.
LX_INLINE Normals normal_pair(uint64_t block, uint64_t stream, uint64_t key) {
  const Philox counter = {static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                          static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)};
  return box_muller(
      philox4x32_10(counter, static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)));
}

}  // namespace landscapex
