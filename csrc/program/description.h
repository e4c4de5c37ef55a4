// A grid program as Python describes it.
#pragma once

#include <pybind11/pybind11.h>

#include "structure.h"

namespace landscapex::program {

// From a landscapex.engine.steps.Program.
Description describe(const pybind11::object& program);

}  // namespace landscapex::program
