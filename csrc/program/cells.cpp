// Compiled once for each instruction set, with LX_ISA naming it.
#include "../kernels/float_environment.h"
#include "kernels.h"
#include "math.h"
#include "reader.h"

namespace landscapex::program::LX_ISA {

void run_lstm_cell(const LstmCell& step, const Frame& frame) {
  const cpu::FloatEnvironment ieee;
  const int64_t lanes = frame.lanes, width = step.width;
  const int32_t *gates_at = step.gates_at.data(), *cell_at = step.cell_at.data();
  const int32_t *cell_to = step.cell_to.data(), *to = step.to.data();
  const float* gates = frame.buffers[step.gates];
  const float* cell = step.cell < 0 ? nullptr : frame.buffers[step.cell];
  for (int64_t u = 0; u < width; ++u) {
    const float* gate[4];
    for (int g = 0; g < 4; ++g) gate[g] = gates + gates_at[g * width + u] * lanes;
    float* cell_out = frame.buffers[step.cell_out] + cell_to[u] * lanes;
    float* out = frame.buffers[step.out] + to[u] * lanes;
    for (int64_t lane = 0; lane < lanes; lane += kWidth) {
      const Vec c = cell ? load(cell + cell_at[u] * lanes + lane) : Vec{};
      const Vec i = sigmoid(load(gate[0] + lane)), f = sigmoid(load(gate[1] + lane));
      const Vec g = tanh(load(gate[2] + lane)), o = sigmoid(load(gate[3] + lane));
      const Vec next = fma(f, c, i * g);
      store(cell_out + lane, next);
      store(out + lane, o * tanh(next));
    }
  }
}

void run_gru_cell(const GruCell& step, const Frame& frame) {
  const cpu::FloatEnvironment ieee;
  const int64_t lanes = frame.lanes, width = step.width;
  const int32_t *x_at = step.x_at.data(), *h_at = step.h_at.data();
  const int32_t *hidden_at = step.hidden_at.data(), *to = step.to.data();
  const float* h = frame.buffers[step.h];
  const float* hidden = step.hidden < 0 ? nullptr : frame.buffers[step.hidden];
  with_reader(frame, step.x, [=, &step, &frame](auto x) {
    for (int64_t u = 0; u < width; ++u) {
      float* out = frame.buffers[step.out] + to[u] * lanes;
      for (int64_t lane = 0; lane < lanes; lane += kWidth) {
        const auto of_x = [&](int g) { return x(x_at[g * width + u] * lanes + lane); };
        const auto of_h = [&](int g) { return load(h + h_at[g * width + u] * lanes + lane); };
        const Vec last = hidden ? load(hidden + hidden_at[u] * lanes + lane) : Vec{};
        const Vec r = sigmoid(of_x(0) + of_h(0)), z = sigmoid(of_x(1) + of_h(1));
        const Vec n = tanh(fma(r, of_h(2), of_x(2)));
        store(out + lane, fma(1.f - z, n, z * last));
      }
    }
  });
}

}  // namespace landscapex::program::LX_ISA
