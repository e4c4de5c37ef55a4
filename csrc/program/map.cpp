// Compiled once for each instruction set, with LX_ISA naming it.
#include "../kernels/float_environment.h"
#include "activation.h"
#include "kernels.h"
#include "reader.h"

namespace landscapex::program::LX_ISA {
namespace {

constexpr int64_t kPiece = 2048;  // floats that stay in the first-level cache between two passes

// An operand of a run: rows of lanes, or one number for each row.
struct Input {
  const float* values;
  int64_t step;  // from row to row
  bool number;
  int32_t affine;  // the buffer to combine, or -1
};
struct Block {
  int64_t rows, width;
  float* out;
  int64_t out_step;
  Input in[3];
};

// What an operand is along one row, known to the compiler where it matters.
struct Nothing {
  LX_MEMBER Nothing(const Input&, int64_t) {}
  LX_MEMBER Vec operator()(int64_t) const { return Vec{}; }
};
struct Row {
  const float* values;
  LX_MEMBER Row(const Input& input, int64_t row) : values(input.values + row * input.step) {}
  LX_MEMBER Vec operator()(int64_t lane) const { return load(values + lane); }
};
struct Number {
  Vec value;
  LX_MEMBER Number(const Input& input, int64_t row)
      : value(splat(input.values[row * input.step])) {}
  LX_MEMBER Vec operator()(int64_t) const { return value; }
};
struct Either {
  const float* values;
  bool number;
  LX_MEMBER Either(const Input& input, int64_t row)
      : values(input.values + row * input.step), number(input.number) {}
  LX_MEMBER Vec operator()(int64_t lane) const {
    return number ? splat(*values) : load(values + lane);
  }
};

template <typename A, typename B, typename C, typename F>
LX_INLINE void each(const Block& block, F f) {
  for (int64_t i = 0; i < block.rows; ++i) {
    const A a(block.in[0], i);
    const B b(block.in[1], i);
    const C c(block.in[2], i);
    float* out = block.out + i * block.out_step;
    for (int64_t j = 0; j < block.width; j += kWidth) store(out + j, f(a(j), b(j), c(j)));
  }
}

template <typename F>
LX_INLINE void unary(const Block& block, F f) {
  const auto ignoring = [f](Vec a, Vec, Vec) { return f(a); };
  if (block.in[0].number) return each<Number, Nothing, Nothing>(block, ignoring);
  return each<Row, Nothing, Nothing>(block, ignoring);
}
template <typename F>
LX_INLINE void binary(const Block& block, F f) {
  const auto ignoring = [f](Vec a, Vec b, Vec) { return f(a, b); };
  const bool a = block.in[0].number, b = block.in[1].number;
  if (!a && !b) return each<Row, Row, Nothing>(block, ignoring);
  if (!a) return each<Row, Number, Nothing>(block, ignoring);
  return each<Number, Either, Nothing>(block, ignoring);
}
template <typename F>
LX_INLINE void ternary(const Block& block, F f) {
  const Input* in = block.in;
  if (!in[0].number && in[1].number && in[2].number) return each<Row, Number, Number>(block, f);
  return each<Either, Either, Either>(block, f);
}

void compute(MapOp op, const Block& block) {
  switch (op) {
    case MapOp::copy:
      return unary(block, [](Vec a) { return a; });
    case MapOp::add:
      return binary(block, [](Vec a, Vec b) { return a + b; });
    case MapOp::sub:
      return binary(block, [](Vec a, Vec b) { return a - b; });
    case MapOp::mul:
      return binary(block, [](Vec a, Vec b) { return a * b; });
    case MapOp::div:
      return binary(block, [](Vec a, Vec b) { return a / b; });
    case MapOp::maximum:
      return binary(block, [](Vec a, Vec b) { return maximum(a, b); });
    case MapOp::minimum:
      return binary(block, [](Vec a, Vec b) { return minimum(a, b); });
    case MapOp::pow:
      return binary(block, [](Vec a, Vec b) { return pow(a, b); });
    case MapOp::scale_shift:
      return ternary(block, [](Vec a, Vec b, Vec c) { return fma(a, b, c); });
    case MapOp::where:
      return ternary(block, [](Vec a, Vec b, Vec c) { return a != 0 ? b : c; });
  }
}

void combine(const Frame& frame, int32_t buffer, int64_t offset, int64_t n, float* out) {
  with_reader(frame, buffer, [=](auto read) {
    for (int64_t j = 0; j < n; j += kWidth) store(out + j, read(offset + j));
  });
}

// A few rows, or a part of a long one, in which no operand is left to combine.
void compute_piece(const Map& step, const Frame& frame, Block piece) {
  alignas(64) float combined[3][kPiece];
  for (int k = 0; k < 3; ++k) {
    Input& input = piece.in[k];
    if (input.affine < 0) continue;
    const int64_t offset = input.values - frame.buffers[input.affine];
    combine(frame, input.affine, offset, piece.width, combined[k]);
    input.values = combined[k];
  }
  compute(step.op, piece);
  if (step.act.name == Activation::none) return;
  for (int64_t i = 0; i < piece.rows; ++i) {
    activate(step.act, piece.out + i * piece.out_step, piece.width);
  }
}

void compute_block(const Map& step, const Frame& frame, const Block& block) {
  const bool affine = block.in[0].affine >= 0 || block.in[1].affine >= 0 || block.in[2].affine >= 0;
  const int64_t width = block.width < kPiece ? block.width : kPiece;
  const int64_t rows = affine ? 1 : kPiece / width;
  for (int64_t i = 0; i < block.rows; i += rows) {
    for (int64_t j = 0; j < block.width; j += width) {
      Block piece = block;
      piece.rows = block.rows - i < rows ? block.rows - i : rows;
      piece.width = block.width - j < width ? block.width - j : width;
      piece.out += i * block.out_step + j;
      for (Input& input : piece.in) input.values += i * input.step + (input.number ? 0 : j);
      compute_piece(step, frame, piece);
    }
  }
}

Input input_of(const Operand& operand, const Frame& frame, int64_t begin, int64_t step) {
  switch (operand.kind) {
    case Source::buffer:
      return {frame.buffers[operand.id] + begin * frame.lanes, step * frame.lanes, false,
              is_affine(frame, operand.id) ? operand.id : -1};
    case Source::weight:
      return {frame.weights[operand.id] + begin, step, true, -1};
    default:
      return {&operand.value, 0, true, -1};
  }
}

}  // namespace

void run_map(const Map& step, const Frame& frame) {
  const cpu::FloatEnvironment ieee;
  const Run* runs = step.runs.data();
  const int64_t num_runs = step.runs.size(), lanes = frame.lanes;
  for (int64_t r = 0; r < num_runs; ++r) {
    const Run& run = runs[r];
    Block block = {
        run.count, lanes, frame.buffers[step.out] + run.begin[0] * lanes, run.step[0] * lanes, {}};
    bool contiguous = run.step[0] == 1;
    for (int k = 0; k < 3; ++k) {
      Input& input = block.in[k];
      input = input_of(step.operands[k], frame, run.begin[k + 1], run.step[k + 1]);
      contiguous = contiguous && input.step == (input.number ? 0 : lanes);
    }
    if (contiguous) {
      block.width *= block.rows;
      block.rows = 1;
    }
    compute_block(step, frame, block);
  }
}

}  // namespace landscapex::program::LX_ISA
