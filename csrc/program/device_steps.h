// Steps as the CUDA kernels take them: plain data, passed by value. Field by field they are those
// of steps.h; tables point to the device.
#pragma once

#include "device.h"

namespace landscapex::program::cuda {

// How a contraction multiplies. fp32 in every other step, and in this one unless asked for.
enum class Math : int32_t { kFp32, kBf16x3, kTf32, kBf16 };

// Weights of a contraction for tensor cores, formed together with all others: [points][planes].
struct PlanesRef {
  const void* data[2] = {nullptr, nullptr};  // values, or high and low parts (bf16x3)
  int64_t per_point = 0;                     // elements
};

struct ContractArgs {
  Ref input, out, residual;
  WeightRef weight, bias, scale, shift;
  PlanesRef planes;
  int64_t num_taps, groups, outputs, positions;    // R, G, M (per group), P
  const int32_t *taps, *at, *group;                // [R], [P], [G]: elements
  const int32_t *to, *channels;                    // [P], [G * M]
  const int32_t *residual_at, *residual_channels;  // [P], [G * M], or null
  Act act;
  Math math;
};

struct OperandRef {
  Source kind = Source::number;
  Ref buffer;
  WeightRef weight;
  const int32_t* at = nullptr;  // [n]; null for numbers
  float value = 0;
};
struct MapArgs {
  MapOp op;
  OperandRef operands[3];
  Ref out;
  int64_t n;
  const int32_t* to;  // [n]
  Act act;
};

struct ReduceArgs {
  ReduceOp op;
  Ref input, out;
  int64_t n;
  const int32_t *offsets, *sources, *to;  // [n + 1], [offsets[n]], [n]
  const float* coefficients;              // or null
  float scale;
  Act act;
};

struct NormalizeArgs {
  Ref input, out;
  WeightRef gamma, beta;
  int64_t groups, count;
  const int32_t *sources, *to, *gamma_at, *beta_at;  // [groups][count]
  float eps;
  bool rms;
  Act act;
};

struct SoftmaxArgs {
  Ref input, out;
  int64_t groups, count;
  const int32_t *sources, *to;  // [groups][count]
  bool log, safe;
};

struct MatMulArgs {
  Ref x, y, out;
  int64_t batch, rows, inner, columns;
  const int32_t *x_at, *y_at, *to;
  float scale;
};

struct LstmCellArgs {
  Ref gates, cell, cell_out, out;  // cell.data null: zeros
  int64_t width;
  const int32_t *gates_at, *cell_at, *cell_to, *to;
};

struct GruCellArgs {
  Ref x, h, hidden, out;  // hidden.data null: zeros
  int64_t width;
  const int32_t *x_at, *h_at, *hidden_at, *to;
};

struct EmbeddingArgs {
  Ref index, out;  // index: int32
  WeightRef weight;
  int64_t n, width;
  const int32_t *at, *to;
};

struct CrossEntropyArgs {
  Ref input, target;  // target: int32 labels, or probabilities
  int32_t term;
  int64_t positions, classes;
  const int32_t *sources, *target_at;
  const float* class_weight;  // or null
  int32_t ignore_index;
  double smoothing;
  bool log_input, probabilities;
};

struct ElementLossArgs {
  ElementLossKind kind;
  Ref input, target;  // target.data null: there is none
  int32_t term;
  int64_t n;
  const int32_t *at, *target_at;
  double a;
  const float* weight;  // or null
};

struct HitsArgs {
  bool threshold_decision;
  Ref input, target;  // target: int32 if target_is_index
  int32_t term;
  bool target_is_index;
  int64_t positions, classes, top;
  const int32_t *sources, *target_at;
  int32_t ignore_index;
  float threshold, target_threshold;
};

// Enqueue a step for all cells; return the launch status. Nothing is synchronised, allocated or
// copied, so that a CUDA graph can hold it.
cudaError_t run(const ContractArgs& args, const Cells& cells, cudaStream_t stream);
cudaError_t run(const MapArgs& args, const Cells& cells, cudaStream_t stream);
cudaError_t run(const ReduceArgs& args, const Cells& cells, cudaStream_t stream);
cudaError_t run(const NormalizeArgs& args, const Cells& cells, cudaStream_t stream);
cudaError_t run(const SoftmaxArgs& args, const Cells& cells, cudaStream_t stream);
cudaError_t run(const MatMulArgs& args, const Cells& cells, cudaStream_t stream);
cudaError_t run(const LstmCellArgs& args, const Cells& cells, cudaStream_t stream);
cudaError_t run(const GruCellArgs& args, const Cells& cells, cudaStream_t stream);
cudaError_t run(const EmbeddingArgs& args, const Cells& cells, cudaStream_t stream);
cudaError_t run(const CrossEntropyArgs& args, const Cells& cells, cudaStream_t stream);
cudaError_t run(const ElementLossArgs& args, const Cells& cells, cudaStream_t stream);
cudaError_t run(const HitsArgs& args, const Cells& cells, cudaStream_t stream);

}  // namespace landscapex::program::cuda
