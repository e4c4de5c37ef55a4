#include "device_args.h"

#include <stdexcept>

namespace landscapex::program::cuda {
namespace {

constexpr size_t kAlign = 16;  // bytes

int64_t count(const std::vector<Run>& runs) {
  int64_t total = 0;
  for (const Run& run : runs) total += run.count;
  return total;
}

int64_t count(const std::vector<int32_t>& table) { return static_cast<int64_t>(table.size()); }

// Tables are asked for in one order, that of the fields below.
class Binder {
 public:
  Binder(const Places& places, Tables* tables) : places_(places), tables_(*tables) {}

  size_t step = 0;  // the one that comes

  StepArgs operator()(const Contract& s) {
    ContractArgs a = {};
    a.input = buffer(s.input);
    a.out = buffer(s.out);
    a.residual = buffer(s.residual);
    a.weight = weight(s.weight);
    a.bias = weight(s.bias);
    a.scale = weight(s.scale);
    a.shift = weight(s.shift);
    a.num_taps = s.num_taps;
    a.groups = s.groups;
    a.outputs = s.outputs;
    a.positions = count(s.runs);
    a.taps = tables_.of(s.taps);
    a.at = tables_.of(s.runs, 0);
    a.group = tables_.of(s.group);
    a.to = tables_.of(s.runs, 1);
    a.channels = tables_.of(s.channels);
    if (s.residual >= 0) {
      a.residual_at = tables_.of(s.runs, 2);
      a.residual_channels = tables_.of(s.residual_channels);
    }
    a.act = s.act;
    a.math = Math::kFp32;
    if (!places_.planes.empty() && places_.planes[step].data[0] != nullptr) {
      a.planes = places_.planes[step];
      a.math = places_.math;
    }
    return a;
  }

  StepArgs operator()(const Winograd&) {
    throw std::invalid_argument("a device has no Winograd step.");
  }

  StepArgs operator()(const Map& s) {
    MapArgs a = {};
    a.op = s.op;
    a.out = buffer(s.out);
    a.n = count(s.runs);
    a.to = tables_.of(s.runs, 0);
    a.act = s.act;
    for (int k = 0; k < 3; ++k) {
      const Operand& from = s.operands[k];
      OperandRef& to = a.operands[k];
      to.kind = from.kind;
      to.value = from.value;
      if (from.kind == Source::number) continue;
      if (from.kind == Source::buffer) to.buffer = buffer(from.id);
      if (from.kind == Source::weight) to.weight = weight(from.id);
      to.at = tables_.of(s.runs, k + 1);
    }
    return a;
  }

  StepArgs operator()(const Reduce& s) {
    ReduceArgs a = {};
    a.op = s.op;
    a.input = buffer(s.input);
    a.out = buffer(s.out);
    a.n = count(s.to);
    a.offsets = tables_.of(s.offsets);
    a.sources = tables_.of(s.sources);
    a.to = tables_.of(s.to);
    a.coefficients = tables_.of(s.coefficients);
    a.scale = s.scale;
    a.act = s.act;
    return a;
  }

  StepArgs operator()(const Normalize& s) {
    NormalizeArgs a = {};
    a.input = buffer(s.input);
    a.out = buffer(s.out);
    a.gamma = weight(s.gamma);
    a.beta = weight(s.beta);
    a.groups = s.groups;
    a.count = s.count;
    a.sources = tables_.of(s.sources);
    a.to = tables_.of(s.to);
    a.gamma_at = tables_.of(s.gamma_at);
    a.beta_at = tables_.of(s.beta_at);
    a.eps = s.eps;
    a.rms = s.rms;
    a.act = s.act;
    return a;
  }

  StepArgs operator()(const Softmax& s) {
    SoftmaxArgs a = {};
    a.input = buffer(s.input);
    a.out = buffer(s.out);
    a.groups = s.groups;
    a.count = s.count;
    a.sources = tables_.of(s.sources);
    a.to = tables_.of(s.to);
    a.log = s.log;
    a.safe = s.safe;
    return a;
  }

  StepArgs operator()(const MatMul& s) {
    MatMulArgs a = {};
    a.x = buffer(s.x);
    a.y = buffer(s.y);
    a.out = buffer(s.out);
    a.batch = s.batch;
    a.rows = s.rows;
    a.inner = s.inner;
    a.columns = s.columns;
    a.x_at = tables_.of(s.x_at);
    a.y_at = tables_.of(s.y_at);
    a.to = tables_.of(s.to);
    a.scale = s.scale;
    return a;
  }

  StepArgs operator()(const LstmCell& s) {
    LstmCellArgs a = {};
    a.gates = buffer(s.gates);
    a.cell = buffer(s.cell);
    a.cell_out = buffer(s.cell_out);
    a.out = buffer(s.out);
    a.width = s.width;
    a.gates_at = tables_.of(s.gates_at);
    a.cell_at = tables_.of(s.cell_at);
    a.cell_to = tables_.of(s.cell_to);
    a.to = tables_.of(s.to);
    return a;
  }

  StepArgs operator()(const GruCell& s) {
    GruCellArgs a = {};
    a.x = buffer(s.x);
    a.h = buffer(s.h);
    a.hidden = buffer(s.hidden);
    a.out = buffer(s.out);
    a.width = s.width;
    a.x_at = tables_.of(s.x_at);
    a.h_at = tables_.of(s.h_at);
    a.hidden_at = tables_.of(s.hidden_at);
    a.to = tables_.of(s.to);
    return a;
  }

  StepArgs operator()(const Embedding& s) {
    EmbeddingArgs a = {};
    a.index = buffer(s.index);
    a.out = buffer(s.out);
    a.weight = weight(s.weight);
    a.n = count(s.at);
    a.width = s.width;
    a.at = tables_.of(s.at);
    a.to = tables_.of(s.to);
    return a;
  }

  StepArgs operator()(const CrossEntropy& s) {
    CrossEntropyArgs a = {};
    a.input = buffer(s.input);
    a.target = buffer(s.target);
    a.term = s.term;
    a.positions = s.positions;
    a.classes = s.classes;
    a.sources = tables_.of(s.sources);
    a.target_at = tables_.of(s.target_at);
    a.class_weight = tables_.of(s.class_weight);
    a.ignore_index = s.ignore_index;
    a.smoothing = s.smoothing;
    a.log_input = s.log_input;
    a.probabilities = s.probabilities;
    return a;
  }

  StepArgs operator()(const ElementLoss& s) {
    ElementLossArgs a = {};
    a.kind = s.kind;
    a.input = buffer(s.input);
    a.target = buffer(s.target);
    a.term = s.term;
    a.n = count(s.at);
    a.at = tables_.of(s.at);
    a.target_at = tables_.of(s.target_at);
    a.a = s.a;
    a.weight = tables_.of(s.weight);
    return a;
  }

  StepArgs operator()(const Hits& s) {
    HitsArgs a = {};
    a.threshold_decision = s.threshold_decision;
    a.input = buffer(s.input);
    a.target = buffer(s.target);
    a.term = s.term;
    a.target_is_index = s.target_is_index;
    a.positions = s.positions;
    a.classes = s.classes;
    a.top = s.top;
    a.sources = tables_.of(s.sources);
    a.target_at = tables_.of(s.target_at);
    a.ignore_index = s.ignore_index;
    a.threshold = s.threshold;
    a.target_threshold = s.target_threshold;
    return a;
  }

 private:
  Ref buffer(int32_t id) const {
    return id < 0 ? Ref{} : places_.buffers.at(static_cast<size_t>(id));
  }
  WeightRef weight(int32_t id) const {
    return id < 0 ? WeightRef{} : places_.weights.at(static_cast<size_t>(id));
  }

  const Places& places_;
  Tables& tables_;
};

}  // namespace

const int32_t* Tables::of(const std::vector<Run>& runs, int table) {
  std::vector<int32_t> entries;
  if (image_ != nullptr)
    for (const Run& run : runs)
      for (int32_t i = 0; i < run.count; ++i)
        entries.push_back(run.begin[table] + i * run.step[table]);
  return static_cast<const int32_t*>(
      next(entries.data(), static_cast<size_t>(count(runs)) * sizeof(int32_t)));
}

const void* Tables::next(const void* values, size_t bytes) {
  if (bytes == 0) return nullptr;
  if (image_ != nullptr) {
    const char* from = static_cast<const char*>(values);
    image_->insert(image_->end(), from, from + bytes);
    image_->resize((image_->size() + kAlign - 1) / kAlign * kAlign);
    return nullptr;
  }
  const void* found = device_ + at_;
  at_ += (bytes + kAlign - 1) / kAlign * kAlign;
  return found;
}

std::vector<StepArgs> arguments(const std::vector<Step>& steps, const Places& places,
                                Tables tables) {
  std::vector<StepArgs> all;
  Binder binder(places, &tables);
  for (const Step& step : steps) {
    all.push_back(std::visit(binder, step));
    ++binder.step;
  }
  return all;
}

}  // namespace landscapex::program::cuda
