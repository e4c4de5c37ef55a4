// landscapex._program: grid programs for Python. Steps come as the dataclasses of
// landscapex/engine/steps.py, data as NumPy arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>

#include "../kernels/isa.h"
#include "contract_bf16.h"
#include "description.h"
#include "program.h"

namespace py = pybind11;

namespace landscapex::program {
namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Longs = py::array_t<int64_t, py::array::c_style>;
using Doubles = py::array_t<double, py::array::c_style>;

std::unique_ptr<Program> make(int64_t lanes, const py::object& description, bool bf16) {
  if (lanes < 16 || lanes % 16 != 0)
    throw py::value_error("`lanes` must be a positive multiple of 16, got " +
                          std::to_string(lanes) + ".");
  return std::make_unique<Program>(lanes, describe(description), bf16);
}

// inputs: by buffer id, an array [tiles, elements, lanes] or None. weights: (array, per point).
// Returns sums [groups, G, terms] of the tiles that each group owns, added in their order, and the
// outputs [tiles, G, elements, lanes] or None.
py::tuple run(Program& program, const Longs& valid, const Longs& owner,
              const std::vector<py::object>& inputs, const Doubles& points,
              const std::vector<std::pair<Floats, bool>>& weights, int64_t num_threads,
              bool with_values, const std::optional<Floats>& products, bool ready) {
  if (points.ndim() != 2) throw py::value_error("`points` must be two-dimensional, [G, K].");
  Tiles tiles = {valid.size(), valid.data(), {}};
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].is_none()) {
      tiles.inputs.push_back(nullptr);
      continue;
    }
    const auto array = inputs[i].cast<py::array>();
    const int64_t expected = program.input_elements(i) * program.lanes() * tiles.count;
    if (array.itemsize() != 4 || array.size() != expected || !(array.flags() & py::array::c_style))
      throw py::value_error(
          "inputs must be contiguous, of 4-byte numbers [tiles, elements, lanes].");
    tiles.inputs.push_back(array.data());
  }
  if (!program.has_inputs(tiles.inputs)) throw py::value_error("an input is missing.");
  const Points grid = {points.shape(0), points.shape(1), points.data()};
  std::vector<WeightData> data;
  for (const auto& [array, per_point] : weights) {
    if (array.ndim() != 2) throw py::value_error("weights must be two-dimensional.");
    const int64_t rows = array.shape(0);
    const int64_t expected = per_point ? grid.count : grid.num_directions + 1;
    if (rows != expected && (per_point || rows != 1))
      throw py::value_error("weights must have one row per set or point, got " +
                            std::to_string(rows) + ".");
    data.push_back({array.data(), array.shape(1), per_point ? 1 : rows, per_point});
  }
  if (owner.size() != tiles.count) throw py::value_error("every tile must have an owner.");
  int64_t groups = 0;
  for (int64_t t = 0; t < tiles.count; ++t) {
    if (owner.data()[t] < 0) throw py::value_error("owners must be at least 0.");
    groups = std::max(groups, owner.data()[t] + 1);
  }
  const int64_t cells = grid.count * program.num_terms();
  Doubles sums({groups, grid.count, program.num_terms()});
  Products kept = {nullptr, ready};
  if (products) {
    if (products->size() < tiles.count * program.affine_floats(grid.num_directions + 1))
      throw py::value_error("`products` is too small.");
    kept.data = const_cast<float*>(products->data());
  }
  Floats values;
  if (with_values)
    values = Floats({tiles.count, grid.count, program.output_elements(), program.lanes()});
  double* const sums_data = sums.mutable_data();
  float* const values_data = with_values ? values.mutable_data() : nullptr;
  {
    const py::gil_scoped_release unlocked;
    std::vector<double> partial(static_cast<size_t>(tiles.count * cells));
    program.run(tiles, grid, data, kept, num_threads, partial.data(), values_data);
    std::fill(sums_data, sums_data + groups * cells, 0.0);
    for (int64_t t = 0; t < tiles.count; ++t)
      for (int64_t i = 0; i < cells; ++i)
        sums_data[owner.data()[t] * cells + i] += partial[t * cells + i];
  }
  return py::make_tuple(sums, with_values ? py::object(values) : py::none());
}

}  // namespace
}  // namespace landscapex::program

PYBIND11_MODULE(_program, m) {
  namespace lx = landscapex::program;
  using namespace pybind11::literals;
  m.doc() = "The grid program on the CPU; landscapex.engine.compiled drives it.";
  py::class_<lx::Program>(m, "Program")
      .def(py::init(&lx::make), "lanes"_a, "description"_a, "bf16"_a = false)
      .def("run", &lx::run, "valid"_a, "owner"_a, "inputs"_a, "points"_a, "weights"_a,
           "num_threads"_a = 1, "with_values"_a = false, "products"_a = py::none(),
           "ready"_a = false)
      .def("arena_floats", &lx::Program::arena_floats, "num_sets"_a)
      .def("affine_floats", &lx::Program::affine_floats, "num_sets"_a);
  m.def("isa", [] { return landscapex::cpu::isa_name(landscapex::cpu::isa()); });
  m.def("isas", [] { return std::string(landscapex::cpu::isa_names()); });
  m.def("bf16_kernel", [] { return lx::bf16_kernel_name(lx::bf16_kernel()); });
  m.def("bf16_kernels", &lx::bf16_kernels);
  m.def("set_bf16_kernel", [](const std::string& name) {
    if (!lx::set_bf16_kernel(name.c_str()))
      throw py::value_error("`name` must be a bf16 kernel of this processor, got " + name);
  });
  m.def("set_isa", [](const std::string& name) {
    if (!landscapex::cpu::set_isa(name.c_str()))
      throw py::value_error("`name` must be an instruction set of this processor, got " + name);
  });
}
