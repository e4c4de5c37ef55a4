// The IEEE defaults for as long as an object lives: a caller may have switched subnormal numbers
// off for its own thread (torch.set_flush_denormal), and results must not depend on the thread.
#pragma once

#include <cstdint>

namespace landscapex::cpu {
namespace {

class FloatEnvironment {
 public:
  FloatEnvironment() : saved_(read()) { write(saved_ & ~kAltered); }
  ~FloatEnvironment() { write(saved_); }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
#if defined(__x86_64__)
  using Word = uint32_t;
  static constexpr Word kAltered = 0xe040;  // flush to zero, rounding mode, denormals are zero
  static Word read() { return __builtin_ia32_stmxcsr(); }
  static void write(Word word) { __builtin_ia32_ldmxcsr(word); }
#elif defined(__aarch64__)
  using Word = uint64_t;
  static constexpr Word kAltered = 0x01c80000;  // FZ, RMode, FZ16
  static Word read() {
    Word word;
    asm volatile("mrs %0, fpcr" : "=r"(word));
    return word;
  }
  static void write(Word word) { asm volatile("msr fpcr, %0" : : "r"(word)); }
#else
  using Word = int;
  static constexpr Word kAltered = 0;
  static Word read() { return 0; }
  static void write(Word) {}
#endif
  Word saved_;
};

}  // namespace
}  // namespace landscapex::cpu
