// The product at the heart of linear layers, convolutions and Winograd's transformed domain: ROWS
// outputs by VECS vectors of samples. To be included by sources that are compiled once for each
// instruction set.
#pragma once

#include "simd.h"
#include "steps.h"

namespace landscapex::program::LX_ISA {

// Accumulators, one vector of inputs and one broadcast weight must fit the registers: 32 with
// AVX-512 and NEON, 16 otherwise.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kMaxVecs[kRows + 1] = {0, 8, 8, 8, 6, 5, 4, 3, 3};
constexpr int kMostSums = 24;
#else
constexpr int kMostSums = 12;
constexpr int kMaxVecs[kRows + 1] = {0, 8, 6, 4, 3, 2, 2, 1, 1};
#endif

constexpr int kAhead = 512;  // floats: weights come from far away, once for each tile and point

// Where tap r lies, in floats.
struct TableTaps {
  const int32_t* offsets;
};
struct EvenTaps {
  int64_t step;
};
LX_INLINE int64_t tap(TableTaps taps, int64_t r) { return taps.offsets[r]; }
LX_INLINE int64_t tap(EvenTaps taps, int64_t r) { return r * taps.step; }

// sums[i][v] += w[r][i] * in[taps[r] + v * in_step], for r from `first` to `last` in order. Few
// accumulators take turns with as many others: one multiply-add waits for the one before.
template <int ROWS, int VECS, typename Taps>
LX_INLINE void accumulate_stretch(Vec (&sums)[ROWS][VECS], int64_t first, int64_t last, Taps taps,
                                  const float* in, int64_t in_step, const float* w) {
  constexpr int kChains = ROWS * VECS * 2 <= kMostSums ? 2 : 1;
  Vec more[ROWS][VECS];
  if (kChains == 2) {
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
      for (int v = 0; v < VECS; ++v) more[i][v] = Vec{};
  }
  w += first * ROWS;
  int64_t r = first;
  for (; r + kChains <= last; r += kChains) {
#pragma GCC unroll 2
    for (int c = 0; c < kChains; ++c, w += ROWS) {
      Vec(&target)[ROWS][VECS] = c == 0 ? sums : more;
      const float* x = in + tap(taps, r + c);
      __builtin_prefetch(w + kAhead);
      Vec values[VECS];
#pragma GCC unroll 8
      for (int v = 0; v < VECS; ++v) values[v] = load(x + v * in_step);
#pragma GCC unroll 8
      for (int i = 0; i < ROWS; ++i) {
        const Vec weight = splat(w[i]);
#pragma GCC unroll 8
        for (int v = 0; v < VECS; ++v) target[i][v] = fma(weight, values[v], target[i][v]);
      }
    }
  }
  if (kChains == 1) return;
  if (r < last) {
    const float* x = in + tap(taps, r);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
      for (int v = 0; v < VECS; ++v)
        sums[i][v] = fma(splat(w[i]), load(x + v * in_step), sums[i][v]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < VECS; ++v) sums[i][v] = sums[i][v] + more[i][v];
}

// For all taps. Long sums are sums of sums over stretches: a single chain of a thousand additions
// would show in the last digits.
template <int ROWS, int VECS, typename Taps>
LX_INLINE void accumulate(Vec (&sums)[ROWS][VECS], int64_t num_taps, Taps taps, const float* in,
                          int64_t in_step, const float* w) {
  constexpr int64_t kStretch = 128;
  if (num_taps <= kStretch + kStretch / 2) {
    accumulate_stretch<ROWS, VECS>(sums, 0, num_taps, taps, in, in_step, w);
    return;
  }
  Vec totals[ROWS][VECS];
  for (int i = 0; i < ROWS; ++i)
    for (int v = 0; v < VECS; ++v) totals[i][v] = sums[i][v];
  const int64_t stretches = (num_taps + kStretch - 1) / kStretch;
  for (int64_t s = 0; s < stretches; ++s) {
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
      for (int v = 0; v < VECS; ++v) sums[i][v] = Vec{};
    accumulate_stretch<ROWS, VECS>(sums, num_taps * s / stretches, num_taps * (s + 1) / stretches,
                                   taps, in, in_step, w);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
      for (int v = 0; v < VECS; ++v) totals[i][v] = totals[i][v] + sums[i][v];
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < VECS; ++v) sums[i][v] = totals[i][v];
}

// How many groups of at most `most` vectors; their sizes differ by one at most.
LX_INLINE int64_t num_groups(int64_t vectors, int64_t most) { return (vectors + most - 1) / most; }

}  // namespace landscapex::program::LX_ISA
