// Compiled with LX_ISA=avx512, AVX512_BF16 and AMX: tiles of 16 outputs x 32 taps of weights times
// tiles of 32 taps x 16 samples.
#include <algorithm>

#include "../kernels/float_environment.h"
#include "contract_bf16_vector.h"

namespace landscapex::program::LX_ISA {
namespace {

constexpr int kBlocks = 2, kColumns = 2;  // of tiles that are computed together
constexpr int64_t kSquare = 16 * kWidth;  // sums of a tile
constexpr int64_t kStripBytes = 1 << 15;  // inputs that all blocks of outputs find in the cache

// The shapes of the eight tile registers: sums 0 - 3, weights 4 and 5, inputs 6 and 7.
class Tiles {
 public:
  explicit Tiles(const Bf16Layout& layout) {
    struct alignas(64) {
      uint8_t palette, start_row, reserved[14];
      uint16_t bytes[16];
      uint8_t rows[16];
    } config = {};
    config.palette = 1;
    for (int t = 0; t < 8; ++t) {
      const bool weights = t == 4 || t == 5;
      config.rows[t] = static_cast<uint8_t>(t < 6 ? layout.rows : layout.tile_pairs);
      config.bytes[t] = static_cast<uint16_t>(weights ? layout.tile_pairs * 4 : 64);
    }
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// sums[block][column] = weights of the block times inputs of the column
template <int BLOCKS, int COLUMNS>
LX_INLINE void multiply(const Bf16Layout& layout, int64_t lanes, const float* weight,
                        int64_t of_block, const Column* columns, float* sums) {
  constexpr int64_t kRow = Bf16Layout::kTilePairs * 4;
  const auto tiles = static_cast<int64_t>(layout.tiles.size());
  const int64_t of_tile = layout.rows * Bf16Layout::kTilePairs;
  const int32_t* const at = layout.tiles.data();
  asm volatile("" ::: "memory");  // what tiles read has been written
  _tile_zero(0);
  if constexpr (COLUMNS > 1) _tile_zero(1);
  if constexpr (BLOCKS > 1) _tile_zero(2);
  if constexpr (BLOCKS > 1 && COLUMNS > 1) _tile_zero(3);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = at[t] * lanes * 2;
    _tile_loadd(6, columns[0].pairs + first, lanes * 4);
    _tile_loadd(4, weight + t * of_tile, kRow);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (COLUMNS > 1) {
      _tile_loadd(7, columns[1].pairs + first, lanes * 4);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (BLOCKS > 1) {
      _tile_loadd(5, weight + of_block + t * of_tile, kRow);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (COLUMNS > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, 64);
  if constexpr (COLUMNS > 1) _tile_stored(1, sums + kSquare, 64);
  if constexpr (BLOCKS > 1) _tile_stored(2, sums + kColumns * kSquare, 64);
  if constexpr (BLOCKS > 1 && COLUMNS > 1) _tile_stored(3, sums + (kColumns + 1) * kSquare, 64);
  asm volatile("" ::: "memory");
}

template <int BLOCKS, int COLUMNS>
void compute(const Contract& step, const Frame& frame, const float* weight, int64_t of_block,
             const Column* columns, int64_t first, int64_t last) {
  const Bf16Layout& layout = *step.bf16;
  alignas(64) float sums[kBlocks * kColumns * kSquare];
  multiply<BLOCKS, COLUMNS>(layout, frame.lanes, weight, of_block, columns, sums);
  const Epilogue epilogue = epilogue_of(step, frame, first);
  with_activation(step.act, [&](auto activated) {
    for (int64_t i = 0; i < last - first; ++i) {
      const int64_t block = i / layout.rows, row = i % layout.rows;
      const float* const of_row = sums + block * kColumns * kSquare + row * kWidth;
      for (int v = 0; v < COLUMNS; ++v)
        finish(epilogue, i, load(of_row + v * kSquare), columns[v].to, columns[v].residual_at,
               activated);
    }
  });
}

// All outputs of a group at the columns of a strip.
void compute_strip(const Contract& step, const Frame& frame, int64_t group, const uint16_t* rounded,
                   int64_t begin, int64_t end) {
  const Bf16Layout& layout = *step.bf16;
  const int64_t of_block =
      static_cast<int64_t>(layout.tiles.size()) * layout.rows * Bf16Layout::kTilePairs;
  const float* weight = frame.rounded[step.rounded] + group * layout.blocks * of_block;
  const int64_t origin = group * step.outputs;
  for (int64_t b = 0; b < layout.blocks; b += kBlocks, weight += kBlocks * of_block) {
    const bool two = layout.blocks - b > 1;
    const int64_t first = b * layout.rows;
    const int64_t last = std::min(step.outputs, first + (two ? 2 : 1) * layout.rows);
    for (int64_t c = begin; c < end; c += kColumns) {
      const Column columns[kColumns] = {
          column(layout, rounded, frame.lanes, c),
          column(layout, rounded, frame.lanes, std::min(c + 1, end - 1))};
      const auto run = two ? (end - c > 1 ? compute<2, 2> : compute<2, 1>)
                           : (end - c > 1 ? compute<1, 2> : compute<1, 1>);
      run(step, frame, weight, of_block, columns, origin + first, origin + last);
    }
  }
}

}  // namespace

void run_contract_amx(const Contract& step, const Frame& frame) {
  const cpu::FloatEnvironment ieee;
  const Bf16Layout& layout = *step.bf16;
  auto* const rounded = reinterpret_cast<uint16_t*>(frame.scratch);
  const int64_t count = static_cast<int64_t>(layout.at.size()) * (frame.lanes / kWidth);
  const int64_t of_column =
      static_cast<int64_t>(layout.tiles.size()) * layout.tile_pairs * kWidth * 4;
  const int64_t strip = std::max<int64_t>(kColumns, kStripBytes / of_column / kColumns * kColumns);
  const Tiles tiles(layout);
  for (int64_t g = 0; g < step.groups; ++g) {
    round_inputs(layout, frame.buffers[step.input] + step.group.data()[g] * frame.lanes,
                 frame.lanes, rounded);
    for (int64_t c = 0; c < count; c += strip)
      compute_strip(step, frame, g, rounded, c, std::min(count, c + strip));
  }
}

}  // namespace landscapex::program::LX_ISA
