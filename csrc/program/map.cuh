// Elementwise steps: an item is four lanes of one number.
#pragma once

#include "device_steps.h"
#include "quad.cuh"

namespace landscapex::program::cuda {

class OperandReader {
 public:
  __device__ OperandReader(const OperandRef& operand, const Cells& cells, const Cell& cell)
      : kind_(operand.kind),
        value_(operand.value),
        at_(operand.at),
        weight_(address(operand.weight, cell)),
        buffer_(operand.buffer, cells, cell),
        lanes_(static_cast<int>(cells.lanes)) {}
  __device__ __forceinline__ Quad operator()(int i, int lane) const {
    if (kind_ == Source::number) return splat(value_);
    const int at = __ldg(at_ + i);
    return kind_ == Source::weight ? splat(__ldg(weight_ + at)) : buffer_(at * lanes_ + lane);
  }

 private:
  Source kind_;
  float value_;
  const int32_t* at_;
  const float* weight_;
  QuadReader buffer_;
  int lanes_;
};

__device__ __forceinline__ Quad apply(MapOp op, const Quad& a, const Quad& b, const Quad& c) {
  switch (op) {
    case MapOp::copy:
      return a;
    case MapOp::add:
      return each([](float x, float y) { return x + y; }, a, b);
    case MapOp::sub:
      return each([](float x, float y) { return x - y; }, a, b);
    case MapOp::mul:
      return each([](float x, float y) { return x * y; }, a, b);
    case MapOp::div:
      return each([](float x, float y) { return x / y; }, a, b);
    case MapOp::maximum:
      return each([](float x, float y) { return maximum(x, y); }, a, b);
    case MapOp::minimum:
      return each([](float x, float y) { return minimum(x, y); }, a, b);
    case MapOp::pow:
      return each([](float x, float y) { return powf(x, y); }, a, b);
    case MapOp::scale_shift:
      return fma(a, b, c);
    case MapOp::where:
      return each([](float x, float y, float z) { return x != 0 ? y : z; }, a, b, c);
  }
  return a;
}

__device__ inline void work(const MapArgs& args, const Cells& cells, const Cell& cell,
                            const Share& share) {
  const OperandReader a(args.operands[0], cells, cell), b(args.operands[1], cells, cell);
  const OperandReader c(args.operands[2], cells, cell);
  float* out = address(args.out, cell);
  const int lanes = static_cast<int>(cells.lanes);
  for_quads(args.n, cells, share, [&](int i, int lane) {
    const Quad value = apply(args.op, a(i, lane), b(i, lane), c(i, lane));
    store(out + __ldg(args.to + i) * lanes + lane, activate(args.act, value));
  });
}

}  // namespace landscapex::program::cuda
