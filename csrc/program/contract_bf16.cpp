// Compiled once for each instruction set, with LX_ISA naming it.
#include "contract_bf16.h"

#include <vector>

#include "../kernels/float_environment.h"
#include "simd.h"

namespace landscapex::program::LX_ISA {
namespace {

LX_INLINE uint32_t rounded_bits(float v) { return uint32_t{narrow<BFloat16>(v).bits}; }

// The nearest bf16, as a float.
void round_all(const float* in, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = bit_cast<float>(rounded_bits(in[i]) << 16);
}

}  // namespace

void round_weights(const Contract& step, Bf16Kernel kernel, const float* weights, float* rounded) {
  const cpu::FloatEnvironment ieee;
  if (!uses_packed(step, kernel))
    return round_all(weights, step.groups * step.outputs * step.num_taps, rounded);
  const int32_t* const from = step.bf16->weights.data();
  const auto pairs = static_cast<int64_t>(step.bf16->weights.size()) / 2;
  for (int64_t i = 0; i < pairs; ++i) {
    const int32_t a = from[2 * i], b = from[2 * i + 1];
    const uint32_t low = a < 0 ? 0 : rounded_bits(weights[a]);
    const uint32_t high = b < 0 ? 0 : rounded_bits(weights[b]);
    rounded[i] = bit_cast<float>(low | high << 16);
  }
}

void run_contract_portable(const Contract& step, const Frame& frame) {
  {
    const cpu::FloatEnvironment ieee;
    round_all(frame.buffers[step.input], step.bf16->input_elements * frame.lanes, frame.scratch);
  }
  std::vector<float*> buffers(frame.buffers, frame.buffers + frame.num_buffers);
  std::vector<const float*> weights(frame.weights, frame.weights + frame.num_weights);
  float* const input = buffers[step.input];
  buffers[step.input] = frame.scratch;
  weights[step.weight] = frame.rounded[step.rounded];
  Frame replaced = frame;
  replaced.buffers = buffers.data();
  replaced.weights = weights.data();
  if (step.residual != step.input) return LX_ISA::run_contract(step, replaced);
  // the residual is not rounded: it gets a number of its own
  buffers.push_back(input);
  std::vector<int64_t> strides(frame.set_strides, frame.set_strides + frame.num_buffers);
  strides.push_back(strides[step.residual]);
  replaced.buffers = buffers.data();
  replaced.set_strides = strides.data();
  Contract other = step;
  other.residual = static_cast<int32_t>(buffers.size()) - 1;
  LX_ISA::run_contract(other, replaced);
}

}  // namespace landscapex::program::LX_ISA
