// What the bf16 kernels of AVX-512 have in common: rounding the inputs into pairs, and what happens
// to a sum. To be included by sources that are compiled with LX_ISA=avx512 and AVX512_BF16.
#pragma once

#include "activation.h"
#include "contract_bf16.h"

namespace landscapex::program::LX_ISA {

using Pairs = __m512i;  // (channel 2c, channel 2c + 1) of 16 samples

LX_INLINE Pairs round_pairs(Vec even, Vec odd) {
  alignas(64) static constexpr uint16_t kInterleave[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
  return _mm512_permutexvar_epi16(_mm512_load_si512(kInterleave), rounded);
}

// [U][pairs][lanes][2] from the buffer of a group
LX_INLINE void round_inputs(const Bf16Layout& layout, const float* input, int64_t lanes,
                            uint16_t* rounded) {
  const auto positions = static_cast<int64_t>(layout.positions.size());
  const auto channels = static_cast<int64_t>(layout.channels.size());
  for (int64_t u = 0; u < positions; ++u) {
    const float* const from = input + layout.positions.data()[u] * lanes;
    uint16_t* to = rounded + u * layout.pairs * lanes * 2;
    for (int64_t k = 0; k < layout.pairs; ++k) {
      const int64_t c = 2 * k;
      const float* const even = c < channels ? from + layout.channels.data()[c] * lanes : nullptr;
      const float* const odd =
          c + 1 < channels ? from + layout.channels.data()[c + 1] * lanes : nullptr;
      for (int64_t j = 0; j < lanes; j += kWidth, to += 2 * kWidth)
        _mm512_store_si512(to,
                           round_pairs(even ? load(even + j) : Vec{}, odd ? load(odd + j) : Vec{}));
    }
  }
}

// What becomes of the sums of some outputs, from the first on.
struct Epilogue {
  const float* bias;  // or null; likewise the others
  const float* scale;
  const float* shift;
  float* out;
  const int32_t* channels;
  const float* residual;
  const int32_t* residual_channels;
  int64_t residual_sets, residual_set_stride;
  const float* coefficients;
  int64_t lanes;
};

LX_INLINE Epilogue epilogue_of(const Contract& step, const Frame& frame, int64_t first) {
  const auto weight = [&](int32_t id) { return id < 0 ? nullptr : frame.weights[id] + first; };
  Epilogue e = {};
  e.bias = weight(step.bias);
  e.scale = weight(step.scale);
  e.shift = weight(step.shift);
  e.out = frame.buffers[step.out];
  e.channels = step.channels.data() + first;
  e.lanes = frame.lanes;
  if (step.residual >= 0) {
    e.residual = frame.buffers[step.residual];
    e.residual_channels = step.residual_channels.data() + first;
    e.residual_set_stride = frame.set_strides[step.residual];
    e.residual_sets = e.residual_set_stride ? frame.num_sets : 1;
    e.coefficients = frame.coefficients;
  }
  return e;
}

// Output i at one vector of samples; `to` and `residual_at` are floats.
template <typename F>
LX_INLINE void finish(const Epilogue& e, int64_t i, Vec value, int64_t to, int64_t residual_at,
                      F activated) {
  if (e.bias) value = value + splat(e.bias[i]);
  if (e.scale) value = value * splat(e.scale[i]);
  if (e.shift) value = value + splat(e.shift[i]);
  if (e.residual) {
    const float* p = e.residual + e.residual_channels[i] * e.lanes + residual_at;
    Vec sum = load(p);
    for (int64_t k = 1; k < e.residual_sets; ++k)
      sum = fma(splat(e.coefficients[k]), load(p + k * e.residual_set_stride), sum);
    value = value + sum;
  }
  store(e.out + e.channels[i] * e.lanes + to, activated(value));
}

// A vector of samples of one position of the output.
struct Column {
  const uint16_t* pairs;
  int64_t to, residual_at;
};

LX_INLINE Column column(const Bf16Layout& layout, const uint16_t* rounded, int64_t lanes,
                        int64_t number) {
  const int64_t vectors = lanes / kWidth, p = number / vectors;
  const int64_t lane = number % vectors * kWidth;
  return {rounded + (layout.at.data()[p] * lanes + lane) * 2, layout.to.data()[p] * lanes + lane,
          layout.residual_at.empty() ? 0 : layout.residual_at.data()[p] * lanes + lane};
}

}  // namespace landscapex::program::LX_ISA
