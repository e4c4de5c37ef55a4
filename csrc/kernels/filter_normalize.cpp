// Compiled once for each instruction set, with LX_ISA naming it.
#include "filter_normalize.h"

#include "float_environment.h"
#include "search.h"
#include "wide.h"

namespace landscapex::cpu::LX_ISA {
namespace {

constexpr int kVectors = kLanes / kWide;

// Sum of the squares of n <= kSegment neighbouring entries, in the order that the header fixes.
template <typename T>
double sum_of_squares(const T* x, int64_t n) {
  Doubles sums[kVectors] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int v = 0; v < kVectors; ++v) {
      Doubles value;
      load(x + i + v * kWide, value);
      sums[v] += value * value;
    }
  }
  double lanes[kLanes];
  memcpy(lanes, sums, sizeof(lanes));
  for (int lane = 0; i + lane < n; ++lane) {
    const double value = widen(x[i + lane]);
    lanes[lane] += value * value;
  }
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

// A part of a run whose entries are neighbours in memory.
struct Piece {
  int64_t address, size;
};
LX_INLINE Piece next_piece(const Run& run, int64_t e, int64_t last) {
  const int64_t left = last - e;
  if (run.count == 1) return {run.offset + e, left};
  const int64_t rest = run.inner - e % run.inner;
  return {entry_of(run, e), rest < left ? rest : left};
}

// Entries first <= e < last of a run: where they are, or a copy of them in `buffer`.
template <typename T>
const T* gather(const T* x, const Run& run, int64_t first, int64_t last, T* buffer) {
  if (run.count == 1) return x + run.offset + first;
  T* out = buffer;
  for (int64_t e = first; e < last;) {
    const Piece piece = next_piece(run, e, last);
    for (int64_t i = 0; i < piece.size; ++i) out[i] = x[piece.address + i];
    out += piece.size;
    e += piece.size;
  }
  return buffer;
}

// Walks over segments first <= s < last: f(s, run, first entry, end entry).
template <typename F>
void for_segments(const FilterNormalizeArgs& args, int64_t first, int64_t last, const F& f) {
  int64_t r = last_not_after(args.segments, args.num_runs, first);
  for (int64_t s = first; s < last; ++s) {
    while (args.segments[r + 1] <= s) ++r;
    const Run& run = args.runs[r];
    const int64_t begin = (s - args.segments[r]) * kSegment, entries = run.count * run.inner;
    f(s, r, begin, begin + kSegment < entries ? begin + kSegment : entries);
  }
}

template <typename T>
void sum_segments_of(const FilterNormalizeArgs& args, double* sums, int64_t first, int64_t last) {
  const int64_t total = args.segments[args.num_runs];
  for_segments(args, first, last, [&](int64_t s, int64_t r, int64_t begin, int64_t end) {
    T buffer[kSegment];
    for (int64_t k = 0; k <= args.num_directions; ++k) {
      const T* x = k < args.num_directions
                       ? static_cast<const T*>(args.directions) + k * args.num_params
                       : static_cast<const T*>(args.center);
      sums[k * total + s] =
          sum_of_squares(gather(x, args.runs[r], begin, end, buffer), end - begin);
    }
  });
}

template <typename T>
void scale_piece(T* __restrict__ d, double scale, int64_t n) {
  for (int64_t i = 0; i < n; ++i) d[i] = scaled(d[i], scale);
}
template <typename T>
void multiply_piece(T* __restrict__ d, const T* __restrict__ center, int64_t n) {
  for (int64_t i = 0; i < n; ++i) d[i] = multiplied(d[i], center[i]);
}

template <typename T>
void scale_segments_of(const FilterNormalizeArgs& args, const int64_t* group_of, int64_t first,
                       int64_t last) {
  const double* center_norms = args.norms + args.num_directions * args.num_groups;
  for_segments(args, first, last, [&](int64_t, int64_t r, int64_t begin, int64_t end) {
    const Run& run = args.runs[r];
    const int64_t f = group_of[r];
    for (int64_t k = 0; k < args.num_directions; ++k) {
      T* d = static_cast<T*>(args.directions) + k * args.num_params;
      const double scale = scale_of(center_norms[f], args.norms[k * args.num_groups + f]);
      for (int64_t e = begin; e < end;) {
        const Piece piece = next_piece(run, e, end);
        if (args.elementwise) {
          multiply_piece(d + piece.address, static_cast<const T*>(args.center) + piece.address,
                         piece.size);
        } else {
          scale_piece(d + piece.address, scale, piece.size);
        }
        e += piece.size;
      }
    }
  });
}

template <typename F>
void with_type(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::kFloat16:
      return f(Half{});
    case Dtype::kBFloat16:
      return f(BFloat16{});
    case Dtype::kFloat32:
      return f(float{});
    case Dtype::kFloat64:
      return f(double{});
  }
}

}  // namespace

void sum_segments(const FilterNormalizeArgs& args, double* sums, int64_t first, int64_t last) {
  const FloatEnvironment ieee;
  with_type(args.dtype,
            [&](auto zero) { sum_segments_of<decltype(zero)>(args, sums, first, last); });
}

void sum_groups(const FilterNormalizeArgs& args, const double* sums, int64_t first, int64_t last) {
  const FloatEnvironment ieee;
  const int64_t total = args.segments[args.num_runs];
  for (int64_t k = 0; k <= args.num_directions; ++k) {
    for (int64_t f = first; f < last; ++f) {
      double sum = 0;
      const int64_t end = args.segments[args.groups[f + 1]];
      for (int64_t s = args.segments[args.groups[f]]; s < end; ++s) sum += sums[k * total + s];
      args.norms[k * args.num_groups + f] = __builtin_sqrt(sum);
    }
  }
}

void scale_segments(const FilterNormalizeArgs& args, const int64_t* group_of, int64_t first,
                    int64_t last) {
  const FloatEnvironment ieee;
  with_type(args.dtype,
            [&](auto zero) { scale_segments_of<decltype(zero)>(args, group_of, first, last); });
}

}  // namespace landscapex::cpu::LX_ISA
