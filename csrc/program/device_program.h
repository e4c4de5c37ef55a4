// A grid program on a device: the steps of program.h for all cells of a chunk at once. Torch-free:
// memory and stream come from the caller, everything is enqueued and nothing waited for, so that a
// CUDA graph can hold a run.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "contract_mma.h"
#include "device_args.h"
#include "form.h"
#include "structure.h"

namespace landscapex::program::cuda {

// Where the numbers of a weight come from.
enum class Numbers : int32_t {
  moving,     // one set for the centre and one for each direction: formed for each point
  fixed,      // the same for all points
  per_point,  // computed by the caller
};

// Weights lie one after the other in three arrays, one for each kind, on 64-byte boundaries.
struct Placed {
  Numbers kind;
  int64_t offset, size;  // floats
};

// Addresses on the device.
struct DeviceCall {
  int64_t tiles, points;
  int64_t most_tiles, most_points;  // of any call with this workspace: its layout
  std::vector<const void*> inputs;  // by buffer id: [tiles][elements][lanes], or null
  const int64_t* valid;             // [tiles]
  const int64_t* owner;             // [tiles]: the group that a tile belongs to
  const float* moving;              // [K + 1][floats]
  const float* fixed;               // [floats]
  const float* per_point;           // [points][floats]
  const double* coordinates;        // [points][K]
  void* workspace;                  // as much as `workspace_bytes` says, of a prepared one
  double* totals;                   // [groups][most_points][terms]: added to
  float* values;                    // null, or the outputs [tiles][points][elements][lanes]
};

class DeviceProgram {
 public:
  // Weights that every block of a network in blocks can read again, at most.
  static constexpr int64_t kWeightsOfBlock = 1 << 15;  // floats

  // `block_bytes` of shared memory can be had by one block.
  DeviceProgram(int64_t lanes, Description description, Math math, int64_t block_bytes);

  // Tables of the steps, to be copied to the device once.
  const std::vector<char>& tables() const { return tables_; }
  // Says where they are, of what kind and size the weights are, and K + 1.
  void bind(const void* tables, const std::vector<Numbers>& kinds,
            const std::vector<int64_t>& sizes, int64_t num_sets);
  const std::vector<Placed>& placed() const { return placed_; }
  // Floats of one row of an array of weights.
  int64_t floats(Numbers kind) const { return floats_[static_cast<int>(kind)]; }

  // Floats that one cell works in.
  int64_t arena_floats() const { return arena_floats_; }
  // Whether all steps of a cell run in one block, with what they write in its shared memory.
  bool in_blocks() const { return in_blocks_; }
  int64_t workspace_bytes(int64_t tiles, int64_t points) const;
  int64_t num_terms() const { return description_.num_terms; }
  int64_t output_elements() const { return output_elements_; }

  // Writes what no step writes, for all that fits a workspace; once.
  void prepare(const DeviceCall& call, cudaStream_t stream) const;
  // Weights of all points, for all tiles; once for each chunk of points.
  void form_weights(const DeviceCall& call, cudaStream_t stream) const;
  // Products that serve all points; once for each chunk of tiles.
  void share(const DeviceCall& call, cudaStream_t stream) const;
  // Adds the sums of all cells to the totals.
  void run(const DeviceCall& call, cudaStream_t stream) const;

 private:
  enum class Sets { kPoints, kCenter, kDirections };
  struct Workspace;
  // Weights of a contraction on tensor cores.
  struct Rounded {
    int32_t weight;
    int64_t groups, outputs, taps;
    PlaneLayout layout;
    int64_t begin;  // bytes, in a row of planes of its kind of weights
    int64_t bytes() const { return layout.elements() * layout.element_bytes(); }  // of a plane
  };
  Places nowhere() const;
  std::vector<StepArgs> steps_of(Sets sets, const Places& places) const;
  void choose_planes();
  bool fits_blocks() const;
  PlanesRef planes_of(const Workspace& w, const Rounded& r) const;
  std::vector<PlaneTarget> targets(const Workspace& w, Numbers kind) const;
  void form_kind(const DeviceCall& call, Numbers kind, cudaStream_t stream) const;
  void run_in_blocks(const DeviceCall& call, cudaStream_t stream) const;
  Workspace workspace(const DeviceCall& call) const;
  Cells cells(const DeviceCall& call, Sets sets) const;
  Places places(const DeviceCall& call, Sets sets) const;
  void run_steps(const DeviceCall& call, Sets sets, cudaStream_t stream) const;
  void copy_outputs(const DeviceCall& call, cudaStream_t stream) const;

  int64_t lanes_;
  Description description_;
  Math math_;
  int64_t block_bytes_;
  bool in_blocks_ = false;
  std::vector<Rounded> rounded_;
  std::vector<int> rounded_of_;         // by step: which of these it reads, or -1
  int64_t plane_bytes_[3] = {0, 0, 0};  // of a point, by kind of weights
  std::vector<bool> is_shared_;         // by step
  std::vector<char> tables_;
  const char* device_tables_ = nullptr;
  std::vector<Placed> placed_;  // by weight
  int64_t floats_[3] = {0, 0, 0};
  int64_t num_sets_ = 1;
  std::vector<int64_t> starts_;  // by buffer: floats, in the arena of a cell or among the products
  int64_t arena_floats_ = 0;     // of a cell
  int64_t product_floats_ = 0;   // of one set of a tile
  int64_t largest_weight_ = 0, output_elements_ = 0;
};

}  // namespace landscapex::program::cuda
