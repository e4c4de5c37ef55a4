// Instruction sets of the CPU kernels. `<op>.cpp` is compiled once for each, inside a namespace of
// that name; the widest one that the processor has is chosen when the library is loaded.
#pragma once

#if defined(__x86_64__) && !defined(LX_BASELINE_ONLY)
#define LX_WIDE_ISAS
#define LX_EACH_ISA(F, a, b) F(baseline, a, b) F(avx2, a, b) F(avx512, a, b)
#else
#define LX_EACH_ISA(F, a, b) F(baseline, a, b)
#endif

namespace landscapex::cpu {

enum class Isa : int {
#define LX_ENUMERATOR(isa, a, b) isa,
  LX_EACH_ISA(LX_ENUMERATOR, , )
#undef LX_ENUMERATOR
};

Isa isa();                       // the one in use
bool set_isa(const char* name);  // false: not built, or the processor lacks it. "auto": the widest
const char* isa_name(Isa isa);
const char* isa_names();  // all that were built, narrowest first, separated by commas

}  // namespace landscapex::cpu

// Declares `name` once for each instruction set, and `name` itself, which calls the one in use.
#define LX_DECLARE_KERNEL(name, parameters, arguments)          \
  LX_EACH_ISA(LX_DECLARE_IN, name, parameters)                  \
  inline void name parameters {                                 \
    switch (isa()) { LX_EACH_ISA(LX_CASE_OF, name, arguments) } \
  }
#define LX_DECLARE_IN(isa_, name, parameters) \
  namespace isa_ {                            \
  void name parameters;                       \
  }
#define LX_CASE_OF(isa_, name, arguments) \
  case Isa::isa_:                         \
    return isa_::name arguments;
