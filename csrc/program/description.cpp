// From the dataclasses of landscapex/engine/steps.py to what the engines take.
#include "description.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <utility>

namespace py = pybind11;

namespace landscapex::program {
namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Ints = py::array_t<int32_t, py::array::c_style>;

std::vector<int32_t> table(const py::handle& owner, const char* name) {
  const Ints array = owner.attr(name).cast<Ints>();
  return {array.data(), array.data() + array.size()};
}

std::vector<float> floats(const py::handle& owner, const char* name) {
  const py::object value = owner.attr(name);
  if (value.is_none()) return {};
  const Floats array = value.cast<Floats>();
  return {array.data(), array.data() + array.size()};
}

template <typename T>
T field(const py::handle& owner, const char* name) {
  return owner.attr(name).cast<T>();
}

// The position of a name in the list that landscapex.engine.steps holds.
template <typename Enum>
Enum named(const char* list, const std::string& name) {
  const py::object names = py::module_::import("landscapex.engine.steps").attr(list);
  return static_cast<Enum>(names.attr("index")(name).cast<int32_t>());
}

Act act_of(const py::handle& step) {
  const py::object a = step.attr("activation");
  return {named<Activation>("ACTIVATIONS", field<std::string>(a, "name")), field<float>(a, "a"),
          field<float>(a, "b")};
}

int64_t extent(const py::handle& owner, const char* name, int axis) {
  return owner.attr(name).attr("shape").cast<py::tuple>()[axis].cast<int64_t>();
}

Contract contract(const py::handle& s) {
  Contract c = {};
  c.input = field<int32_t>(s, "input");
  c.out = field<int32_t>(s, "out");
  c.weight = field<int32_t>(s, "weight");
  c.bias = field<int32_t>(s, "bias");
  c.scale = field<int32_t>(s, "scale");
  c.shift = field<int32_t>(s, "shift");
  c.residual = field<int32_t>(s, "residual");
  c.taps = table(s, "taps");
  c.group = table(s, "group");
  c.channels = table(s, "channels");
  c.residual_channels = table(s, "residual_channels");
  c.num_taps = static_cast<int64_t>(c.taps.size());
  c.groups = extent(s, "channels", 0);
  c.outputs = extent(s, "channels", 1);
  const std::vector<int32_t> at = table(s, "at"), to = table(s, "to");
  const std::vector<int32_t> residual_at = table(s, "residual_at");
  std::vector<const int32_t*> tables = {at.data(), to.data()};
  if (c.residual >= 0) tables.push_back(residual_at.data());
  c.runs = compress(tables, static_cast<int64_t>(at.size()));
  c.act = act_of(s);
  return c;
}

Winograd winograd(const py::handle& s) {
  Winograd w = {};
  w.input = field<int32_t>(s, "input");
  w.out = field<int32_t>(s, "out");
  w.weight = field<int32_t>(s, "weight");
  w.bias = field<int32_t>(s, "bias");
  w.scale = field<int32_t>(s, "scale");
  w.shift = field<int32_t>(s, "shift");
  w.residual = field<int32_t>(s, "residual");
  w.input_at = field<int64_t>(s, "input_at");
  w.input_channel = field<int64_t>(s, "input_channel");
  w.input_row = field<int64_t>(s, "input_row");
  w.inputs = field<int64_t>(s, "inputs");
  w.out_at = field<int64_t>(s, "out_at");
  w.out_channel = field<int64_t>(s, "out_channel");
  w.out_row = field<int64_t>(s, "out_row");
  w.outputs = field<int64_t>(s, "outputs");
  w.residual_at = field<int64_t>(s, "residual_at");
  w.residual_channel = field<int64_t>(s, "residual_channel");
  w.residual_row = field<int64_t>(s, "residual_row");
  w.height = field<int64_t>(s, "height");
  w.width = field<int64_t>(s, "width");
  w.act = act_of(s);
  return w;
}

Map map(const py::handle& s) {
  Map m = {};
  m.op = named<MapOp>("MAP_OPS", field<std::string>(s, "op"));
  m.out = field<int32_t>(s, "out");
  m.act = act_of(s);
  const std::vector<int32_t> to = table(s, "to");
  const std::vector<int32_t> zeros(to.size(), 0);
  std::vector<std::vector<int32_t>> kept;
  std::vector<const int32_t*> tables = {to.data()};
  const auto operands = field<std::vector<py::object>>(s, "operands");
  kept.reserve(operands.size());
  for (size_t i = 0; i < operands.size(); ++i) {
    const auto kind = field<std::string>(operands[i], "kind");
    m.operands[i].id = field<int32_t>(operands[i], "id");
    m.operands[i].value = field<float>(operands[i], "value");
    m.operands[i].kind = kind == "buffer"   ? Source::buffer
                         : kind == "weight" ? Source::weight
                                            : Source::number;
    if (m.operands[i].kind == Source::number) {
      tables.push_back(zeros.data());
    } else {
      kept.push_back(table(operands[i], "at"));
      tables.push_back(kept.back().data());
    }
  }
  m.runs = compress(tables, static_cast<int64_t>(to.size()));
  return m;
}

Reduce reduce(const py::handle& s) {
  const auto op = field<std::string>(s, "op");
  return {op == "sum"   ? ReduceOp::sum
          : op == "max" ? ReduceOp::max
          : op == "min" ? ReduceOp::min
                        : ReduceOp::prod,
          field<int32_t>(s, "input"),
          field<int32_t>(s, "out"),
          table(s, "offsets"),
          table(s, "sources"),
          table(s, "to"),
          floats(s, "coefficients"),
          field<float>(s, "scale"),
          act_of(s)};
}

Normalize normalize(const py::handle& s) {
  Normalize n = {};
  n.input = field<int32_t>(s, "input");
  n.out = field<int32_t>(s, "out");
  n.gamma = field<int32_t>(s, "gamma");
  n.beta = field<int32_t>(s, "beta");
  n.groups = extent(s, "sources", 0);
  n.count = extent(s, "sources", 1);
  n.sources = table(s, "sources");
  n.to = table(s, "to");
  n.gamma_at = table(s, "gamma_at");
  n.beta_at = table(s, "beta_at");
  n.eps = field<float>(s, "eps");
  n.rms = field<bool>(s, "rms");
  n.act = act_of(s);
  return n;
}

Softmax softmax(const py::handle& s) {
  return {field<int32_t>(s, "input"), field<int32_t>(s, "out"), extent(s, "sources", 0),
          extent(s, "sources", 1),    table(s, "sources"),      table(s, "to"),
          field<bool>(s, "log"),      field<bool>(s, "safe")};
}

MatMul matmul(const py::handle& s) {
  MatMul m = {};
  m.x = field<int32_t>(s, "x");
  m.y = field<int32_t>(s, "y");
  m.out = field<int32_t>(s, "out");
  m.batch = extent(s, "x_at", 0);
  m.rows = extent(s, "x_at", 1);
  m.inner = extent(s, "x_at", 2);
  m.columns = extent(s, "y_at", 2);
  m.x_at = table(s, "x_at");
  m.y_at = table(s, "y_at");
  m.to = table(s, "to");
  m.scale = field<float>(s, "scale");
  return m;
}

LstmCell lstm_cell(const py::handle& s) {
  return {field<int32_t>(s, "gates"), field<int32_t>(s, "cell"), field<int32_t>(s, "cell_out"),
          field<int32_t>(s, "out"),   extent(s, "gates_at", 1),  table(s, "gates_at"),
          table(s, "cell_at"),        table(s, "cell_to"),       table(s, "to")};
}

GruCell gru_cell(const py::handle& s) {
  return {field<int32_t>(s, "x"),   field<int32_t>(s, "h"), field<int32_t>(s, "hidden"),
          field<int32_t>(s, "out"), extent(s, "x_at", 1),   table(s, "x_at"),
          table(s, "h_at"),         table(s, "hidden_at"),  table(s, "to")};
}

Embedding embedding(const py::handle& s) {
  return {field<int32_t>(s, "index"),
          field<int32_t>(s, "weight"),
          field<int32_t>(s, "out"),
          extent(s, "to", 1),
          table(s, "at"),
          table(s, "to")};
}

CrossEntropy cross_entropy(const py::handle& s) {
  CrossEntropy c = {};
  c.input = field<int32_t>(s, "input");
  c.target = field<int32_t>(s, "target");
  c.term = field<int32_t>(s, "term");
  c.positions = extent(s, "sources", 0);
  c.classes = extent(s, "sources", 1);
  c.sources = table(s, "sources");
  c.target_at = table(s, "target_at");
  c.class_weight = floats(s, "class_weight");
  c.ignore_index = field<int32_t>(s, "ignore_index");
  c.smoothing = field<double>(s, "smoothing");
  c.log_input = field<bool>(s, "log_input");
  c.probabilities = field<bool>(s, "probabilities");
  return c;
}

ElementLoss element_loss(const py::handle& s) {
  return {named<ElementLossKind>("ELEMENT_LOSSES", field<std::string>(s, "kind")),
          field<int32_t>(s, "input"),
          field<int32_t>(s, "target"),
          field<int32_t>(s, "term"),
          table(s, "at"),
          table(s, "target_at"),
          field<double>(s, "a"),
          floats(s, "weight")};
}

Hits hits(const py::handle& s, const std::vector<Buffer>& buffers) {
  Hits h = {};
  h.threshold_decision = field<std::string>(s, "decision") == "threshold";
  h.input = field<int32_t>(s, "input");
  h.target = field<int32_t>(s, "target");
  h.term = field<int32_t>(s, "term");
  h.target_is_index = buffers.at(static_cast<size_t>(h.target)).kind == Kind::kIndex;
  h.positions = extent(s, "sources", 0);
  h.classes = extent(s, "sources", 1);
  h.top = field<int64_t>(s, "top");
  h.sources = table(s, "sources");
  h.target_at = table(s, "target_at");
  h.ignore_index = field<int32_t>(s, "ignore_index");
  h.threshold = field<float>(s, "threshold");
  h.target_threshold = field<float>(s, "target_threshold");
  return h;
}

Step step_of(const py::handle& s, const std::vector<Buffer>& buffers) {
  const auto kind = py::type::of(s).attr("__name__").cast<std::string>();
  if (kind == "Contract") return contract(s);
  if (kind == "Winograd") return winograd(s);
  if (kind == "Map") return map(s);
  if (kind == "Reduce") return reduce(s);
  if (kind == "Normalize") return normalize(s);
  if (kind == "Softmax") return softmax(s);
  if (kind == "MatMul") return matmul(s);
  if (kind == "LstmCell") return lstm_cell(s);
  if (kind == "GruCell") return gru_cell(s);
  if (kind == "Embedding") return embedding(s);
  if (kind == "CrossEntropy") return cross_entropy(s);
  if (kind == "ElementLoss") return element_loss(s);
  if (kind == "Hits") return hits(s, buffers);
  throw py::type_error("a step of landscapex.engine.steps is expected, got " + kind);
}

}  // namespace

Description describe(const py::object& program) {
  Description d = {};
  const auto storage = field<std::vector<int32_t>>(program, "storage");
  for (const py::handle b : program.attr("buffers")) {
    const auto kind = field<std::string>(b, "kind");
    const auto id = static_cast<int32_t>(d.buffers.size());
    d.buffers.push_back(
        {field<int64_t>(b, "elements"), static_cast<Grid>(field<int32_t>(b, "grid")),
         kind == "live"    ? Kind::kLive
         : kind == "input" ? Kind::kInput
                           : Kind::kIndex,
         field<float>(b, "fill"), storage.empty() ? id : storage.at(static_cast<size_t>(id))});
  }
  for (const py::handle s : program.attr("steps")) d.steps.push_back(step_of(s, d.buffers));
  for (const py::handle o : program.attr("outputs")) {
    const auto pair = o.cast<py::tuple>();
    const auto at = pair[1].cast<Ints>();
    d.outputs.push_back({pair[0].cast<int32_t>(), {at.data(), at.data() + at.size()}});
  }
  d.num_weights = static_cast<int32_t>(py::len(program.attr("weights")));
  d.num_terms = field<int32_t>(program, "terms");
  return d;
}

}  // namespace landscapex::program
