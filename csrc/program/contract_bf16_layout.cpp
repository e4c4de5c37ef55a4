// How a contraction lies in memory for instructions that multiply bf16.
#include <algorithm>

#include "contract_bf16.h"

namespace landscapex::program {
namespace {

using Table = std::vector<int32_t>;

// Taps as `channels x offsets`: tap c * offsets + q lies at channels[c] + offsets[q].
struct Taps {
  Table channels, offsets;
};

// The smallest number of offsets that repeats itself from channel to channel.
Taps factor(const Table& taps) {
  const size_t n = taps.size();
  for (size_t q = 1; q < n; ++q) {
    if (n % q != 0) continue;
    bool repeats = true;
    for (size_t r = q; repeats && r < n; ++r) repeats = taps[r] - taps[r - q] == taps[q] - taps[0];
    if (!repeats) continue;
    Taps found;
    for (size_t c = 0; c < n; c += q) found.channels.push_back(taps[c] - taps[0]);
    found.offsets.assign(taps.begin(), taps.begin() + static_cast<std::ptrdiff_t>(q));
    return found;
  }
  return {taps, {0}};
}

// Distinct elements in order, and where each output and each of its offsets lies among them.
struct Positions {
  Table elements;
  Table at;      // [P]: of the first offset
  Table offset;  // [Q]: from there
};

bool place(const Table& at, const Table& offsets, Positions* found) {
  Table& all = found->elements;
  all.clear();
  all.reserve(at.size() * offsets.size());
  for (const int32_t a : at)
    for (const int32_t o : offsets) all.push_back(a + o);
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  const auto rank = [&all](int32_t element) {
    return static_cast<int32_t>(std::lower_bound(all.begin(), all.end(), element) - all.begin());
  };
  found->at.clear();
  found->offset.clear();
  for (const int32_t a : at) found->at.push_back(rank(a + offsets[0]));
  for (const int32_t o : offsets) found->offset.push_back(rank(at[0] + o) - found->at[0]);
  for (size_t p = 0; p < at.size(); ++p)
    for (size_t q = 0; q < offsets.size(); ++q)
      if (rank(at[p] + offsets[q]) != found->at[p] + found->offset[q]) return false;
  return true;
}

// How many neighbouring offsets follow each other in memory, if that is the same everywhere;
// else 1.
int64_t stretch(const Table& offset) {
  size_t length = 1;
  while (length < offset.size() && offset[length] == offset[length - 1] + 1) ++length;
  if (offset.size() % length != 0) return 1;
  for (size_t q = 0; q < offset.size(); ++q)
    if (q % length != 0 && offset[q] != offset[q - 1] + 1) return 1;
  return static_cast<int64_t>(length);
}

// Pairs of a position, with as many zeros as make stretches a whole number of equal tiles, and
// tiles few.
struct Tiling {
  int64_t pairs, tile_pairs, count;  // tiles of one stretch
};

Tiling tiling(int64_t pairs, int64_t length) {
  constexpr int64_t kMost = Bf16Layout::kTilePairs;
  Tiling best = {0, 0, 0};
  for (int64_t padded = pairs; padded <= pairs + kMost; ++padded) {
    const int64_t all = padded * length, count = (all + kMost - 1) / kMost;
    if (all % count == 0 && (best.count == 0 || count < best.count))
      best = {padded, all / count, count};
  }
  return best;
}

// Where the entry of output m and tap r of a group lies among the fp32 weights: `contract_order`.
int64_t entry(const Contract& step, int64_t m, int64_t r) {
  const int64_t blocks = (step.outputs + kRows - 1) / kRows;
  int64_t first = 0;
  for (int64_t k = 0;; ++k) {
    const int64_t rows = (step.outputs + blocks - 1 - k) / blocks;
    if (m < first + rows) return first * step.num_taps + r * rows + m - first;
    first += rows;
  }
}

void order_weights(const Contract& step, int64_t offsets, int64_t length, const Tiling& tiling,
                   Bf16Layout* layout) {
  constexpr int64_t kWords = Bf16Layout::kTilePairs;
  const auto channels = static_cast<int64_t>(layout->channels.size());
  const auto tiles = static_cast<int64_t>(layout->tiles.size());
  const int64_t of_group = layout->blocks * tiles * layout->rows * kWords * 2;
  layout->weights.assign(static_cast<size_t>(step.groups * of_group), -1);
  for (int64_t m = 0; m < step.outputs; ++m) {
    const int64_t block = m / layout->rows, row = m % layout->rows;
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t q = 0; q < offsets; ++q) {
        const int64_t pair = q % length * tiling.pairs + c / 2;
        const int64_t tile = q / length * tiling.count + pair / tiling.tile_pairs;
        const int64_t word = pair % tiling.tile_pairs;
        const int64_t to =
            (((block * tiles + tile) * layout->rows + row) * kWords + word) * 2 + c % 2;
        const int64_t from = entry(step, m, c * offsets + q);
        for (int64_t g = 0; g < step.groups; ++g)
          layout->weights[static_cast<size_t>(g * of_group + to)] =
              static_cast<int32_t>(g * step.outputs * step.num_taps + from);
      }
    }
  }
}

// The tables of the positions, as they were before they were compressed.
Table expanded(const Contract& step, int table) {
  Table all;
  for (const Run& run : step.runs)
    for (int32_t i = 0; i < run.count; ++i) all.push_back(run.begin[table] + i * run.step[table]);
  return all;
}

// Few outputs or half-empty pairs do not repay the rounding into pairs.
bool repays(const Contract& step, int64_t channels) { return step.outputs >= 4 && channels >= 2; }

}  // namespace

std::shared_ptr<const Bf16Layout> bf16_layout(const Contract& step, int64_t input_elements) {
  auto layout = std::make_shared<Bf16Layout>();
  layout->input_elements = input_elements;
  const Table at = expanded(step, 0);
  Taps taps = at.size() == 1 ? Taps{step.taps, {0}} : factor(step.taps);
  Positions positions;
  if (at.empty() || taps.channels.empty()) return layout;
  if (!place(at, taps.offsets, &positions)) {
    taps = {step.taps, {0}};
    place(at, taps.offsets, &positions);
  }
  if (!repays(step, static_cast<int64_t>(taps.channels.size()))) return layout;
  const int64_t length = stretch(positions.offset);
  const Tiling t = tiling(static_cast<int64_t>(taps.channels.size() + 1) / 2, length);
  layout->packed = true;
  layout->pairs = t.pairs;
  layout->positions = std::move(positions.elements);
  layout->channels = std::move(taps.channels);
  layout->tile_pairs = t.tile_pairs;
  const auto offsets = static_cast<int64_t>(taps.offsets.size());
  for (int64_t q = 0; q < offsets; q += length)
    for (int64_t k = 0; k < t.count; ++k)
      layout->tiles.push_back(static_cast<int32_t>(
          positions.offset[static_cast<size_t>(q)] * t.pairs + k * t.tile_pairs));
  for (const int32_t rank : positions.at)
    layout->at.push_back(static_cast<int32_t>(rank * t.pairs));
  layout->to = expanded(step, 1);
  if (step.residual >= 0) layout->residual_at = expanded(step, 2);
  layout->blocks = (step.outputs + Bf16Layout::kTileRows - 1) / Bf16Layout::kTileRows;
  layout->rows = (step.outputs + layout->blocks - 1) / layout->blocks;
  order_weights(step, offsets, length, t, layout.get());
  return layout;
}

}  // namespace landscapex::program
