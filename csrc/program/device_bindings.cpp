// landscapex._program_cuda: grid programs on a device, for Python. Memory is that of torch's
// tensors and comes as addresses, the stream as torch has it; landscapex/engine/device.py makes
// sure that they fit and stay alive. Tests bind the same over the emulation.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "description.h"
#include "device_program.h"

namespace py = pybind11;

namespace landscapex::program::cuda {
namespace {

using Address = uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);  // NOLINT
}

Math math_of(const std::string& name) {
  const char* const names[] = {"fp32", "bf16x3", "tf32", "bf16"};
  for (int i = 0; i < 4; ++i)
    if (name == names[i]) return static_cast<Math>(i);
  throw py::value_error("`math` must be fp32, bf16x3, tf32 or bf16, got " + name + ".");
}

std::unique_ptr<DeviceProgram> make(int64_t lanes, const py::object& description,
                                    const std::string& math, int64_t block_bytes) {
  if (lanes < 16 || lanes % 16 != 0)
    throw py::value_error("`lanes` must be a positive multiple of 16, got " +
                          std::to_string(lanes) + ".");
  return std::make_unique<DeviceProgram>(lanes, describe(description), math_of(math), block_bytes);
}

py::array_t<char> tables(const DeviceProgram& program) {
  const std::vector<char>& image = program.tables();
  return py::array_t<char>(static_cast<py::ssize_t>(image.size()), image.data());
}

void bind(DeviceProgram& program, Address tables, const std::vector<int>& kinds,
          const std::vector<int64_t>& sizes, int64_t num_sets) {
  std::vector<Numbers> numbers;
  for (const int kind : kinds) numbers.push_back(static_cast<Numbers>(kind));
  program.bind(at<const void>(tables), numbers, sizes, num_sets);
}

std::vector<std::pair<int, int64_t>> placed(const DeviceProgram& program) {
  std::vector<std::pair<int, int64_t>> places;
  for (const Placed& p : program.placed()) places.emplace_back(static_cast<int>(p.kind), p.offset);
  return places;
}

DeviceCall call_of(const py::kwargs& given) {
  const auto number = [&](const char* name) { return given[name].cast<int64_t>(); };
  const auto address = [&](const char* name) { return given[name].cast<Address>(); };
  DeviceCall call = {};
  call.tiles = number("tiles");
  call.points = number("points");
  call.most_tiles = number("most_tiles");
  call.most_points = number("most_points");
  const auto fits = [](int64_t count, int64_t most) {
    return count >= 1 && count <= most && most <= kMostCells;
  };
  if (!fits(call.tiles, call.most_tiles) || !fits(call.points, call.most_points))
    throw py::value_error("a call must have 1 to 65535 tiles and points, and no more than most.");
  for (const Address input : given["inputs"].cast<std::vector<Address>>())
    call.inputs.push_back(at<const void>(input));
  call.valid = at<const int64_t>(address("valid"));
  call.owner = at<const int64_t>(address("owner"));
  call.moving = at<const float>(address("moving"));
  call.fixed = at<const float>(address("fixed"));
  call.per_point = at<const float>(address("per_point"));
  call.coordinates = at<const double>(address("coordinates"));
  call.workspace = at<void>(address("workspace"));
  call.totals = at<double>(address("totals"));
  call.values = at<float>(address("values"));
  return call;
}

template <void (DeviceProgram::*kDo)(const DeviceCall&, cudaStream_t) const>
void enqueue(const DeviceProgram& program, Address stream, const py::kwargs& given) {
  const DeviceCall call = call_of(given);
  const py::gil_scoped_release unlocked;
  (program.*kDo)(call, at<std::remove_pointer_t<cudaStream_t>>(stream));
}

}  // namespace
}  // namespace landscapex::program::cuda

#ifdef LX_EMULATE_CUDA
#define LX_DEVICE_MODULE _program_emulated
#else
#define LX_DEVICE_MODULE _program_cuda
#endif

PYBIND11_MODULE(LX_DEVICE_MODULE, m) {
  namespace lx = landscapex::program::cuda;
  using namespace pybind11::literals;
  using lx::DeviceProgram;
  using lx::Numbers;
  m.doc() = "The grid program on a CUDA device; landscapex.engine.device drives it.";
  // local: the library for CUDA and its emulation are used side by side
  py::class_<DeviceProgram>(m, "DeviceProgram", py::module_local())
      .def(py::init(&lx::make), "lanes"_a, "description"_a, "math"_a = "fp32", "block_bytes"_a = 0)
      .def_property_readonly_static(
          "weights_of_block", [](const py::object&) { return DeviceProgram::kWeightsOfBlock; })
      .def("tables", &lx::tables)
      .def("bind", &lx::bind, "tables"_a, "kinds"_a, "sizes"_a, "num_sets"_a)
      .def("placed", &lx::placed)
      .def("floats",
           [](const DeviceProgram& p, int kind) { return p.floats(static_cast<Numbers>(kind)); })
      .def_property_readonly("arena_floats", &DeviceProgram::arena_floats)
      .def_property_readonly("in_blocks", &DeviceProgram::in_blocks)
      .def("workspace_bytes", &DeviceProgram::workspace_bytes, "tiles"_a, "points"_a)
      .def_property_readonly("num_terms", &DeviceProgram::num_terms)
      .def_property_readonly("output_elements", &DeviceProgram::output_elements)
      .def("prepare", &lx::enqueue<&DeviceProgram::prepare>)
      .def("form_weights", &lx::enqueue<&DeviceProgram::form_weights>)
      .def("share", &lx::enqueue<&DeviceProgram::share>)
      .def("run", &lx::enqueue<&DeviceProgram::run>);
#ifdef LX_EMULATE_CUDA
  m.def(
      "set_order",
      [](int order, uint64_t seed) {
        emul::order = static_cast<emul::Order>(order);
        emul::seed = seed * 2 + 1;
      },
      "order"_a, "seed"_a = 0);
#endif
}
