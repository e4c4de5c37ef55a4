// What a grid program is made of, for any device; landscapex/engine/steps.py has the same in
// Python.
#pragma once

#include <variant>
#include <vector>

#include "steps.h"

namespace landscapex::program {

using Step = std::variant<Contract, Winograd, Map, Reduce, Normalize, Softmax, MatMul, LstmCell,
                          GruCell, Embedding, CrossEntropy, ElementLoss, Hits>;

enum class Grid : int32_t { kNone, kAffine, kFull };
enum class Kind : int32_t { kLive, kInput, kIndex };

struct Buffer {
  int64_t elements;
  Grid grid;
  Kind kind;
  float fill;
  int32_t storage;  // buffers of one storage share memory
};

struct Output {
  int32_t buffer;
  std::vector<int32_t> at;
};

// Steps in the order of execution, and what they work on.
struct Description {
  std::vector<Buffer> buffers;
  int32_t num_weights;
  std::vector<Step> steps;
  int32_t num_terms;
  std::vector<Output> outputs;
};

// The buffer that a step writes; -1 for losses.
int32_t written(const Step& step);

}  // namespace landscapex::program
