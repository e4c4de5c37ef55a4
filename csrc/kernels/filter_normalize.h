// Filter normalisation: give each group of entries of a direction the length that the same group
// has in the centre,
//
//     d_g <- d_g * |theta_g| / |d_g|,
//
// with exact zeros where either length is zero. The same kernel serves filters, layers and the
// whole model: a group is any number of runs, and a run is `count` pieces of `inner` neighbouring
// entries, the pieces `stride` apart (a filter of a transposed convolution is such a run).
//
// Sums of squares are float64. Each run is cut into segments of kSegment entries, in its own order;
// the entries of a segment are added in lanes (see lanes.h), and segments one after the other. That
// order is the same for every instruction set, any number of threads, and on CUDA, where a segment
// is the work of a warp.
//
// Source: Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018, section 4.
#pragma once

#include "isa.h"
#include "lanes.h"
#include "numeric.h"

#if defined(LX_CUDA) || defined(LX_EMULATE_CUDA)
#include "launch.h"
#endif

namespace landscapex {

constexpr int64_t kSegment = 1024;

struct Run {
  int64_t offset, count, stride, inner;  // one row of the operator's `runs`
};

// Pointers are trusted: the callers in csrc/ops/ check them. Tables lie where the kernel runs.
struct FilterNormalizeArgs {
  void* directions;         // [K, P] row-major, updated in place
  const void* center;       // [P]
  const Run* runs;          // [R], no two with an entry in common
  const int64_t* groups;    // [F + 1] group f has the runs groups[f] <= r < groups[f + 1]
  const int64_t* segments;  // [R + 1] run r has the segments segments[r] <= s < segments[r + 1]
  double* norms;            // [K + 1, F] lengths found: of the directions, then of the centre
  int64_t num_directions;   // K
  int64_t num_params;       // P
  int64_t num_runs;         // R
  int64_t num_groups;       // F
  Dtype dtype;              // of directions and center
  bool elementwise;         // instead: d <- d * theta, entry by entry
};

// Segments that a run of `entries` entries has.
LX_INLINE int64_t num_segments(int64_t entries) { return (entries + kSegment - 1) / kSegment; }

// Address of entry `e` of a run.
LX_INLINE int64_t entry_of(const Run& run, int64_t e) {
  return run.count == 1 ? run.offset + e : run.offset + e / run.inner * run.stride + e % run.inner;
}

LX_INLINE double scale_of(double center_norm, double direction_norm) {
  return center_norm == 0 || direction_norm == 0 ? 0.0 : center_norm / direction_norm;
}

// What becomes of one entry of a direction.
template <typename T>
LX_INLINE T scaled(T direction, double scale) {
  const double product = static_cast<double>(widen(direction)) * scale;
  return narrow<T>(scale == 0 ? 0.0 : product);  // not -0.0, and not NaN where infinity met zero
}
template <typename T>
LX_INLINE T multiplied(T direction, T center) {
  return narrow<T>(static_cast<double>(widen(direction)) * static_cast<double>(widen(center)));
}

namespace cpu {
// Three steps, each over a range that the caller splits over its threads. `sums` is
// [K + 1, segments[R]]: the sum of squares of each segment, of the directions and then the centre.
LX_DECLARE_KERNEL(sum_segments,
                  (const FilterNormalizeArgs& args, double* sums, int64_t first, int64_t last),
                  (args, sums, first, last))
LX_DECLARE_KERNEL(sum_groups,
                  (const FilterNormalizeArgs& args, const double* sums, int64_t first,
                   int64_t last),
                  (args, sums, first, last))
// `group_of` is [R]: the group of each run.
LX_DECLARE_KERNEL(scale_segments,
                  (const FilterNormalizeArgs& args, const int64_t* group_of, int64_t first,
                   int64_t last),
                  (args, group_of, first, last))
}  // namespace cpu

#if defined(LX_CUDA) || defined(LX_EMULATE_CUDA)
namespace cuda {
// Enqueues on `stream` and returns the launch status; does not synchronise.
cudaError_t filter_normalize(const FilterNormalizeArgs& args, cudaStream_t stream);
}  // namespace cuda
#endif

}  // namespace landscapex
