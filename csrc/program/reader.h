// How kernels read buffers: as they are, or, where a buffer is AFFINE, as the sum of its sets.
#pragma once

#include "doubles.h"
#include "steps.h"

namespace landscapex::program::LX_ISA {

// Sets that are known to the compiler: 1 for a plain buffer, 2 and 3 for the directions that plots
// have, 0 for any number.
template <int kSets>
struct Reader {
  const float* base;
  int64_t stride;
  int64_t num_sets;
  const float* coefficients;

  // The vector at an offset in floats.
  LX_MEMBER Vec operator()(int64_t offset) const {
    Vec sum = load(base + offset);
    const int64_t n = kSets ? kSets : num_sets;
    for (int64_t k = 1; k < n; ++k) {
      sum = fma(splat(coefficients[k]), load(base + k * stride + offset), sum);
    }
    return sum;
  }
};

LX_INLINE bool is_affine(const Frame& frame, int32_t buffer) {
  return frame.set_strides[buffer] != 0 && frame.num_sets > 1;
}

template <typename F>
LX_INLINE void with_reader(const Frame& frame, int32_t buffer, F f) {
  const float* base = frame.buffers[buffer];
  const int64_t stride = frame.set_strides[buffer], n = frame.num_sets;
  const float* c = frame.coefficients;
  if (!is_affine(frame, buffer)) return f(Reader<1>{base, 0, 1, c});
  switch (n) {
    case 2:
      return f(Reader<2>{base, stride, n, c});
    case 3:
      return f(Reader<3>{base, stride, n, c});
    default:
      return f(Reader<0>{base, stride, n, c});
  }
}

// Sums of any length that lose nothing to their length: short ones in float32, added in float64.
template <int N>
class Sums {
 public:
  LX_MEMBER void add(int i, Vec v) { parts_[i] += v; }
  LX_MEMBER void next() {  // after one `add` for each i
    if (++count_ % kPart == 0) flush();
  }
  LX_MEMBER Doubles total(int i) const { return totals_[i] + widened(parts_[i]); }

 private:
  static constexpr int64_t kPart = 32;
  LX_MEMBER void flush() {
    for (int i = 0; i < N; ++i) {
      totals_[i] += widened(parts_[i]);
      parts_[i] = Vec{};
    }
  }
  Vec parts_[N] = {};
  Doubles totals_[N] = {};
  int64_t count_ = 0;
};

template <int N>
struct Vectors {
  static constexpr int count = N;
};

// Calls `f(first lane, Vectors<N>)` so that a few vectors of each row are taken together.
template <typename F>
LX_INLINE void for_lanes(int64_t lanes, F f) {
  int64_t lane = 0;
  for (; lane + 4 * kWidth <= lanes; lane += 4 * kWidth) f(lane, Vectors<4>{});
  for (; lane + 2 * kWidth <= lanes; lane += 2 * kWidth) f(lane, Vectors<2>{});
  for (; lane < lanes; lane += kWidth) f(lane, Vectors<1>{});
}

}  // namespace landscapex::program::LX_ISA
