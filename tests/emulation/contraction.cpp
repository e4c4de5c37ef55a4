// Runs every fp32 kernel of the contraction under emulation: against plain loops in float64, and
// against each other, bit for bit.
//
//   contraction [forward|reverse|random|warps] [quick]
//
// Exit status 1: a result is wrong; 2: the emulation stopped a kernel.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "contract.cu"  // not linked: its kernels are called one by one

namespace landscapex::program::cuda {

constexpr cudaError_t kWasMma = 99;
cudaError_t run_contract_mma(const ContractArgs&, const Cells&, cudaStream_t) { return kWasMma; }

namespace {

constexpr int kSets = 3;  // of an AFFINE buffer
constexpr double kLimit = 4e-7;

int failures = 0;
void expect(bool ok, const char* what, const std::string& where = "") {
  if (ok) return;
  ++failures;
  std::printf("FAILED: %s %s\n", what, where.c_str());
}

enum class Residual { none, plain, affine };
enum class Numbers { normal, positive, special, zeros };
struct Shape {
  int taps, outputs, positions, lanes, groups = 1;
  Residual residual = Residual::none;
  bool bias = true, scale = false, shift = false;
  Act act = {};
  Numbers numbers = Numbers::normal;
  int tiles = 1, points = 2;
  bool odd_weights = false;  // weights of the second point begin anywhere
};

using Floats = std::vector<float>;
using Table = std::vector<int32_t>;

// A contraction with random tables and numbers: outputs and residuals in any order, with elements
// between them that are no outputs.
struct Case {
  Shape shape;
  std::mt19937_64 random;
  int inputs, elements;  // of a cell
  int64_t per_weight, per_vector;
  Floats input, residual, out, weight, bias, scale, shift;
  std::vector<double> coordinates;
  std::vector<int64_t> valid;
  Table taps, at, group, to, channels, residual_at, residual_channels;

  int below(int n) { return static_cast<int>(random() % static_cast<uint64_t>(n)); }
  float number() {
    std::normal_distribution<float> normal;
    const float x = normal(random);
    switch (shape.numbers) {
      case Numbers::normal:
        return x;
      case Numbers::positive:
        return std::fabs(x);
      case Numbers::special:
        return below(500) ? x : below(2) ? INFINITY : NAN;
      case Numbers::zeros:
        return -std::fabs(x);
    }
    return x;
  }
  Floats numbers(int64_t n) {
    Floats values(static_cast<size_t>(n));
    for (float& v : values) v = number();
    return values;
  }
  // Elements of positions and outputs, such that all sums differ.
  void place(Table* positions, Table* outputs) {
    const int count = shape.groups * shape.outputs;
    const bool by_output = below(2) != 0;
    positions->reserve(static_cast<size_t>(shape.positions));  // no more, so that its end is seen
    outputs->reserve(static_cast<size_t>(count));
    for (int p = 0; p < shape.positions; ++p) positions->push_back(1 + (by_output ? p : p * count));
    for (int m = 0; m < count; ++m) outputs->push_back(by_output ? m * shape.positions : m);
    std::shuffle(outputs->begin(), outputs->end(), random);
  }

  Case(const Shape& s, uint64_t seed) : shape(s), random(seed) {
    const int64_t cells = int64_t{s.tiles} * s.points, count = int64_t{s.groups} * s.outputs;
    inputs = s.taps / 2 + s.positions + s.groups + 3;
    elements = static_cast<int>(count) * s.positions + 3;
    per_weight = count * s.taps + (s.odd_weights ? 1 : (16 - count * s.taps % 16) % 16);
    per_vector = (count + 15) / 16 * 16;
    input = numbers(cells * inputs * s.lanes);
    const int sets = s.residual == Residual::affine ? kSets : s.points;
    residual = numbers(int64_t{s.tiles} * sets * elements * s.lanes);
    out.resize(static_cast<size_t>(cells * elements * s.lanes));
    weight = numbers(s.points * per_weight);
    bias = numbers(s.points * per_vector);
    scale = numbers(s.points * per_vector);
    shift = numbers(per_vector);
    if (s.numbers == Numbers::zeros) {  // every product is -0, and so is every sum
      std::fill(weight.begin(), weight.end(), 0.f);
      std::fill(bias.begin(), bias.end(), -0.f);
    }
    for (int i = 0; i < s.points * (kSets - 1); ++i) coordinates.push_back(number());
    valid.assign(static_cast<size_t>(s.tiles), s.lanes);
    at.reserve(static_cast<size_t>(s.positions));
    group.reserve(static_cast<size_t>(s.groups));
    taps.reserve(static_cast<size_t>(s.taps));
    for (int p = 0; p < s.positions; ++p) at.push_back(p + 2);
    for (int g = 0; g < s.groups; ++g) group.push_back(g);
    const int most = inputs - s.positions - s.groups - 1;
    for (int r = 0; r < s.taps; ++r) taps.push_back(below(most + 2) - 2);  // also below zero
    place(&to, &channels);
    place(&residual_at, &residual_channels);
  }

  ContractArgs args() {
    const Shape& s = shape;
    const int64_t in_cell = int64_t{inputs} * s.lanes, cell = int64_t{elements} * s.lanes;
    ContractArgs a = {};
    a.input = {input.data(), s.points * in_cell, in_cell, 0};
    a.out = {out.data(), s.points * cell, cell, 0};
    if (s.residual == Residual::plain) a.residual = {residual.data(), s.points * cell, cell, 0};
    if (s.residual == Residual::affine) a.residual = {residual.data(), kSets * cell, 0, cell};
    a.weight = {weight.data(), per_weight};
    if (s.bias) a.bias = {bias.data(), per_vector};
    if (s.scale) a.scale = {scale.data(), per_vector};
    if (s.shift) a.shift = {shift.data(), 0};
    a.num_taps = s.taps;
    a.groups = s.groups;
    a.outputs = s.outputs;
    a.positions = s.positions;
    a.taps = taps.data();
    a.at = at.data();
    a.group = group.data();
    a.to = to.data();
    a.channels = channels.data();
    if (s.residual != Residual::none) {
      a.residual_at = residual_at.data();
      a.residual_channels = residual_channels.data();
    }
    a.act = s.act;
    return a;
  }
  Cells cells() {
    return {shape.lanes,        shape.tiles,  shape.points, kSets,
            coordinates.data(), valid.data(), nullptr,      0};
  }
};

double activated(const Act& act, double x) {
  switch (act.name) {
    case Activation::relu:
      return x < 0 ? 0 : x;
    case Activation::leaky_relu:
      return x > 0 ? x : x * act.a;
    case Activation::tanh:
      return std::tanh(x);
    default:
      return x;
  }
}

// A result and the sum of the magnitudes of what it was added from; NaN where nothing is stored.
struct Expected {
  std::vector<double> value, magnitude;
};

Expected expected(Case& c) {
  const Shape& s = c.shape;
  const ContractArgs a = c.args();
  Expected e = {std::vector<double>(c.out.size(), NAN), std::vector<double>(c.out.size(), 0)};
  const int blocks = (s.outputs + 7) / 8, small = s.outputs / blocks, larger = s.outputs % blocks;
  for (int t = 0; t < s.tiles; ++t)
    for (int q = 0; q < s.points; ++q)
      for (int g = 0; g < s.groups; ++g) {
        const float* w =
            &c.weight[static_cast<size_t>(q * c.per_weight + int64_t{g} * s.outputs * s.taps)];
        for (int b = 0, m = 0; b < blocks; ++b) {
          const int rows = small + (b < larger);
          for (int i = 0; i < rows; ++i, ++m)
            for (int p = 0; p < s.positions; ++p)
              for (int lane = 0; lane < s.lanes; ++lane) {
                const int output = g * s.outputs + m;
                const float* x = a.input.data + t * a.input.per_tile + q * a.input.per_point;
                const size_t vector = static_cast<size_t>(q * c.per_vector + output);
                double sum = s.bias ? c.bias[vector] : 0, size = std::fabs(sum) + 1e-30;
                for (int r = 0; r < s.taps; ++r) {
                  const int element = c.at[p] + c.group[g] + c.taps[r];
                  const double term = double{w[r * rows + i]} * x[element * s.lanes + lane];
                  sum += term;
                  size += std::fabs(term);
                }
                if (s.scale) sum *= c.scale[vector], size *= std::fabs(c.scale[vector]);
                if (s.shift) sum += c.shift[output], size += std::fabs(c.shift[output]);
                if (s.residual != Residual::none) {
                  const float* z =
                      a.residual.data + t * a.residual.per_tile + q * a.residual.per_point +
                      (c.residual_at[p] + c.residual_channels[output]) * s.lanes + lane;
                  const bool affine = s.residual == Residual::affine;
                  for (int k = 0; k < (affine ? kSets : 1); ++k) {
                    const double by = k ? c.coordinates[q * (kSets - 1) + k - 1] : 1;
                    sum += by * z[k * a.residual.per_set];
                    size += std::fabs(by * z[k * a.residual.per_set]);
                  }
                }
                const size_t place =
                    static_cast<size_t>(t * a.out.per_tile + q * a.out.per_point +
                                        (c.to[p] + c.channels[output]) * s.lanes + lane);
                e.value[place] = activated(s.act, sum);
                e.magnitude[place] = size;
              }
          w += rows * s.taps;
        }
      }
  return e;
}

constexpr uint32_t kUntouched = 0x7fabcdefu;  // a NaN that no kernel makes

template <typename F>
Floats result(Case& c, F run) {
  std::fill(c.out.begin(), c.out.end(), bit_cast<float>(kUntouched));
  run(c.args(), c.cells());
  return c.out;
}

// The bits of a NaN are the processor's business, but for the one that says: not written.
uint32_t bits(float x) {
  const uint32_t own = bit_cast<uint32_t>(x);
  return x == x || own == kUntouched ? own : 0x7fffffffu;
}
bool same_number(float a, float b) { return bits(a) == bits(b); }

void check(const Shape& s, uint64_t seed) {
  Case c(s, seed);
  const std::string where = std::to_string(s.taps) + " taps, " + std::to_string(s.outputs) +
                            " outputs, " + std::to_string(s.positions) + " positions, " +
                            std::to_string(s.lanes) + " lanes, " + std::to_string(s.groups) +
                            " groups";
  const Expected e = expected(c);
  const Floats general =
      result(c, [](const auto& a, const auto& cells) { launch_general(a, cells, nullptr); });
  double worst = 0;
  bool outside = false, special = true;
  for (size_t i = 0; i < general.size(); ++i) {
    const bool untouched = bits(general[i]) == kUntouched;
    outside |= untouched != (e.magnitude[i] == 0);
    if (untouched) continue;
    if (std::isfinite(e.value[i]) && std::isfinite(general[i]))
      worst = std::max(worst, std::fabs(general[i] - e.value[i]) / e.magnitude[i]);
    else
      special &= std::isnan(e.value[i]) ? std::isnan(general[i]) : general[i] == e.value[i];
  }
  expect(!outside, "writes its outputs and nothing else:", where);
  expect(special, "NaN and infinities survive:", where);
  expect(worst <= kLimit, "agrees with float64:", where);
  const auto same = [&](const char* what, auto run) {
    const Floats out = result(c, run);
    expect(std::equal(out.begin(), out.end(), general.begin(), same_number), what, where);
  };
  for (const Variant& v : kVariants)
    same("all kernels give the same bits:",
         [&](const auto& a, const auto& cells) { v.launch(a, cells, nullptr); });
  same("the chosen kernel gives the same bits:",
       [](const auto& a, const auto& cells) { run(a, cells, nullptr); });
  same("one small block gives the same bits:", [](const auto& a, const auto& cells) {
    launch(contract_general_kernel, grid_of(cells, 1), 32u, 0, nullptr, a, cells);
  });
  same("a cell by itself has the same bits:", [&](ContractArgs a, Cells cells) {
    for (int q = 0; q < s.points; ++q) {
      Cells one = cells;
      one.points = 1;
      one.coordinates += q * (kSets - 1);
      ContractArgs b = a;
      for (Ref* ref : {&b.input, &b.out, &b.residual})
        if (ref->data) ref->data += q * ref->per_point;
      for (WeightRef* ref : {&b.weight, &b.bias, &b.scale, &b.shift})
        if (ref->data) ref->data += q * ref->per_point;
      run(b, one, nullptr);
    }
  });
  uint64_t hash = 0;
  for (float x : general) hash = hash * 1099511628211u + bits(x);
  std::printf("%s: error %.1e, bits %016llx\n", where.c_str(), worst,
              static_cast<unsigned long long>(hash));
}

// Tensor cores are asked where they can do the step; other steps stay in fp32.
void check_dispatch() {
  Case c({9, 8, 2, 16}, 1);
  ContractArgs a = c.args();
  a.math = Math::kBf16x3;
  expect(run(a, c.cells(), nullptr) == kWasMma, "tensor cores take a large step");
  a.outputs = 7;
  expect(run(a, c.cells(), nullptr) == cudaSuccess, "tensor cores leave a small step");
}

std::vector<Shape> shapes(bool quick) {
  const Act relu = {Activation::relu}, leaky = {Activation::leaky_relu, 0.1f};
  const Act tanh = {Activation::tanh};
  using R = Residual;
  using N = Numbers;
  // taps, outputs, positions, lanes, groups; residual; bias, scale, shift; activation; numbers
  std::vector<Shape> all = {
      {27, 13, 9, 48, 1, R::affine, true, true, true, relu, N::normal, 2, 2},
      {200, 70, 2, 16, 1, R::plain, true, false, false, leaky, N::normal, 1, 2},
      {385, 9, 5, 32, 2, R::affine, false, true, true, relu, N::normal, 1, 2},
      {9, 16, 35, 32, 1, R::plain, true, false, false, relu, N::special},
      {21, 40, 2, 16, 1, R::none, true, false, false, {}, N::zeros},
      {137, 64, 1, 64, 1, R::none, true, false, false, tanh, N::normal, 2, 1},
      {40, 24, 3, 16, 1, R::none, true, false, false, relu, N::normal, 1, 2, true},
      {9, 1, 33, 16, 5, R::none, false, true, true, relu},
      {4000, 3, 1, 16, 1, R::none, false, false, false, {}, N::positive},
  };
  if (quick) return all;
  const std::vector<Shape> more = {
      {192, 5, 20, 16, 1, R::none, true, false, false, relu},
      {193, 5, 20, 16, 1, R::none, true, false, false, relu},
      {128, 65, 2, 16, 1, R::plain, true, false, true, {}},
      {256, 32, 1, 64, 1, R::affine, true, true, false, relu},
      {257, 66, 1, 16, 1, R::none, false, false, false, relu},
      {600, 33, 1, 32, 1, R::none, true, false, false, {}},
      {1, 1, 1, 16},
      {1, 70, 1, 16},
      {2, 2, 50, 16},
      {3, 3, 40, 32},
      {4, 4, 30, 16},
      {5, 6, 21, 32},
      {7, 7, 20, 16},
      {8, 8, 70, 16},
      {15, 17, 16, 16},
      {16, 10, 1, 32},
      {25, 6, 40, 32},
      {63, 84, 1, 16},
      {64, 31, 1, 64},
      {65, 63, 1, 48},
      {120, 84, 1, 32},
      {150, 16, 7, 16},
      {84, 10, 1, 128},
      {33, 3, 7, 16, 4, R::plain, true, true, false, leaky},
      {45, 11, 4, 64, 3, R::affine, true, false, true, tanh},
      {129, 7, 3, 16, 3, R::plain, false, true, true, {}},
      {72, 8, 9, 32, 3, R::none, true, false, false, relu},
      {211, 16, 3, 16, 1, R::plain, true, true, true, relu, N::special, 2, 2},
      {206, 3, 1, 16, 1, R::none, true, false, false, {}, N::zeros},
  };
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

}  // namespace
}  // namespace landscapex::program::cuda

int main(int argc, char** argv) {
  const std::string orders[] = {"forward", "reverse", "random", "warps"};
  bool quick = false;
  for (int i = 1; i < argc; ++i) {
    quick |= std::string(argv[i]) == "quick";
    for (int k = 0; k < 4; ++k)
      if (orders[k] == argv[i]) emul::order = static_cast<emul::Order>(k);
  }
  using namespace landscapex::program::cuda;
  try {
    check_dispatch();
    uint64_t seed = 1;
    for (const Shape& s : shapes(quick)) check(s, seed++);
  } catch (const emul::Error& error) {
    std::printf("STOPPED: %s\n", error.what());
    return 2;
  }
  return failures ? 1 : 0;
}
