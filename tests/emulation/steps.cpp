// Runs steps that have barriers under emulation, as kernels of their own and in the kernel that
// does whole cells: sums must have the same bits. For the sanitizers above all; the numbers are
// compared with float64 from Python.
//
//   steps [forward|reverse|random|warps]
//
// Exit status 1: sums differ; 2: the emulation stopped a kernel.
#include <algorithm>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

// not linked: one compilation
#include "cells.cu"
#include "embedding.cu"
#include "loss.cu"
#include "map.cu"
#include "matmul.cu"
#include "network.cu"
#include "normalize.cu"
#include "reduce.cu"
#include "softmax.cu"

namespace landscapex::program::cuda {
namespace {

constexpr int kLanes = 16, kTiles = 2, kPoints = 2, kCells = kTiles * kPoints;
constexpr int kSide = 20, kElements = kSide * kSide, kBuffers = 6, kTerms = 4;
constexpr int64_t kBuffer = int64_t{kElements} * kLanes, kArena = kBuffers * kBuffer;

using Floats = std::vector<float>;
using Table = std::vector<int32_t>;

struct Data {
  std::mt19937_64 random{5};
  Floats input = Floats(kTiles * kBuffer), arena = Floats(kCells * kArena), weights;
  std::vector<int64_t> valid = {kLanes, 5};
  Table labels = Table(kTiles * kSide * kLanes), all = Table(kElements), rows, offsets;

  Data() {
    std::normal_distribution<float> normal;
    for (float& x : input) x = normal(random);
    for (int i = 0; i < kPoints * kElements; ++i) weights.push_back(normal(random));
    for (int32_t& label : labels) label = static_cast<int32_t>(random() % kSide);
    for (int i = 0; i < kElements; ++i) all[i] = i;
    for (int i = 0; i < kSide; ++i) rows.push_back(kSide - 1 - i);
    std::shuffle(all.begin(), all.end(), random);
    for (int i = 0; i <= kElements; i += 4) offsets.push_back(i);
  }
  Ref buffer(int id) { return {arena.data() + id * kBuffer, kPoints * kArena, kArena, 0}; }
};

// Neighbouring rows of one table: all elements, shuffled.
template <typename Args>
Args rows_of(Data* data, Ref from, Ref to, int64_t count) {
  Args args = {};
  args.input = from;
  args.out = to;
  args.groups = kElements / count;
  args.count = count;
  args.sources = args.to = data->all.data();
  return args;
}

MapArgs map_of(Data* data, Ref to) {
  MapArgs args = {};
  args.op = MapOp::mul;
  args.operands[0].kind = Source::buffer;
  args.operands[0].buffer = {data->input.data(), kBuffer, 0, 0};
  args.operands[0].at = data->all.data();
  args.operands[1].kind = Source::weight;
  args.operands[1].weight = {data->weights.data(), kElements};
  args.operands[1].at = data->all.data();
  args.out = to;
  args.n = kElements;
  args.to = data->all.data();
  args.act = {Activation::tanh, 0, 0};
  return args;
}

MatMulArgs matmul_of(Data* data, Ref x, Ref y, Ref to) {
  const int32_t* all = data->all.data();
  return {x, y, to, 1, kSide, kSide, kSide, all, all, all, 0.5f};
}

ReduceArgs reduce_of(Data* data, Ref from, Ref to) {
  ReduceArgs args = {};
  args.op = ReduceOp::max;
  args.input = from;
  args.out = to;
  args.n = kElements / 4;
  args.offsets = data->offsets.data();
  args.sources = args.to = data->all.data();
  args.scale = 1;
  return args;
}

CrossEntropyArgs cross_entropy_of(Data* data, Ref scores, int term) {
  CrossEntropyArgs args = {};
  args.input = scores;
  // labels lie as floats do
  args.target = {reinterpret_cast<float*>(data->labels.data()), kSide * kLanes, 0, 0};
  args.term = term;
  args.positions = args.classes = kSide;
  args.sources = data->all.data();
  args.target_at = data->rows.data();
  args.ignore_index = 3;
  return args;
}

ElementLossArgs loss_of(Data* data, Ref from, int64_t n, int term) {
  ElementLossArgs args = {};
  args.kind = ElementLossKind::identity;
  args.input = from;
  args.term = term;
  args.n = n;
  args.at = data->all.data();
  return args;
}

// Every step reads what other threads have written; `at(id)` says where buffers lie.
template <typename At>
std::vector<StepArgs> steps_of(Data* data, At at) {
  return {map_of(data, at(0)),
          rows_of<NormalizeArgs>(data, at(0), at(1), kSide),
          rows_of<SoftmaxArgs>(data, at(1), at(2), kSide),
          matmul_of(data, at(2), at(0), at(3)),
          reduce_of(data, at(3), at(4)),
          cross_entropy_of(data, at(1), 0),
          loss_of(data, at(3), kElements, 1),
          loss_of(data, at(4), kElements / 4, 2),
          loss_of(data, at(5), kSide, 3)};
}

using Sums = std::vector<double>;
Cells cells_of(const Data& data, Sums* sums) {
  return {kLanes, kTiles, kPoints, 1, nullptr, data.valid.data(), sums->data(), kTerms};
}

void run_each(const std::vector<StepArgs>& steps, const Cells& cells) {
  for (const StepArgs& step : steps)
    std::visit([&](const auto& args) { run(args, cells, nullptr); }, step);
}

int main_of(const std::string& order) {
  const std::string names[] = {"forward", "reverse", "random", "warps"};
  emul::order = static_cast<emul::Order>(std::find(names, names + 4, order) - names);
  Data data;
  const auto outside = [&](int id) { return data.buffer(id); };
  const auto inside = [&](int id) { return in_block(data.buffer(id), id * kBuffer); };
  // no step writes to the last buffer
  const float fill = 2;
  std::fill(data.arena.begin(), data.arena.end(), fill);
  Sums each(kCells * kTerms), whole(kCells * kTerms), of_long_rows(kCells * kTerms);
  run_each(steps_of(&data, outside), cells_of(data, &each));
  const std::vector<Filled> filled = {{int32_t{5 * kBuffer}, int32_t{kBuffer}, fill}};
  run_network(steps_of(&data, inside), filled, kArena, cells_of(data, &whole), nullptr);
  run_each(
      {map_of(&data, outside(0)), rows_of<NormalizeArgs>(&data, outside(0), outside(1), kElements),
       rows_of<SoftmaxArgs>(&data, outside(1), outside(2), kElements / 2),
       loss_of(&data, outside(2), kElements / 8, 0)},
      cells_of(data, &of_long_rows));
  for (size_t i = 0; i < each.size(); ++i)
    std::printf("sums %a %a %a\n", each[i], whole[i], of_long_rows[i]);
  return each == whole ? 0 : 1;
}

}  // namespace

// Contractions are tested elsewhere.
cudaError_t run(const ContractArgs&, const Cells&, cudaStream_t) { return 1; }

}  // namespace landscapex::program::cuda

int main(int argc, char** argv) {
  try {
    return landscapex::program::cuda::main_of(argc > 1 ? argv[1] : "forward");
  } catch (const emul::Error& error) {
    std::printf("stopped: %s\n", error.what());
    return 2;
  }
}
