// Takes out of a vector what lies in the span of orthonormal rows, by classical Gram-Schmidt twice:
//
//     c = Q w,  w <- w - Q^T c,     c' = Q w,  w <- w - Q^T c',     coefficients = c + c'.
//
// The rows are cut into chunks of kDotChunk entries. Inner products over a chunk, and then over the
// chunks, are float64 sums in lanes (see lanes.h); an entry of w loses c_0 q_0, c_1 q_1, ... in
// this order in float64, and is rounded once in each of the two passes. So the bits are the same
// for every instruction set, any number of threads, and on CUDA, where a chunk is the work of a
// block.
//
// Q is read from memory three times, not four: the step in the middle changes a chunk of w and
// takes its inner products with the same chunk of Q, which is in the cache by then.
//
// Source: Giraud, Langou, Rozloznik, "The loss of orthogonality in the Gram-Schmidt
// orthogonalization process", Computers & Mathematics with Applications 50, 2005: twice is enough.
#pragma once

#include "isa.h"
#include "lanes.h"
#include "numeric.h"

#if defined(LX_CUDA) || defined(LX_EMULATE_CUDA)
#include "launch.h"
#endif

namespace landscapex {

constexpr int64_t kDotChunk = 2048;

// Pointers are trusted: the callers in csrc/ops/ check them.
struct OrthogonalizeArgs {
  void* w;               // [P], updated in place
  const void* basis;     // [K, P] row-major, Q
  double* coefficients;  // [K]
  double* sums;          // [K, num_chunks(P)] scratch: inner products over each chunk
  double* found;         // [K] scratch: c of the pass
  int64_t num_rows;      // K
  int64_t num_params;    // P
  Dtype dtype;           // of w and basis: kFloat32 or kFloat64
};

LX_INLINE int64_t num_chunks(int64_t entries) { return (entries + kDotChunk - 1) / kDotChunk; }

namespace cpu {
// The steps of a pass, each over a range that the caller splits over its threads.
// Inner products over the chunks first <= s < last, to `sums`.
LX_DECLARE_KERNEL(dot_chunks, (const OrthogonalizeArgs& args, int64_t first, int64_t last),
                  (args, first, last))
// Their sums for the rows first <= k < last, to `found`; `coefficients` become that, or gain it.
LX_DECLARE_KERNEL(sum_chunks,
                  (const OrthogonalizeArgs& args, bool again, int64_t first, int64_t last),
                  (args, again, first, last))
// Takes `found` out of chunks; with `dots`, inner products with what is left follow, to `sums`.
LX_DECLARE_KERNEL(take_chunks,
                  (const OrthogonalizeArgs& args, bool dots, int64_t first, int64_t last),
                  (args, dots, first, last))
}  // namespace cpu

#if defined(LX_CUDA) || defined(LX_EMULATE_CUDA)
namespace cuda {
// Enqueues on `stream` and returns the launch status; does not synchronise.
cudaError_t orthogonalize(const OrthogonalizeArgs& args, cudaStream_t stream);
}  // namespace cuda
#endif

}  // namespace landscapex
