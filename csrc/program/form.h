// Weights of many grid points, from their sets, in one launch:
//
//     formed[g][i] = sets[0][i] + sum_k coordinates[g][k] sets[k + 1][i]
//
// in float64 and rounded once, as perturb.h has it for the parameters of a model, and rounded again
// to what tensor cores take. Batch norm needs no step of its own: its factors are weights like all
// others.
#pragma once

#include "contract_mma.h"
#include "device.h"

namespace landscapex::program::cuda {

// A weight that tensor cores read: entries [begin, end) of a row.
struct PlaneTarget {
  int64_t begin, end;
  PlaneLayout layout;
  void* data[2];      // of the first point
  int64_t per_point;  // bytes
};

struct FormArgs {
  const float* sets;          // [num_sets][size]
  int64_t size;               // of a row: a multiple of 4, as is every `begin`
  int64_t num_sets;           // K + 1
  int64_t per_point;          // floats from the sets of one point to those of the next
  const double* coordinates;  // [points][K]
  int64_t points;
  float* formed;  // [points][size], or null
  Math math;
  const PlaneTarget* planes;  // on the host, in the order of `begin`
  int64_t num_planes;
};
cudaError_t form(const FormArgs& args, cudaStream_t stream);

// What no step writes: `value` in the first set of a buffer, zeros in the others.
struct FillArgs {
  Ref buffer;
  int64_t floats;    // of one set
  int64_t num_sets;  // that the buffer has
  int64_t per_set;   // floats from one to the next
  float value;
};
cudaError_t fill(const FillArgs& args, const Cells& cells, cudaStream_t stream);

// Some elements of a buffer, one after the other.
struct CopyArgs {
  static constexpr int kMost = 512;
  Ref from, to;
  int64_t lanes;
  int count;
  int32_t elements[kMost];
};
cudaError_t copy(const CopyArgs& args, const Cells& cells, cudaStream_t stream);

// Adds the sums of the tiles of a chunk, in their order, to those of the groups that own them:
// totals[owner[t]][g][term] += terms[t][g][term].
struct CollectArgs {
  const double* terms;   // [tiles][points][num_terms]
  const int64_t* owner;  // [tiles]
  int64_t tiles, points, num_terms;
  double* totals;  // [groups][most_points][num_terms]
  int64_t most_points;
};
cudaError_t collect(const CollectArgs& args, cudaStream_t stream);

}  // namespace landscapex::program::cuda
