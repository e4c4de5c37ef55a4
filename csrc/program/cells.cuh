// Cells of recurrent layers: an item is four lanes of one unit.
#pragma once

#include "device_steps.h"
#include "quad.cuh"

namespace landscapex::program::cuda {

__device__ inline void work(const LstmCellArgs& args, const Cells& cells, const Cell& cell,
                            const Share& share) {
  const float* gates = address(args.gates, cell);
  const float* last = args.cell.data == nullptr ? nullptr : address(args.cell, cell);
  float *cell_out = address(args.cell_out, cell), *out = address(args.out, cell);
  const int lanes = static_cast<int>(cells.lanes);
  for_quads(args.width, cells, share, [&](int unit, int lane) {
    const auto gate = [&](int g) {
      return load(gates + __ldg(args.gates_at + g * args.width + unit) * lanes + lane);
    };
    const Quad i = each([](float v) { return sigmoid(v); }, gate(0));
    const Quad f = each([](float v) { return sigmoid(v); }, gate(1));
    const Quad g = each([](float v) { return tanhf(v); }, gate(2));
    const Quad o = each([](float v) { return sigmoid(v); }, gate(3));
    const Quad c = last ? load(last + __ldg(args.cell_at + unit) * lanes + lane) : splat(0);
    const Quad next = fma(f, c, each([](float a, float b) { return a * b; }, i, g));
    store(cell_out + __ldg(args.cell_to + unit) * lanes + lane, next);
    store(out + __ldg(args.to + unit) * lanes + lane,
          each([](float gate, float c) { return gate * tanhf(c); }, o, next));
  });
}

__device__ inline void work(const GruCellArgs& args, const Cells& cells, const Cell& cell,
                            const Share& share) {
  const QuadReader x(args.x, cells, cell);
  const float* h = address(args.h, cell);
  const float* last = args.hidden.data == nullptr ? nullptr : address(args.hidden, cell);
  float* out = address(args.out, cell);
  const int lanes = static_cast<int>(cells.lanes);
  for_quads(args.width, cells, share, [&](int unit, int lane) {
    const auto of_x = [&](int g) {
      return x(__ldg(args.x_at + g * args.width + unit) * lanes + lane);
    };
    const auto of_h = [&](int g) {
      return load(h + __ldg(args.h_at + g * args.width + unit) * lanes + lane);
    };
    const auto gate = [](float a, float b) { return sigmoid(a + b); };
    const Quad r = each(gate, of_x(0), of_h(0)), z = each(gate, of_x(1), of_h(1));
    const Quad n = each([](float v) { return tanhf(v); }, fma(r, of_h(2), of_x(2)));
    const Quad hidden = last ? load(last + __ldg(args.hidden_at + unit) * lanes + lane) : splat(0);
    const auto mix = [](float z, float n, float h) { return fmaf(1.f - z, n, z * h); };
    store(out + __ldg(args.to + unit) * lanes + lane, each(mix, z, n, hidden));
  });
}

}  // namespace landscapex::program::cuda
