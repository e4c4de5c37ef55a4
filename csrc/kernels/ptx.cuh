// The PTX instructions the tensor-core kernels need, one function each.
//
// Every function has two bodies: inline PTX for the device, and a host twin (LX_EMULATE_CUDA) that
// follows the PTX ISA's text, so that the kernels run unchanged under tests' host emulation:
//   * fragments are exchanged among the 32 lanes exactly as the ISA's fragment tables say;
//   * operands are rounded by the conversions below and nowhere else: bf16 and tf32 products are
//     exact, and the tf32 twin refuses an operand that was never rounded to tf32;
//   * .sync.aligned instructions need the whole warp at the same call, and order no memory;
//   * cp.async lands at the issuing thread's wait and not before.
// "Row" and "column" below are those of the 16xK operand A, the Kx8 operand B and the 16x8 result.
//
// Reference: PTX ISA, "Warp Level Matrix Multiply-Accumulate Instructions" (mma.m16n8k8,
// mma.m16n8k16, ldmatrix) and "Data Movement and Conversion Instructions" (cp.async, cvt).
// Needs sm_80 or later; older devices trap.
#pragma once

#include <cstdint>

#include "launch.h"

#if defined(LX_EMULATE_CUDA)
// The host twin learns the caller's line, so that a divergent warp is reported where it diverged.
#define LX_CALL_SITE , int call_line = __builtin_LINE()
#else
#define LX_CALL_SITE
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define LX_NO_AMPERE_PTX 1
#endif

namespace landscapex::cuda::ptx {

#if defined(LX_EMULATE_CUDA)

namespace twin {

// One lane's operands of an mma, as it leaves them for the others: a[0..3], then b[0..1].
struct Operands {
  uint32_t words[6];
};
constexpr int kFirstB = 4;

inline float bf16_half(uint32_t pair, int half) {
  return __uint_as_float(half ? pair & 0xffff0000u : pair << 16);
}

inline float tf32_value(uint32_t bits, int line) {
  const float value = __uint_as_float(bits);
  if ((bits & 0x1fffu) != 0 && value == value) {
    emul::fail("mma: an operand was not rounded to tf32 (line " + std::to_string(line) + ")");
  }
  return value;
}

// A .sync.aligned instruction: all 32 lanes meet; memory stays unordered.
template <typename T>
const emul::Rendezvous::Slots& meet_warp(const T& value, int line) {
  const auto& slots = emul::meet<T>(0xffffffffu, value, line);
  if (slots.present != 0xffffffffu) {
    emul::fail("an aligned instruction was executed by an incomplete warp (line " +
               std::to_string(line) + ")");
  }
  return slots;
}

// A 32-bit word, or a pointer, that another lane left.
template <typename T>
T left_by(const emul::Rendezvous::Slots& slots, int lane, int index = 0) {
  T value;
  std::memcpy(&value, slots.v[lane] + index * sizeof(T), sizeof(T));
  return value;
}

// Eight rows of 16 bytes pass at once when they lie in eight different eighths of 128 bytes.
inline void count_bank_conflicts(const emul::Rendezvous::Slots& slots) {
  for (int j = 0; j < 4; ++j) {
    int rows[8] = {};
    int most = 0;
    for (int i = 0; i < 8; ++i) {
      const auto address = reinterpret_cast<uintptr_t>(left_by<const void*>(slots, j * 8 + i));
      most = std::max(most, ++rows[address / 16 % 8]);
    }
    emul::ctx->bank_conflicts += most - 1;
  }
}

}  // namespace twin

#endif

// Rounds to tf32 (10 mantissa bits), ties away from zero; the result is a float's bit pattern.
__device__ __forceinline__ uint32_t round_to_tf32(float value) {
#if defined(LX_EMULATE_CUDA)
  const uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7f800000u) == 0x7f800000u) {
    return (bits & 0x007fffffu) != 0 ? 0x7fffe000u : bits;  // NaN and infinity stay what they are
  }
  return (bits + 0x1000u) & ~0x1fffu;  // the carry may reach the exponent: that is the next binade
#elif defined(LX_NO_AMPERE_PTX)
  __trap();
  return 0;
#else
  uint32_t out;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(out) : "f"(value));
  // The ISA leaves the low 13 bits to the implementation; the planes hold plain float patterns.
  return out & ~0x1fffu;
#endif
}

// Rounds two values to bf16, ties to even; `low` goes to bits 0-15.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#if defined(LX_EMULATE_CUDA)
  const auto round = [](float value) -> uint32_t {
    const uint32_t bits = __float_as_uint(value);
    if (value != value) return 0x7fffu;
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  };
  return round(low) | round(high) << 16;
#elif defined(LX_NO_AMPERE_PTX)
  __trap();
  return 0;
#else
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
#endif
}

// d += A B for bf16 operands, 16x8x16.  With g = lane / 4, t = lane % 4:
//   a[0]: (g, 2t..2t+1)  a[1]: (g+8, 2t..)  a[2]: (g, 2t+8..)  a[3]: (g+8, 2t+8..)
//   b[0]: (2t..2t+1, g)  b[1]: (2t+8.., g)   d[0..1]: (g, 2t..)  d[2..3]: (g+8, 2t..)
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1 LX_CALL_SITE) {
#if defined(LX_EMULATE_CUDA)
  const auto& slots = twin::meet_warp(twin::Operands{{a[0], a[1], a[2], a[3], b0, b1}}, call_line);
  emul::Hidden hidden;
  const int lane = static_cast<int>(emul::lane_id());
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + (i < 2 ? 0 : 8);
    const int column = lane % 4 * 2 + (i & 1);
    float left[16], right[16];
    for (int k = 0; k < 16; ++k) {
      // Element k of a row or column lies with the lane t = (k % 8) / 2 of its group of four.
      const int word_a = (row < 8 ? 0 : 1) + (k < 8 ? 0 : 2);
      const int word_b = twin::kFirstB + (k < 8 ? 0 : 1);
      left[k] =
          twin::bf16_half(twin::left_by<uint32_t>(slots, row % 8 * 4 + k % 8 / 2, word_a), k & 1);
      right[k] =
          twin::bf16_half(twin::left_by<uint32_t>(slots, column * 4 + k % 8 / 2, word_b), k & 1);
    }
    d[i] = emul::accumulate(d[i], left, right, 16, 8);
  }
#elif defined(LX_NO_AMPERE_PTX)
  __trap();
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// d += A B for tf32 operands, 16x8x8.  With g = lane / 4, t = lane % 4:
//   a[0]: (g, t)  a[1]: (g+8, t)  a[2]: (g, t+4)  a[3]: (g+8, t+4)
//   b[0]: (t, g)  b[1]: (t+4, g)    d as for bf16
__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1 LX_CALL_SITE) {
#if defined(LX_EMULATE_CUDA)
  const auto& slots = twin::meet_warp(twin::Operands{{a[0], a[1], a[2], a[3], b0, b1}}, call_line);
  emul::Hidden hidden;
  const int lane = static_cast<int>(emul::lane_id());
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + (i < 2 ? 0 : 8);
    const int column = lane % 4 * 2 + (i & 1);
    float left[8], right[8];
    for (int k = 0; k < 8; ++k) {
      const int word_a = (row < 8 ? 0 : 1) + (k < 4 ? 0 : 2);
      const int word_b = twin::kFirstB + (k < 4 ? 0 : 1);
      left[k] =
          twin::tf32_value(twin::left_by<uint32_t>(slots, row % 8 * 4 + k % 4, word_a), call_line);
      right[k] =
          twin::tf32_value(twin::left_by<uint32_t>(slots, column * 4 + k % 4, word_b), call_line);
    }
    d[i] = emul::accumulate(d[i], left, right, 8, 4);
  }
#elif defined(LX_NO_AMPERE_PTX)
  __trap();
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// Four 8x8 matrices of 16-bit elements (or 8x4 of 32-bit ones): lane 8j + i gives the address of
// row i of matrix j, 16 bytes in shared memory; out[j] receives the 32-bit word lane % 4 of row
// lane / 4 of matrix j, which is just an mma operand's fragment.
__device__ __forceinline__ void load_matrix_x4(uint32_t (&out)[4],
                                               const void* row_address LX_CALL_SITE) {
#if defined(LX_EMULATE_CUDA)
  const char* wrong = reinterpret_cast<uintptr_t>(row_address) % 16 != 0 ? "a misaligned address"
                      : !emul::in_shared(row_address, 16)                ? "outside shared memory"
                                                                         : nullptr;
  if (wrong != nullptr) {
    emul::fail(std::string("ldmatrix from ") + wrong + " (line " + std::to_string(call_line) + ")");
  }
  const auto& slots = twin::meet_warp(row_address, call_line);
  const uint32_t* source[4];
  {
    emul::Hidden hidden;
    const int lane = static_cast<int>(emul::lane_id());
    for (int j = 0; j < 4; ++j) {
      source[j] =
          static_cast<const uint32_t*>(twin::left_by<const void*>(slots, j * 8 + lane / 4)) +
          lane % 4;
    }
    if (lane == 0) twin::count_bank_conflicts(slots);
  }
  for (int j = 0; j < 4; ++j) out[j] = *source[j];  // seen by the sanitizers
#elif defined(LX_NO_AMPERE_PTX)
  __trap();
#else
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row_address));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
#endif
}

// Starts copying `bytes` (0 to 16) from global `source` to 16 bytes of shared memory; the rest is
// filled with zeros.  Both addresses are multiples of 16, even when nothing is read.
__device__ __forceinline__ void copy_async_16(void* shared, const void* source,
                                              int bytes LX_CALL_SITE) {
#if defined(LX_EMULATE_CUDA)
  emul::async_copy(shared, source, static_cast<unsigned>(bytes), call_line);
#elif defined(LX_NO_AMPERE_PTX)
  __trap();
#else
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(address), "l"(__cvta_generic_to_global(source)), "r"(bytes)
               : "memory");
#endif
}

// Closes this thread's current group of copies (which may be empty).
__device__ __forceinline__ void commit_group() {
#if defined(LX_EMULATE_CUDA)
  emul::async_commit();
#elif defined(LX_NO_AMPERE_PTX)
  __trap();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the kPending newest groups of this thread are still in flight.  Other
// threads see the copies only after a barrier that follows.
template <int kPending>
__device__ __forceinline__ void wait_group() {
#if defined(LX_EMULATE_CUDA)
  emul::async_wait(kPending);
#elif defined(LX_NO_AMPERE_PTX)
  __trap();
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

}  // namespace landscapex::cuda::ptx
