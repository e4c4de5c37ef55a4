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
#else
constexpr int kMaxVecs[kRows + 1] = {0, 8, 6, 4, 3, 2, 2, 1, 1};
#endif

// Where tap r lies, in floats.
struct TableTaps {
  const int32_t* offsets;
};
struct EvenTaps {
  int64_t step;
};
LX_INLINE int64_t tap(TableTaps taps, int64_t r) { return taps.offsets[r]; }
LX_INLINE int64_t tap(EvenTaps taps, int64_t r) { return r * taps.step; }

// sums[i][v] += w[r][i] * in[taps[r] + v * in_step], for r from `first` to `last` in order.
template <int ROWS, int VECS, typename Taps>
LX_INLINE void accumulate_block(Vec (&sums)[ROWS][VECS], int64_t first, int64_t last, Taps taps,
                                const float* in, int64_t in_step, const float* w) {
  w += first * ROWS;
  for (int64_t r = first; r < last; ++r, w += ROWS) {
    const float* x = in + tap(taps, r);
    Vec values[VECS];
#pragma GCC unroll 8
    for (int v = 0; v < VECS; ++v) values[v] = load(x + v * in_step);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
      const Vec weight = splat(w[i]);
#pragma GCC unroll 8
      for (int v = 0; v < VECS; ++v) sums[i][v] = fma(weight, values[v], sums[i][v]);
    }
  }
}

// The same for all taps. Long sums are sums of sums over blocks: the rounding errors of a single
// chain of a thousand additions would show.
template <int ROWS, int VECS, typename Taps>
LX_INLINE void accumulate(Vec (&sums)[ROWS][VECS], int64_t num_taps, Taps taps, const float* in,
                          int64_t in_step, const float* w) {
  constexpr int64_t kBlock = 128;
  if (num_taps <= kBlock + kBlock / 2) {
    accumulate_block<ROWS, VECS>(sums, 0, num_taps, taps, in, in_step, w);
    return;
  }
  Vec totals[ROWS][VECS];
  for (int i = 0; i < ROWS; ++i)
    for (int v = 0; v < VECS; ++v) totals[i][v] = sums[i][v];
  const int64_t blocks = (num_taps + kBlock - 1) / kBlock;
  for (int64_t b = 0; b < blocks; ++b) {
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
      for (int v = 0; v < VECS; ++v) sums[i][v] = Vec{};
    accumulate_block<ROWS, VECS>(sums, num_taps * b / blocks, num_taps * (b + 1) / blocks, taps,
                                 in, in_step, w);
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
