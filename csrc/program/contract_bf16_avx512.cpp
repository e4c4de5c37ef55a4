// Compiled with LX_ISA=avx512 and AVX512_BF16: two products per lane and instruction.
#include <algorithm>

#include "../kernels/float_environment.h"
#include "contract_bf16_vector.h"

namespace landscapex::program::LX_ISA {
namespace {

constexpr int kMostRows = 8, kMostColumns = 3;  // sums that fit the registers

template <int ROWS, int COLUMNS>
LX_INLINE void accumulate_pairs(Vec (&sums)[ROWS][COLUMNS], const Bf16Layout& layout, int64_t lanes,
                                const Column* columns, const float* weight) {
  const auto tiles = static_cast<int64_t>(layout.tiles.size());
  constexpr int64_t kWords = Bf16Layout::kTilePairs;
  for (int64_t t = 0; t < tiles; ++t, weight += layout.rows * kWords) {
    const int64_t first = layout.tiles.data()[t] * lanes * 2;
    for (int64_t k = 0; k < layout.tile_pairs; ++k) {
      __m512bh values[COLUMNS];
#pragma GCC unroll 8
      for (int v = 0; v < COLUMNS; ++v)
        values[v] = (__m512bh)_mm512_load_si512(columns[v].pairs + first + k * lanes * 2);
#pragma GCC unroll 8
      for (int i = 0; i < ROWS; ++i) {
        const auto w = (__m512bh)splat(weight[i * kWords + k]);
#pragma GCC unroll 8
        for (int v = 0; v < COLUMNS; ++v)
          sums[i][v] = (Vec)_mm512_dpbf16_ps((__m512)sums[i][v], w, values[v]);
      }
    }
  }
}

template <int ROWS, int COLUMNS>
void compute(const Contract& step, const Column* columns, const float* weight,
             const Epilogue& epilogue) {
  Vec sums[ROWS][COLUMNS] = {};
  accumulate_pairs<ROWS, COLUMNS>(sums, *step.bf16, epilogue.lanes, columns, weight);
  with_activation(step.act, [&](auto activated) {
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
      for (int v = 0; v < COLUMNS; ++v)
        finish(epilogue, i, sums[i][v], columns[v].to, columns[v].residual_at, activated);
  });
}

using Compute = void (*)(const Contract&, const Column*, const float*, const Epilogue&);
template <int ROWS>
constexpr Compute kOfRows[kMostColumns] = {compute<ROWS, 1>, compute<ROWS, 2>, compute<ROWS, 3>};
constexpr const Compute* kKernels[kMostRows] = {kOfRows<1>, kOfRows<2>, kOfRows<3>, kOfRows<4>,
                                                kOfRows<5>, kOfRows<6>, kOfRows<7>, kOfRows<8>};

// All outputs of a group at a few columns.
void compute_columns(const Contract& step, const Frame& frame, int64_t group, const Column* columns,
                     int64_t count) {
  const Bf16Layout& layout = *step.bf16;
  constexpr int64_t kWords = Bf16Layout::kTilePairs;
  const int64_t of_block = static_cast<int64_t>(layout.tiles.size()) * layout.rows * kWords;
  const float* block = frame.rounded[step.rounded] + group * layout.blocks * of_block;
  for (int64_t m = 0; m < step.outputs; m += layout.rows, block += of_block) {
    const int64_t rows = std::min(layout.rows, step.outputs - m);
    for (int64_t i = 0; i < rows;) {
      const int64_t parts = (rows - i + kMostRows - 1) / kMostRows;
      const int64_t n = (rows - i + parts - 1) / parts;
      kKernels[n - 1][count - 1](step, columns, block + i * kWords,
                                 epilogue_of(step, frame, group * step.outputs + m + i));
      i += n;
    }
  }
}

}  // namespace

void run_contract_bf16(const Contract& step, const Frame& frame) {
  const cpu::FloatEnvironment ieee;
  const Bf16Layout& layout = *step.bf16;
  auto* const rounded = reinterpret_cast<uint16_t*>(frame.scratch);
  const int64_t count = static_cast<int64_t>(layout.at.size()) * (frame.lanes / kWidth);
  const int64_t parts = (count + kMostColumns - 1) / kMostColumns;
  for (int64_t g = 0; g < step.groups; ++g) {
    round_inputs(layout, frame.buffers[step.input] + step.group.data()[g] * frame.lanes,
                 frame.lanes, rounded);
    for (int64_t p = 0; p < parts; ++p) {
      const int64_t first = count * p / parts, last = count * (p + 1) / parts;
      Column columns[kMostColumns];
      for (int64_t i = first; i < last; ++i)
        columns[i - first] = column(layout, rounded, frame.lanes, i);
      compute_columns(step, frame, g, columns, last - first);
    }
  }
}

}  // namespace landscapex::program::LX_ISA
