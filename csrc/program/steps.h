// Steps of the grid program, as the kernels take them; landscapex/engine/steps.py says what each
// of them computes. Tables of elements have been multiplied by nothing: an element is `lanes`
// floats.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace landscapex::program {

constexpr int kRows = 8;  // outputs of a contraction that are computed together

// clang-format off
enum class Activation : int32_t {
  none, relu, leaky_relu, elu, gelu, gelu_tanh, silu, mish, softplus,
  sigmoid, tanh, clamp, hardswish, hardsigmoid, hardshrink, softshrink, softsign,
  logsigmoid, exp, log, log1p, sqrt, rsqrt, square, reciprocal, abs, neg,
  sin, cos, erf, scale, shift, power, threshold,
};
// clang-format on

enum class Bf16Kernel : int { portable, avx512, amx };
struct Bf16Layout;  // contract_bf16.h

struct Act {
  Activation name = Activation::none;
  float a = 0, b = 0;
};

// What a kernel sees of one tile at one grid point. Buffers are 64-byte aligned; so are weights.
struct Frame {
  int64_t lanes;                  // of a tile, a multiple of 16
  int64_t valid;                  // samples in this tile; the other lanes hold harmless numbers
  int64_t num_sets;               // K + 1
  const float* coefficients;      // [K + 1], the first is 1
  float* const* buffers;          // by id: [elements][lanes]; of AFFINE ones, the first set
  const int64_t* set_strides;     // by id: floats from one set to the next; 0 if there is one only
  const int32_t* const* indices;  // by id: [elements][lanes]
  const float* const* weights;    // by id: the numbers of this point
  double* terms;                  // sums that loss steps add to
  float* scratch;                 // as much as `scratch_floats` of any step
  int64_t num_buffers, num_weights;
  Bf16Kernel bf16;              // of contractions with a layout for bf16
  const float* const* rounded;  // their weights, as this kernel takes them
};

// Consecutive entries of up to four tables that grow by fixed steps: the tables of a `Map` or the
// positions of a contraction, compressed.
constexpr int kTables = 4;
struct Run {
  int32_t begin[kTables];
  int32_t step[kTables];
  int32_t count;
};
std::vector<Run> compress(const std::vector<const int32_t*>& tables, int64_t n);

struct Contract {
  int32_t input, out, weight, bias, scale, shift, residual;
  int64_t num_taps, groups, outputs;       // R, G, M (per group)
  std::vector<int32_t> taps;               // [R], times the lanes of a tile
  std::vector<int32_t> group;              // [G]
  std::vector<int32_t> channels;           // [G * M]
  std::vector<int32_t> residual_channels;  // [G * M] or empty
  std::vector<Run> runs;                   // of at, to, residual_at
  Act act;
  std::shared_ptr<const Bf16Layout> bf16;  // null: in fp32
  int32_t rounded = -1;                    // number of its weights among those in bf16
};

struct Winograd {
  int32_t input, out, weight, bias, scale, shift, residual;
  int64_t input_at, input_channel, input_row, inputs;
  int64_t out_at, out_channel, out_row, outputs;
  int64_t residual_at, residual_channel, residual_row;
  int64_t height, width;
  Act act;
};

// clang-format off
enum class MapOp : int32_t {
  copy, add, sub, mul, div, maximum, minimum, pow, scale_shift, where,
};
// clang-format on
enum class Source : int32_t { buffer, weight, number };
struct Operand {
  Source kind = Source::number;
  int32_t id = -1;
  float value = 0;
};
struct Map {
  MapOp op;
  Operand operands[3];
  int32_t out;
  std::vector<Run> runs;  // of to, then the operands (0 for numbers)
  Act act;
};

enum class ReduceOp : int32_t { sum, max, min, prod };
struct Reduce {
  ReduceOp op;
  int32_t input, out;
  std::vector<int32_t> offsets, sources, to;
  std::vector<float> coefficients;  // or empty
  float scale;
  Act act;
};

struct Normalize {
  int32_t input, out, gamma, beta;
  int64_t groups, count;
  std::vector<int32_t> sources, to, gamma_at, beta_at;
  float eps;
  bool rms;
  Act act;
};

struct Softmax {
  int32_t input, out;
  int64_t groups, count;
  std::vector<int32_t> sources, to;
  bool log, safe;
};

struct MatMul {
  int32_t x, y, out;
  int64_t batch, rows, inner, columns;  // B, I, K, J
  std::vector<int32_t> x_at, y_at, to;
  float scale;
};

struct LstmCell {
  int32_t gates, cell, cell_out, out;
  int64_t width;  // H
  std::vector<int32_t> gates_at, cell_at, cell_to, to;
};

struct GruCell {
  int32_t x, h, hidden, out;
  int64_t width;
  std::vector<int32_t> x_at, h_at, hidden_at, to;
};

struct Embedding {
  int32_t index, weight, out;
  int64_t width;  // D
  std::vector<int32_t> at, to;
};

struct CrossEntropy {
  int32_t input, target, term;
  int64_t positions, classes;
  std::vector<int32_t> sources, target_at;
  std::vector<float> class_weight;  // or empty
  int32_t ignore_index;
  double smoothing;
  bool log_input, probabilities;
};

// clang-format off
enum class ElementLossKind : int32_t {
  identity, mse, l1, smooth_l1, huber, bce, bce_logits, poisson, poisson_log,
  soft_margin, kl, kl_log,
};
// clang-format on
struct ElementLoss {
  ElementLossKind kind;
  int32_t input, target, term;
  std::vector<int32_t> at, target_at;
  double a;
  std::vector<float> weight;  // or empty
};

struct Hits {
  bool threshold_decision;
  int32_t input, target, term;
  bool target_is_index;
  int64_t positions, classes, top;
  std::vector<int32_t> sources, target_at;
  int32_t ignore_index;
  float threshold, target_threshold;
};

}  // namespace landscapex::program
