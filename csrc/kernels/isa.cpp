#include "isa.h"

#include <atomic>
#include <cstring>

namespace landscapex::cpu {
namespace {

constexpr const char* kNames[] = {
#define LX_NAME(isa, a, b) #isa,
    LX_EACH_ISA(LX_NAME, , )
#undef LX_NAME
};
constexpr int kBuilt = sizeof(kNames) / sizeof(*kNames);

bool processor_has(Isa isa) {
#if defined(LX_WIDE_ISAS)
  __builtin_cpu_init();
  if (isa == Isa::avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return isa == Isa::baseline;
}

Isa widest() {
  int isa = kBuilt - 1;
  while (!processor_has(static_cast<Isa>(isa))) --isa;
  return static_cast<Isa>(isa);
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa{widest()};
  return isa;
}

}  // namespace

Isa isa() { return chosen().load(std::memory_order_relaxed); }

bool set_isa(const char* name) {
  if (std::strcmp(name, "auto") == 0) {
    chosen() = widest();
    return true;
  }
  for (int i = 0; i < kBuilt; ++i) {
    const Isa isa = static_cast<Isa>(i);
    if (std::strcmp(name, kNames[i]) != 0 || !processor_has(isa)) continue;
    chosen() = isa;
    return true;
  }
  return false;
}

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

const char* isa_names() {
#define LX_JOIN(isa, a, b) "," #isa
  return &(LX_EACH_ISA(LX_JOIN, , ))[1];
#undef LX_JOIN
}

}  // namespace landscapex::cpu
