// Runs the contraction on tensor cores under emulation against plain loops in float64.
//
//   tensor_cores [forward|reverse|random|warps] [nearest|truncate] [quick]
//
// Exit status 1: a result is wrong; 2: the emulation stopped a kernel.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "contract_mma.cuh"

namespace {

using namespace landscapex::program;
using namespace landscapex::program::cuda;
namespace ptx = landscapex::cuda::ptx;

constexpr Math kModes[] = {Math::kBf16x3, Math::kTf32, Math::kBf16};
constexpr int64_t kSets = 3;  // of an AFFINE buffer
const char* name_of(Math math) {
  return math == Math::kBf16x3 ? "bf16x3" : math == Math::kTf32 ? "tf32" : "bf16";
}

int failures = 0;
void expect(bool ok, const char* what) {
  if (ok) return;
  if (++failures <= 20) std::printf("FAILED: %s\n", what);
}

// ---- conversions and fragments ------------------------------------------------------------------

void check_conversions() {
  using ptx::pack_bf16;
  using ptx::round_to_tf32;
  expect(round_to_tf32(1.0f) == 0x3f800000u, "tf32 of 1");
  expect(round_to_tf32(__uint_as_float(0x3f801000u)) == 0x3f802000u, "tf32: a tie goes up");
  expect(round_to_tf32(__uint_as_float(0xbf801000u)) == 0xbf802000u, "tf32: a tie goes down");
  expect(round_to_tf32(__uint_as_float(0x3f800fffu)) == 0x3f800000u, "tf32: below a tie");
  expect(round_to_tf32(__uint_as_float(0x3fffffffu)) == 0x40000000u, "tf32: carry");
  expect(round_to_tf32(INFINITY) == 0x7f800000u, "tf32 of infinity");
  expect(std::isnan(__uint_as_float(round_to_tf32(NAN))), "tf32 of NaN");
  expect(pack_bf16(1.0f, -2.0f) == 0xc0003f80u, "bf16: the first value goes low");
  expect(pack_bf16(__uint_as_float(0x3f808000u), __uint_as_float(0x3f818000u)) == 0x3f823f80u,
         "bf16: ties go to even");
  expect(pack_bf16(NAN, 3.4e38f) == 0x7f807fffu, "bf16 of NaN and of a value that overflows");
  for (uint64_t bits = 0; bits < 1ull << 32; bits += 65521) {  // two roundings that must agree
    const float value = __uint_as_float(static_cast<uint32_t>(bits));
    if (std::isnan(value)) continue;
    expect((pack_bf16(value, 0) & 0xffffu) == landscapex::narrow<landscapex::BFloat16>(value).bits,
           "bf16 of inputs and of weights");
  }
}

// The fragment layouts from a second published description than the one the twins were written
// from: as strides (of lane % 4, lane / 4, and the bits of the value's number) into column-major
// matrices, the form in which CUTLASS tabulates them.
struct Strides {
  int t, g, bit[3];
  int at(int lane, int value) const {
    return lane % 4 * t + lane / 4 * g + (value & 1) * bit[0] + (value >> 1 & 1) * bit[1] +
           (value >> 2 & 1) * bit[2];
  }
};

constexpr Strides kResult = {32, 1, {16, 8, 0}};

__global__ void fragment_kernel(bool tf32, const float* a, const float* b, float* d) {
  const int lane = static_cast<int>(threadIdx.x);
  const Strides of_a = tf32 ? Strides{16, 1, {8, 64, 0}} : Strides{32, 1, {16, 8, 128}};
  const Strides of_b = tf32 ? Strides{8, 1, {32, 0, 0}} : Strides{16, 1, {8, 64, 0}};
  uint32_t ra[4], rb[2];
  for (int i = 0; i < 4; ++i) {
    ra[i] = tf32 ? ptx::round_to_tf32(a[of_a.at(lane, i)])
                 : ptx::pack_bf16(a[of_a.at(lane, 2 * i)], a[of_a.at(lane, 2 * i + 1)]);
  }
  for (int i = 0; i < 2; ++i) {
    rb[i] = tf32 ? ptx::round_to_tf32(b[of_b.at(lane, i)])
                 : ptx::pack_bf16(b[of_b.at(lane, 2 * i)], b[of_b.at(lane, 2 * i + 1)]);
  }
  float sum[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  if (tf32) {
    ptx::mma_tf32(sum, ra, rb[0], rb[1]);
  } else {
    ptx::mma_bf16(sum, ra, rb[0], rb[1]);
  }
  for (int i = 0; i < 4; ++i) d[kResult.at(lane, i)] = sum[i];
}

void check_fragments() {
  for (const bool tf32 : {false, true}) {
    const int depth = tf32 ? 8 : 16;
    std::vector<float> a(16 * depth), b(8 * depth), d(16 * 8);
    for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i * 37 % 101) - 50;
    for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(i * 53 % 97) - 48;
    launch(fragment_kernel, dim3(1), dim3(32), 0, nullptr, tf32, a.data(), b.data(), d.data());
    for (int m = 0; m < 16; ++m) {
      for (int n = 0; n < 8; ++n) {
        float want = 1;  // small integers: exact
        for (int k = 0; k < depth; ++k) want += a[k * 16 + m] * b[k * 8 + n];
        expect(d[n * 16 + m] == want, tf32 ? "tf32 fragments" : "bf16 fragments");
      }
    }
  }
}

// ---- a contraction, and what it must give -------------------------------------------------------

struct Case {
  int64_t outputs, taps, groups, positions, lanes, points, tiles;
  bool shared_input, bias, scale, shift;
  int residual;  // 0: none, 1: plain, 2: AFFINE
  Activation act;
};

// Weights of all points in their packed order: blocks of outputs, in them the taps, in them the
// outputs of the block.
std::vector<float> packed(const Case& c, const std::vector<float>& w) {
  std::vector<float> out;
  const int64_t blocks = (c.outputs + 7) / 8;
  for (int64_t pg = 0; pg < c.points * c.groups; ++pg) {
    int64_t first = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t rows = (c.outputs + blocks - 1 - b) / blocks;
      for (int64_t r = 0; r < c.taps; ++r)
        for (int64_t m = first; m < first + rows; ++m)
          out.push_back(w[(pg * c.outputs + m) * c.taps + r]);
      first += rows;
    }
  }
  return out;
}

__global__ void form_kernel(Math math, PlaneLayout layout, PlanesOut out, const float* weights,
                            int64_t entries) {
  const int64_t point = blockIdx.x;
  PlanesOut here;
  for (int p = 0; p < 2; ++p)
    here.data[p] =
        static_cast<char*>(out.data[p]) + point * layout.elements() * layout.element_bytes();
  for (int64_t i = threadIdx.x; i < entries; i += blockDim.x)
    store_plane(math, here, layout.place(i), weights[point * entries + i]);
}

struct Data {
  std::vector<float> w, x, bias, scale, shift, residual;
  std::vector<int32_t> taps, at, group, to, channels;
  std::vector<double> coordinates;
  int64_t elements, residual_elements;
};

Data make_data(const Case& c) {
  std::mt19937 generator(static_cast<unsigned>(c.outputs * 31 + c.taps * 7 + c.positions));
  std::normal_distribution<float> normal;
  const auto draw = [&](int64_t size) {
    std::vector<float> v(size);
    for (float& e : v) e = normal(generator);
    return v;
  };
  const auto shuffled = [&](int64_t size, int64_t step) {
    std::vector<int32_t> v(size);
    for (int64_t i = 0; i < size; ++i) v[i] = static_cast<int32_t>(i * step);
    std::shuffle(v.begin(), v.end(), generator);
    return v;
  };
  Data d;
  d.taps = shuffled(c.taps, 2);
  d.at = shuffled(c.positions, 3);
  d.group = shuffled(c.groups, 5);
  d.to = shuffled(c.positions, 1);
  d.channels = shuffled(c.groups * c.outputs, c.positions);
  d.elements = 2 * c.taps + 3 * c.positions + 5 * c.groups - 9;
  d.residual_elements = c.groups * c.outputs * c.positions;
  const int64_t inputs = c.tiles * (c.shared_input ? 1 : c.points);
  d.x = draw(inputs * d.elements * c.lanes);
  d.w = draw(c.points * c.groups * c.outputs * c.taps);
  d.bias = draw(c.points * c.groups * c.outputs);
  d.scale = draw(c.points * c.groups * c.outputs);
  d.shift = draw(c.groups * c.outputs);  // the same for all points
  d.residual = draw(c.tiles * kSets * c.points * d.residual_elements * c.lanes);
  for (int64_t i = 0; i < c.points * (kSets - 1); ++i) d.coordinates.push_back(normal(generator));
  return d;
}

// Fills what no one may read with NaN.
struct Planes {
  std::vector<uint32_t> words[2];
  PlaneLayout layout;
  PlanesRef ref;
  Planes(Math math, const Case& c, const std::vector<float>& w)
      : layout(plane_layout(math, c.groups, c.outputs, c.taps)) {
    const std::vector<float> weights = packed(c, w);
    for (int p = 0; p < layout.planes; ++p) {
      words[p].assign(c.points * layout.elements() * layout.element_bytes() / 4, 0xffffffffu);
      ref.data[p] = words[p].data();
    }
    ref.per_point = layout.elements();
    const int64_t entries = c.groups * c.outputs * c.taps;
    launch(form_kernel, dim3(static_cast<unsigned>(c.points)), dim3(64), 0, nullptr, math, layout,
           PlanesOut{{words[0].data(), words[1].data()}}, weights.data(), entries);
  }
};

std::vector<float> contract(Math math, const Case& c, const Data& d) {
  const Planes planes(math, c, d.w);
  const int64_t channels = c.groups * c.outputs, size = channels * c.positions * c.lanes;
  std::vector<float> out(c.tiles * c.points * size, std::numeric_limits<float>::quiet_NaN());
  ContractArgs args = {};
  const int64_t x_size = d.elements * c.lanes;
  args.input = {const_cast<float*>(d.x.data()), (c.shared_input ? 1 : c.points) * x_size,
                c.shared_input ? 0 : x_size, 0};
  args.out = {out.data(), c.points * size, size, 0};
  if (c.residual == 1)
    args.residual = {const_cast<float*>(d.residual.data()), kSets * c.points * size, size, 0};
  if (c.residual == 2)
    args.residual = {const_cast<float*>(d.residual.data()), kSets * c.points * size, 0, size};
  if (c.bias) args.bias = {d.bias.data(), channels};
  if (c.scale) args.scale = {d.scale.data(), channels};
  if (c.shift) args.shift = {d.shift.data(), 0};
  args.planes = planes.ref;
  args.num_taps = c.taps;
  args.groups = c.groups;
  args.outputs = c.outputs;
  args.positions = c.positions;
  args.taps = d.taps.data();
  args.at = d.at.data();
  args.group = d.group.data();
  args.to = d.to.data();
  args.channels = d.channels.data();
  if (c.residual != 0) {
    args.residual_at = d.to.data();
    args.residual_channels = d.channels.data();
  }
  args.act.name = c.act;
  args.math = math;
  Cells cells = {};
  cells.lanes = c.lanes;
  cells.tiles = c.tiles;
  cells.points = c.points;
  cells.num_sets = kSets;
  cells.coordinates = d.coordinates.data();
  expect(run_contract_mma(args, cells, nullptr) == cudaSuccess, "launch");
  return out;
}

// Calls f(where in the output, value in float64, sum of the magnitudes of its terms).
template <typename F>
void for_each_result(const Case& c, const Data& d, F f) {
  const int64_t channels = c.groups * c.outputs, size = channels * c.positions * c.lanes;
  std::vector<double> sums(c.lanes), magnitudes(c.lanes);
  for (int64_t cell = 0; cell < c.tiles * c.points; ++cell) {
    const int64_t tile = cell / c.points, point = cell % c.points;
    const float* x = d.x.data() + (c.shared_input ? tile : cell) * d.elements * c.lanes;
    for (int64_t channel = 0; channel < channels; ++channel) {
      const float* w = d.w.data() + (point * channels + channel) * c.taps;
      for (int64_t p = 0; p < c.positions; ++p) {
        const double bias = c.bias ? d.bias[point * channels + channel] : 0;
        const double scale = c.scale ? d.scale[point * channels + channel] : 1;
        const double shift = c.shift ? d.shift[channel] : 0;
        const int64_t element = d.to[p] + d.channels[channel];
        sums.assign(c.lanes, bias);
        magnitudes.assign(c.lanes, std::fabs(bias));
        for (int64_t r = 0; r < c.taps; ++r) {
          const float* from = x + (d.at[p] + d.group[channel / c.outputs] + d.taps[r]) * c.lanes;
          for (int64_t l = 0; l < c.lanes; ++l) {
            const double product = double{w[r]} * from[l];
            sums[l] += product;
            magnitudes[l] += std::fabs(product);
          }
        }
        for (int64_t l = 0; l < c.lanes; ++l) {
          const int64_t at = element * c.lanes + l;
          double v = sums[l] * scale + shift;
          double magnitude = magnitudes[l] * std::fabs(scale) + std::fabs(shift);
          const float* residual = d.residual.data() + tile * kSets * c.points * size + at;
          for (int64_t k = 0; c.residual != 0 && k < (c.residual == 1 ? 1 : kSets); ++k) {
            const double factor = k == 0 ? 1 : d.coordinates[point * (kSets - 1) + k - 1];
            const double part = factor * residual[c.residual == 1 ? point * size : k * size];
            v += part;
            magnitude += std::fabs(part);
          }
          if (c.act == Activation::relu) v = v < 0 ? 0 : v;
          if (c.act == Activation::tanh) v = std::tanh(v);
          f(cell * size + at, v, magnitude);
        }
      }
    }
  }
}

// Largest error of one result, as a fraction of the sum of the magnitudes of its terms. Rounding an
// operand costs at most 2^-17 (two bf16), 2^-11 (tf32), 2^-8 (bf16); there are two operands, bf16x3
// also leaves out a product of at most 2^-16, and 2e-6 is left for summing in fp32.
double tolerance(Math math) {
  return (math == Math::kBf16x3 ? 0x1p-15 : math == Math::kTf32 ? 0x1p-10 : 0x1p-7) + 2e-6;
}

void check_case(Math math, const Case& c) {
  const Data d = make_data(c);
  const std::vector<float> out = contract(math, c, d);
  double difference = 0, squares = 0, bound = 0;
  for_each_result(c, d, [&](int64_t i, double want, double magnitude) {
    const double error = std::fabs(out[i] - want);
    if (!(error <= magnitude)) bound = std::numeric_limits<double>::infinity();
    bound = std::max(bound, error / magnitude);
    difference += error * error;
    squares += want * want;
  });
  uint64_t hash = 1469598103934665603u;  // the same in every thread order
  for (const float v : out) hash = (hash ^ __float_as_uint(v)) * 1099511628211u;
  std::printf("%-6s M=%-3d R=%-3d G=%d P=%-2d lanes=%-3d relative %.1e bound %.1e %016llx\n",
              name_of(math), int(c.outputs), int(c.taps), int(c.groups), int(c.positions),
              int(c.lanes), std::sqrt(difference / squares), bound,
              static_cast<unsigned long long>(hash));
  expect(bound <= tolerance(math), "a result is outside its error bound");
}

// The bits of a sample at a point: the same in a smaller launch, and in tiles of fewer lanes.
void check_same_bits(Math math) {
  Case whole = {40, 50, 1, 6, 48, 2, 2, false, true, false, false, 1, Activation::relu};
  const Data d = make_data(whole);
  const std::vector<float> all = contract(math, whole, d);
  Case one = whole;
  one.points = one.tiles = 1;
  one.lanes = 16;
  const int64_t elements = whole.outputs * whole.positions, entries = whole.outputs * whole.taps;
  for (int64_t cell = 0; cell < 4; ++cell) {
    const int64_t tile = cell / 2, point = cell % 2;
    Data part = d;
    part.w.assign(d.w.begin() + point * entries, d.w.begin() + (point + 1) * entries);
    part.bias.erase(part.bias.begin(), part.bias.begin() + point * whole.outputs);
    for (int64_t first = 0; first < whole.lanes; first += one.lanes) {
      const auto lanes_of = [&](const std::vector<float>& from, int64_t row) {
        const auto begin = from.begin() + row * whole.lanes + first;
        return std::vector<float>(begin, begin + one.lanes);
      };
      part.x.clear();
      part.residual.clear();
      for (int64_t e = 0; e < d.elements; ++e)
        for (const float v : lanes_of(d.x, cell * d.elements + e)) part.x.push_back(v);
      for (int64_t e = 0; e < elements; ++e)
        for (const float v : lanes_of(d.residual, (tile * kSets * 2 + point) * elements + e))
          part.residual.push_back(v);
      const std::vector<float> some = contract(math, one, part);
      for (int64_t e = 0; e < elements; ++e) {
        const std::vector<float> want = lanes_of(all, cell * elements + e);
        expect(std::memcmp(want.data(), some.data() + e * one.lanes, one.lanes * 4) == 0,
               "the bits of a sample depend on the launch");
      }
    }
  }
}

// An infinity, a NaN, and a number that rounds to infinity reach the results that read them, and no
// others. There bf16x3 has NaN, the others what fp32 would have. 27 taps: the last slice goes on
// beyond the last one.
void check_values_that_are_no_numbers(Math math, Activation act) {
  const Case c = {20, 27, 1, 3, 32, 1, 1, false, true, false, false, 0, act};
  const Data clean = make_data(c);
  const std::vector<float> before = contract(math, c, clean);
  const int64_t position = 1, lane = 21;
  for (const float hot : {INFINITY, -INFINITY, NAN, std::numeric_limits<float>::max()}) {
    for (const int64_t tap : {int64_t{0}, c.taps - 1}) {
      Data d = clean;
      const int64_t element = d.at[position] + d.group[0] + d.taps[tap];
      d.x[element * c.lanes + lane] = hot;
      const std::vector<float> out = contract(math, c, d);
      for (int64_t m = 0; m < c.outputs; ++m) {
        for (int64_t p = 0; p < c.positions; ++p) {
          double sum = 0;  // of the one product that is no number, if it is read
          for (int64_t r = 0; r < c.taps; ++r)
            if (d.at[p] + d.group[0] + d.taps[r] == element)
              sum = double{hot} * d.w[m * c.taps + r];
          for (int64_t l = 0; l < c.lanes; ++l) {
            const int64_t i = (d.to[p] + d.channels[m]) * c.lanes + l;
            if (l != lane || sum == 0) {
              expect(out[i] == before[i], "what does not read it stays the same");
            } else if (math == Math::kBf16x3 || std::isnan(hot)) {
              expect(std::isnan(out[i]), "NaN");
            } else {
              const float low = act == Activation::relu ? 0.0f : -INFINITY;
              expect(out[i] == (sum > 0 ? INFINITY : low), "infinity");
            }
          }
        }
      }
    }
  }
}

void check_infinite_weight(Math math) {
  const Case c = {20, 27, 1, 3, 32, 1, 1, false, true, false, false, 0, Activation::none};
  Data d = make_data(c);
  d.w[7 * c.taps + 26] = INFINITY;
  const std::vector<float> out = contract(math, c, d);
  for (size_t i = 0; i < out.size(); ++i) {
    const bool hot = static_cast<int64_t>(i) / c.lanes / c.positions == d.channels[7] / c.positions;
    expect(std::isfinite(out[i]) != hot, "an infinite weight spoils its output, and no other");
  }
}

std::vector<Case> all_cases(bool quick) {
  constexpr auto none = Activation::none, relu = Activation::relu, tanh = Activation::tanh;
  std::vector<Case> cases = {
      {16, 27, 1, 9, 32, 2, 2, true, true, false, false, 0, relu},
      {17, 77, 2, 5, 48, 2, 1, false, true, true, true, 2, tanh},
      {70, 150, 1, 2, 16, 1, 1, false, true, false, false, 1, none},
  };
  if (quick) return cases;
  const std::vector<Case> more = {
      {8, 8, 1, 1, 16, 1, 1, true, false, false, false, 0, none},
      {10, 300, 1, 1, 128, 2, 1, false, true, false, false, 0, none},
      {33, 33, 1, 50, 16, 1, 1, true, true, false, false, 0, relu},
      {32, 288, 1, 4, 64, 1, 2, false, true, false, false, 1, relu},
      {64, 144, 1, 5, 64, 2, 1, false, true, false, false, 1, relu},
      {64, 600, 1, 1, 128, 1, 1, false, true, false, false, 0, tanh},
      {130, 40, 1, 3, 64, 1, 1, false, true, true, false, 2, none},
      {129, 129, 3, 2, 16, 2, 1, true, false, false, true, 1, relu},
      {9, 15, 7, 3, 48, 1, 2, false, true, false, false, 0, relu},
  };
  cases.insert(cases.end(), more.begin(), more.end());
  for (int flags = 0; flags < 8; ++flags)
    for (int residual = 0; residual < 3; ++residual)
      for (const Activation act : {none, relu, tanh})
        cases.push_back({11, 19, 1, 3, 16, 2, 1, false, (flags & 1) != 0, (flags & 2) != 0,
                         (flags & 4) != 0, residual, act});
  return cases;
}

}  // namespace

int main(int argc, char** argv) {
  bool quick = false;
  for (int i = 1; i < argc; ++i) {
    if (!std::strcmp(argv[i], "reverse")) emul::order = emul::Order::reverse;
    if (!std::strcmp(argv[i], "random")) emul::order = emul::Order::random;
    if (!std::strcmp(argv[i], "warps")) emul::order = emul::Order::warps;
    if (!std::strcmp(argv[i], "truncate")) emul::accumulate_model = emul::Accumulate::truncate;
    if (!std::strcmp(argv[i], "quick")) quick = true;
  }
  check_conversions();
  try {
    check_fragments();
    for (const Math math : kModes) {
      for (const Case& c : all_cases(quick)) check_case(math, c);
      check_same_bits(math);
      check_values_that_are_no_numbers(math, Activation::none);
      check_values_that_are_no_numbers(math, Activation::relu);
      check_infinite_weight(math);
    }
    expect(emul::ctx->bank_conflicts == 0, "ldmatrix without bank conflicts");
  } catch (const emul::Error& error) {
    std::printf("STOPPED: %s\n", error.what());
    return 2;
  }
  std::printf(failures == 0 ? "ok\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
