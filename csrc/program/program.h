// A grid program: steps that turn a tile of samples into sums of losses, run for many tiles and
// many grid points. Torch-free; landscapex/engine/steps.py describes the parts.
#pragma once

#include <memory>
#include <vector>

#include "structure.h"

namespace landscapex::program {

// Numbers that all samples share, for one call. Moving weights have a set for the centre and one
// for each direction; fixed ones the first only; computed ones a row for each point instead.
struct WeightData {
  const float* sets;  // [num_sets, size] or [G, size]
  int64_t size;
  int64_t num_sets;
  bool per_point;
};

// The samples of one data set, in tiles.
struct Tiles {
  int64_t count;
  const int64_t* valid;             // [count]: samples in each
  std::vector<const void*> inputs;  // by buffer id: [count][elements][lanes], or null
};

// Products that do not depend on the point, kept from call to call: [tiles][affine_floats].
struct Products {
  float* data;  // null: computed anew in each call, for each tile
  bool ready;   // whether they are there already
};

struct Points {
  int64_t count;              // G
  int64_t num_directions;     // K
  const double* coordinates;  // [G, K]
};

class Program {
 public:
  Program(int64_t lanes, Description description, bool bf16 = false);
  ~Program();

  // Sums [tiles, G, terms], and, if wanted, the values of the outputs [tiles, G, elements, lanes].
  // Every (tile, point) is computed by itself in a fixed order: the bits do not depend on
  // `num_threads` or on what else is in the call. Not to be called by two threads at once.
  void run(const Tiles& tiles, const Points& points, const std::vector<WeightData>& weights,
           const Products& products, int64_t num_threads, double* sums, float* values);

  int64_t lanes() const { return lanes_; }
  // Elements of an input buffer; 0 for others.
  int64_t input_elements(size_t id) const {
    return id < buffers_.size() && buffers_[id].kind != Kind::kLive ? buffers_[id].elements : 0;
  }
  // Whether there is a pointer for every input buffer.
  bool has_inputs(const std::vector<const void*>& inputs) const {
    if (inputs.size() != buffers_.size()) return false;
    for (size_t i = 0; i < inputs.size(); ++i)
      if ((buffers_[i].kind == Kind::kLive) != (inputs[i] == nullptr)) return false;
    return true;
  }
  int64_t num_terms() const { return num_terms_; }
  int64_t output_elements() const { return output_elements_; }
  // Floats that one thread works in.
  int64_t arena_floats(int64_t num_sets) const;
  // Floats of the shared products of one tile.
  int64_t affine_floats(int64_t num_sets) const;

 private:
  struct Arena;
  struct Call;
  void form_weights(const Call& call, int64_t point, float* formed) const;
  const float* weight_at(const Call& call, int32_t id, int64_t point) const;
  void place_rounded(Call* call) const;
  void round_step(const Call& call, const Contract& step, int64_t point) const;
  std::vector<float*> buffers_of(const Call& call, const Arena& arena, int64_t tile) const;
  void share(const Call& call, const Arena& arena, int64_t tile) const;
  void evaluate(const Call& call, const Arena& arena, int64_t tile, int64_t first,
                int64_t last) const;
  Arena& arena(int64_t thread, int64_t num_sets);

  int64_t lanes_;
  std::vector<Buffer> buffers_;
  int32_t num_weights_;
  std::vector<Step> shared_, steps_;  // once per tile and chunk; for each point
  int32_t num_terms_;
  std::vector<Output> outputs_;
  int64_t output_elements_ = 0;
  int64_t scratch_floats_ = 0;
  std::vector<bool> formed_;  // by weight: whether a step of a point reads it
  int32_t num_rounded_ = 0;   // contractions in bf16
  std::vector<std::unique_ptr<Arena>> arenas_;
};

}  // namespace landscapex::program
