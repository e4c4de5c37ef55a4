// The steps of a program on the CPU: each computes one tile of samples at one grid point.
#pragma once

#include "../kernels/isa.h"
#include "steps.h"

namespace landscapex::program {

using cpu::Isa;
using cpu::isa;

#define LX_DECLARE_STEP(name, Step) \
  LX_DECLARE_KERNEL(name, (const Step& step, const Frame& frame), (step, frame))
// Lane = sample: a block of outputs (broadcast weights) times several vectors of samples or
// neighbouring positions stays in registers while the taps go by.
LX_DECLARE_STEP(run_contract, Contract)
// F(4x4, 3x3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.
LX_DECLARE_STEP(run_winograd, Winograd)
LX_DECLARE_STEP(run_map, Map)
LX_DECLARE_STEP(run_reduce, Reduce)
LX_DECLARE_STEP(run_normalize, Normalize)
LX_DECLARE_STEP(run_softmax, Softmax)
LX_DECLARE_STEP(run_matmul, MatMul)
LX_DECLARE_STEP(run_lstm_cell, LstmCell)
LX_DECLARE_STEP(run_gru_cell, GruCell)
LX_DECLARE_STEP(run_embedding, Embedding)
LX_DECLARE_STEP(run_cross_entropy, CrossEntropy)
LX_DECLARE_STEP(run_element_loss, ElementLoss)
LX_DECLARE_STEP(run_hits, Hits)
#undef LX_DECLARE_STEP

// Floats of scratch that one step needs, at most, on any instruction set.
int64_t winograd_scratch(const Winograd& step);

}  // namespace landscapex::program
