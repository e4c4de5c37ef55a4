// Compiled once for each instruction set, with LX_ISA naming it.
#include "orthogonalize.h"

#include "float_environment.h"
#include "wide.h"

namespace landscapex::cpu::LX_ISA {
namespace {

constexpr int kVectors = kLanes / kWide;
constexpr int kRows = kWide == 8 ? 4 : 1;  // whose sums fit the registers

// The lanes of a sum, all but the last n % kLanes numbers added: these, and then the tree.
template <typename F>
LX_INLINE double fold(const Doubles* sums, int64_t n, const F& number) {
  double lanes[kLanes];
  memcpy(lanes, sums, sizeof(lanes));
  const int64_t begin = n - n % kLanes;
  for (int lane = 0; begin + lane < n; ++lane) lanes[lane] += number(begin + lane);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

// Inner products of w with R rows, `stride` apart: to out[0], out[step], ...
template <int R, typename T>
void dot(const double* w, const T* q, int64_t stride, int64_t n, double* out, int64_t step) {
  Doubles sums[R][kVectors] = {};
  for (int64_t i = 0; i + kLanes <= n; i += kLanes) {
    for (int v = 0; v < kVectors; ++v) {
      Doubles a, b;
      load(w + i + v * kWide, a);
      for (int r = 0; r < R; ++r) {
        load(q + r * stride + i + v * kWide, b);
        sums[r][v] += a * b;
      }
    }
  }
  for (int r = 0; r < R; ++r)
    out[r * step] = fold(sums[r], n, [&](int64_t i) { return w[i] * double{q[r * stride + i]}; });
}

double sum(const double* x, int64_t n) {
  Doubles sums[kVectors] = {};
  for (int64_t i = 0; i + kLanes <= n; i += kLanes) {
    for (int v = 0; v < kVectors; ++v) {
      Doubles value;
      load(x + i + v * kWide, value);
      sums[v] += value;
    }
  }
  return fold(sums, n, [&](int64_t i) { return x[i]; });
}

// w loses c[0] q_0, then c[1] q_1, ...: R rows, `stride` apart, in one walk over w.
template <int R, typename T>
void take(double* __restrict__ w, const double* __restrict__ c, const T* __restrict__ q,
          int64_t stride, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    double value = w[i];
    for (int r = 0; r < R; ++r) value -= c[r] * static_cast<double>(q[r * stride + i]);
    w[i] = value;
  }
}

// A chunk of w in float64, and the same entries of the rows.
template <typename T>
struct Chunk {
  T* w;
  const T* q;  // row k begins k * stride further
  int64_t stride, size;
  double wide[kDotChunk];

  Chunk(const OrthogonalizeArgs& args, int64_t s) : stride(args.num_params) {
    const int64_t begin = s * kDotChunk, left = args.num_params - begin;
    size = left < kDotChunk ? left : kDotChunk;
    w = static_cast<T*>(args.w) + begin;
    q = static_cast<const T*>(args.basis) + begin;
    widen_w();
  }
  void widen_w() {
    for (int64_t i = 0; i < size; ++i) wide[i] = w[i];
  }
};

template <typename T>
void dots(const OrthogonalizeArgs& args, const Chunk<T>& chunk, int64_t s) {
  const int64_t chunks = num_chunks(args.num_params);
  int64_t k = 0;
  for (; k + kRows <= args.num_rows; k += kRows)
    dot<kRows>(chunk.wide, chunk.q + k * chunk.stride, chunk.stride, chunk.size,
               args.sums + k * chunks + s, chunks);
  for (; k < args.num_rows; ++k)
    dot<1>(chunk.wide, chunk.q + k * chunk.stride, chunk.stride, chunk.size,
           args.sums + k * chunks + s, chunks);
}

template <typename T>
void take_rows(const OrthogonalizeArgs& args, Chunk<T>& chunk) {
  const double* c = args.found;
  int64_t k = 0;
  for (; k + 4 <= args.num_rows; k += 4)
    take<4>(chunk.wide, c + k, chunk.q + k * chunk.stride, chunk.stride, chunk.size);
  for (; k < args.num_rows; ++k)
    take<1>(chunk.wide, c + k, chunk.q + k * chunk.stride, chunk.stride, chunk.size);
  for (int64_t i = 0; i < chunk.size; ++i) chunk.w[i] = static_cast<T>(chunk.wide[i]);
}

template <typename T>
void dot_chunks_of(const OrthogonalizeArgs& args, int64_t first, int64_t last) {
  for (int64_t s = first; s < last; ++s) dots(args, Chunk<T>(args, s), s);
}

template <typename T>
void take_chunks_of(const OrthogonalizeArgs& args, bool then_dots, int64_t first, int64_t last) {
  for (int64_t s = first; s < last; ++s) {
    Chunk<T> chunk(args, s);
    take_rows(args, chunk);
    if (!then_dots) continue;
    chunk.widen_w();  // as it was rounded
    dots(args, chunk, s);
  }
}

}  // namespace

void dot_chunks(const OrthogonalizeArgs& args, int64_t first, int64_t last) {
  const FloatEnvironment ieee;
  if (args.dtype == Dtype::kFloat64) {
    dot_chunks_of<double>(args, first, last);
  } else {
    dot_chunks_of<float>(args, first, last);
  }
}

void sum_chunks(const OrthogonalizeArgs& args, bool again, int64_t first, int64_t last) {
  const FloatEnvironment ieee;
  const int64_t chunks = num_chunks(args.num_params);
  for (int64_t k = first; k < last; ++k) {
    args.found[k] = sum(args.sums + k * chunks, chunks);
    args.coefficients[k] = again ? args.coefficients[k] + args.found[k] : args.found[k];
  }
}

void take_chunks(const OrthogonalizeArgs& args, bool dots, int64_t first, int64_t last) {
  const FloatEnvironment ieee;
  if (args.dtype == Dtype::kFloat64) {
    take_chunks_of<double>(args, dots, first, last);
  } else {
    take_chunks_of<float>(args, dots, first, last);
  }
}

}  // namespace landscapex::cpu::LX_ISA
