// The CPU library: schemas of all operators, and what it can say about itself.
#include "../kernels/isa.h"
#include "common.h"
#include "schemas.h"

namespace landscapex {
namespace {

// Chooses the instruction set of the CPU kernels; the results are the same in each. "auto": the
// widest that the processor has.
void set_isa(std::string name) {
  LX_CHECK(cpu::set_isa(name.c_str()), "set_isa: name must be auto or one of ", cpu::isa_names(),
           " that this processor has, got ", name);
}

std::string isa() { return cpu::isa_name(cpu::isa()); }
std::string isa_names() { return cpu::isa_names(); }
std::string build_info() { return LX_BUILD_INFO; }

}  // namespace
}  // namespace landscapex

STABLE_TORCH_LIBRARY(landscapex, m) {
  for (const char* schema : landscapex::kSchemas) m.def(schema);
  m.def("set_isa(str name) -> ()");
  m.def("isa() -> str");
  m.def("isa_names() -> str");
  m.def("build_info() -> str");
  m.def("cuda_architectures() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(landscapex, CompositeExplicitAutograd, m) {
  m.impl("set_isa", TORCH_BOX(&landscapex::set_isa));
  m.impl("isa", TORCH_BOX(&landscapex::isa));
  m.impl("isa_names", TORCH_BOX(&landscapex::isa_names));
  m.impl("build_info", TORCH_BOX(&landscapex::build_info));
}
