// Which bf16 kernel runs.
#include <atomic>
#include <cstring>

#include "contract_bf16.h"

#if defined(LX_BF16_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace landscapex::program {
namespace {

constexpr const char* kNames[] = {"portable", "avx512_bf16", "amx"};
constexpr int kKernels = 3;

#if defined(LX_BF16_AVX512)
bool has_avx512_bf16() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bf16");
}
#endif

#if defined(LX_BF16_AMX)
// The processor has it, and Linux lets this process use its large registers: that must be asked
// for once (Documentation/arch/x86/xstate.rst).
bool has_amx() {
  constexpr unsigned kTile = 1u << 24, kBf16 = 1u << 22;  // of edx
  unsigned eax, ebx, ecx, edx;
  if (!has_avx512_bf16() || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  if (!(edx & kTile) || !(edx & kBf16)) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

bool available(Bf16Kernel kernel) {
  switch (kernel) {
#if defined(LX_BF16_AMX)
    case Bf16Kernel::amx: {
      static const bool here = has_amx();
      return here;
    }
#endif
#if defined(LX_BF16_AVX512)
    case Bf16Kernel::avx512: {
      static const bool here = has_avx512_bf16();
      return here;
    }
#endif
    default:
      return kernel == Bf16Kernel::portable;
  }
}

// AVX512_BF16 is for processors of AMD: those of Intel take two cycles for each of its products,
// and are faster with the fp32 kernel on rounded numbers.
Bf16Kernel best() {
  if (available(Bf16Kernel::amx)) return Bf16Kernel::amx;
#if defined(LX_BF16_AVX512)
  if (available(Bf16Kernel::avx512) && __builtin_cpu_is("amd")) return Bf16Kernel::avx512;
#endif
  return Bf16Kernel::portable;
}

std::atomic<Bf16Kernel>& chosen() {
  static std::atomic<Bf16Kernel> kernel{best()};
  return kernel;
}

}  // namespace

Bf16Kernel bf16_kernel() {
#if defined(LX_BF16_AVX512)
  if (isa() == Isa::avx512) return chosen().load(std::memory_order_relaxed);
#endif
  return Bf16Kernel::portable;
}

bool set_bf16_kernel(const char* name) {
  if (std::strcmp(name, "auto") == 0) {
    chosen() = best();
    return true;
  }
  for (int i = 0; i < kKernels; ++i) {
    const auto kernel = static_cast<Bf16Kernel>(i);
    if (std::strcmp(name, kNames[i]) != 0 || !available(kernel)) continue;
    chosen() = kernel;
    return true;
  }
  return false;
}

const char* bf16_kernel_name(Bf16Kernel kernel) { return kNames[static_cast<int>(kernel)]; }

std::string bf16_kernels() {
  std::string names = kNames[0];
  for (int i = 1; i < kKernels; ++i)
    if (available(static_cast<Bf16Kernel>(i))) names += std::string(",") + kNames[i];
  return names;
}

void run_contract_rounded(const Contract& step, const Frame& frame) {
  if (step.bf16->packed) {
#if defined(LX_BF16_AMX)
    if (frame.bf16 == Bf16Kernel::amx) return avx512::run_contract_amx(step, frame);
#endif
#if defined(LX_BF16_AVX512)
    if (frame.bf16 == Bf16Kernel::avx512) return avx512::run_contract_bf16(step, frame);
#endif
  }
  run_contract_portable(step, frame);
}

}  // namespace landscapex::program
