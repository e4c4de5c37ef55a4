// From the steps of a program to what its kernels take: tables, buffers and weights become
// addresses on the device.
#pragma once

#include <variant>
#include <vector>

#include "device_steps.h"
#include "structure.h"

namespace landscapex::program::cuda {

using StepArgs = std::variant<ContractArgs, MapArgs, ReduceArgs, NormalizeArgs, SoftmaxArgs,
                              MatMulArgs, LstmCellArgs, GruCellArgs, EmbeddingArgs,
                              CrossEntropyArgs, ElementLossArgs, HitsArgs>;

// Tables of all steps, one after the other. They are written down once; later the same walk over
// the steps finds their addresses again.
class Tables {
 public:
  static Tables writing(std::vector<char>* image) { return Tables(image, nullptr); }
  static Tables reading(const char* device) { return Tables(nullptr, device); }

  template <typename T>
  const T* of(const std::vector<T>& values) {
    return static_cast<const T*>(next(values.data(), values.size() * sizeof(T)));
  }
  // One of the tables that `compress` has put into runs.
  const int32_t* of(const std::vector<Run>& runs, int table);

 private:
  Tables(std::vector<char>* image, const char* device) : image_(image), device_(device) {}
  const void* next(const void* values, size_t bytes);

  std::vector<char>* image_;
  const char* device_;
  size_t at_ = 0;
};

// Addresses of all buffers and weights, by id.
struct Places {
  std::vector<Ref> buffers;
  std::vector<WeightRef> weights;
  std::vector<PlanesRef> planes;  // by step: null where it computes in fp32; empty: all do
  Math math = Math::kFp32;        // of those that have planes
};

// The arguments of all steps, in their order. Throws std::invalid_argument for steps that are made
// for the CPU alone (Winograd).
std::vector<StepArgs> arguments(const std::vector<Step>& steps, const Places& places,
                                Tables tables);

}  // namespace landscapex::program::cuda
