// cuda_host_emulation.h - runs CUDA C++ kernels on the host, for tests only.
//
// Compile a .cu file as C++ (g++ -std=c++17 -x c++ -include cuda_host_emulation.h) and its kernels
// run block after block on one OS thread; each CUDA thread of a block is a fiber.  What is checked
// on the way:
//   * barriers: every live thread of the block must reach the same __syncthreads (same source
//   line);
//   * warp collectives: every lane named in the mask must arrive, at the same line; a lane that has
//   exited
//     or is not named in its own mask is an error, and so is a deadlock;
//   * shared memory starts as NaN bytes (0xFF) in each block, so a read before a write shows;
//   * the order in which threads run is a parameter (emul::order, emul::seed), from lockstep to one
//   warp at a time: a kernel whose result depends
//     on it has a race;
//   * cp.async is asynchronous: its destination holds NaN bytes (and is off limits under
//   -fsanitize=address)
//     from the instruction until the issuing thread's wait, and a source that changes meanwhile is
//     an error;
//   * mma, ldmatrix and shuffles order no memory: only barriers and __syncwarp do
//   (-fsanitize=thread);
//   * under -fsanitize=address an access outside a buffer or a shared array, under
//   -fsanitize=undefined a
//     misaligned float4 or an int overflow, under -fsanitize=thread a data race between CUDA
//     threads.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {  // exported by libtsan, in no header
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
void __tsan_java_init(unsigned long, unsigned long);
void __tsan_java_alloc(unsigned long, unsigned long);
void __tsan_java_free(unsigned long, unsigned long);
}
#endif

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __managed__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// one section for all shared arrays: it can be filled with NaN bytes at each block's start
#define __shared__ static __attribute__((section("lx_shared")))
#define LX_DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(::emul::dynamic_shared())

struct alignas(8) uint2 {
  unsigned x, y;
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
#define EMUL_VEC(T, N, A)                                         \
  struct alignas(A * 2) N##2 { T x, y; };                         \
  struct N##3 { T x, y, z; };                                     \
  struct alignas(A * 4 > 16 ? 16 : A * 4) N##4 { T x, y, z, w; }; \
  inline N##2 make_##N##2(T a, T b) { return {a, b}; }            \
  inline N##3 make_##N##3(T a, T b, T c) { return {a, b, c}; }    \
  inline N##4 make_##N##4(T a, T b, T c, T d) { return {a, b, c, d}; }
EMUL_VEC(float, float, 4)
EMUL_VEC(int, int, 4)
EMUL_VEC(double, double, 8)
#undef EMUL_VEC

// ---- the little of the runtime API that launchers use
// -------------------------------------------------------
using cudaStream_t = struct CUstream_st*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t e) { return e ? "error" : "no error"; }
template <class T>
cudaError_t cudaMemcpyToSymbol(T& sym, const void* src, size_t n) {
  std::memcpy(&sym, src, n);
  return 0;
}
inline cudaError_t cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t = nullptr) {
  std::memset(p, v, n);
  return 0;
}
template <class K>
cudaError_t cudaFuncSetAttribute(K, int, int) {
  return 0;
}
constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 8;

extern "C" char __start_lx_shared[] __attribute__((weak)), __stop_lx_shared[] __attribute__((weak));
extern "C" void lx_emul_switch(void** save_sp, void* load_sp);
#if defined(__x86_64__)
asm(R"(
.pushsection .text
.weak lx_emul_switch
.type lx_emul_switch,@function
lx_emul_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size lx_emul_switch,.-lx_emul_switch
.popsection
)");
#else
#error "cuda_host_emulation.h: only x86-64 has a fiber switch here"
#endif

namespace emul {
enum class Order {
  forward,
  reverse,
  random,
  warps
};  // warps: one warp runs as far as it can, then another
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

constexpr size_t kStack = 256 * 1024;  // a kernel's arguments may be 32 KB, and lie here
struct Copy {                          // one cp.async in flight
  unsigned char* dst = nullptr;
  const unsigned char* src = nullptr;
  unsigned bytes = 0;  // read from src; the rest of the 16 are zeros
  int line = 0;
  alignas(16) unsigned char value[16] = {};
};
struct Fiber {
  uint3 tid{};
  unsigned linear = 0;
  enum { ready, at_barrier, at_warp, done } state = done;
  int line = 0;       // where it waits
  unsigned mask = 0;  // for a warp collective: who is met
  void *sp = nullptr, *fake = nullptr, *tsan = nullptr;
  const void* stack = nullptr;
  size_t size = 0;
  std::vector<Copy> open;                // issued, not committed
  std::deque<std::vector<Copy>> groups;  // committed, oldest first
};
struct Rendezvous {  // one warp collective in flight: all lanes of `mask` meet here
  unsigned mask = 0, arrived = 0, gen = 0;
  int line = 0;
  struct Slots {
    alignas(16) unsigned char v[32][32];
    unsigned present;
  } slots[2];
};
struct Context {
  dim3 grid, block;
  uint3 bid{};
  std::deque<Fiber> fibers, others;  // not a vector: suspended fibers refer to their own entry
  std::vector<std::vector<Rendezvous>> warps;
  std::vector<unsigned> exited;  // lanes of each warp that have returned
  unsigned live = 0, waiting = 0, phase = 0;
  Fiber main, *cur = nullptr;
  std::vector<unsigned> queue;
  void* dyn = nullptr;
  size_t dyn_size = 0;
  std::unordered_set<const unsigned char*>
      in_flight;  // destinations of all copies in flight in this block
  void (*entry)(void*) = nullptr;
  void* arg = nullptr;
  std::string error;
  char sync_token = 0, start_token = 0;
  std::vector<char> tokens;  // see token()
  uint64_t switches = 0, blocks_left = 0;
  uint64_t bank_conflicts =
      0;  // extra shared-memory passes of all ldmatrix so far: speed, not correctness
};
constexpr unsigned kTokens = 2 + 2 * 32;  // of a block: its barrier and its warps, by turns
inline Context* ctx = nullptr;
inline Context the_context;  // stacks are kept between launches
inline Order order = Order::forward;
inline uint64_t seed = 1;
inline uint64_t rnd() {
  seed ^= seed << 13;
  seed ^= seed >> 7;
  seed ^= seed << 17;
  return seed;
}

#if defined(__SANITIZE_THREAD__)
#define EMUL_INTERNAL __attribute__((noinline, no_sanitize("thread"))) inline
inline void hb_release(void* p) { __tsan_release(p); }
inline void hb_acquire(void* p) { __tsan_acquire(p); }
struct Hidden {  // the emulator's own bookkeeping is not the kernel's business
  Hidden() {
    AnnotateIgnoreReadsBegin(__FILE__, 0);
    AnnotateIgnoreWritesBegin(__FILE__, 0);
  }
  ~Hidden() {
    AnnotateIgnoreWritesEnd(__FILE__, 0);
    AnnotateIgnoreReadsEnd(__FILE__, 0);
  }
};
#else
#define EMUL_INTERNAL inline
inline void hb_release(void*) {}
inline void hb_acquire(void*) {}
struct Hidden {
  ~Hidden() {}
};
#endif
// What a meeting is known by to the race detector. Each block has its own: fibers serve one block
// after another, and through a token that outlived a block what they did there would seem to come
// before everything in later blocks.
EMUL_INTERNAL char* token(unsigned which) {
  return &ctx->tokens[ctx->tokens.size() - kTokens * (1 + ctx->blocks_left) + which];
}
EMUL_INTERNAL void* dynamic_shared() { return ctx->dyn; }
EMUL_INTERNAL uint3 tid() { return ctx->cur->tid; }
EMUL_INTERNAL uint3 bid() { return ctx->bid; }
EMUL_INTERNAL dim3 bdim() { return ctx->block; }
EMUL_INTERNAL dim3 gdim() { return ctx->grid; }
EMUL_INTERNAL unsigned lane_id() { return ctx->cur->linear % 32; }

__attribute__((noinline, no_sanitize("thread"))) inline void switch_to(Fiber& from, Fiber& to) {
  ++ctx->switches;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake, to.stack, to.size);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.tsan, 1 /* no happens-before edge: only barriers make those */);
#endif
  lx_emul_switch(&from.sp, to.sp);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake, nullptr, nullptr);
#endif
}
EMUL_INTERNAL void wait() { switch_to(*ctx->cur, ctx->main); }  // back to the scheduler
[[noreturn]] inline void fail(const std::string& what) {
  if (ctx->error.empty()) {
    const uint3 b = ctx->bid, t = ctx->cur->tid;
    char buf[160];
    std::snprintf(buf, sizeof buf, " [block (%u,%u,%u), thread (%u,%u,%u)]", b.x, b.y, b.z, t.x,
                  t.y, t.z);
    ctx->error = what + buf;
  }
  for (;;) wait();  // the scheduler sees the error and unwinds
}

void async_check_none();
EMUL_INTERNAL void run_kernel() {
  hb_acquire(&ctx->start_token);
  ctx->entry(ctx->arg);
}
EMUL_INTERNAL void finish() {
  hb_release(&ctx->sync_token);
  ctx->cur->state = Fiber::done;
  wait();
}
extern "C" EMUL_INTERNAL void lx_emul_fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &ctx->main.stack, &ctx->main.size);
#endif
  for (;;) {  // one turn for each block this fiber serves
    run_kernel();
    async_check_none();
    finish();
  }
}

inline void make_ready(Fiber& f) {
  f.state = Fiber::ready;
  ctx->queue.push_back(f.linear);
}

inline void release_barrier_if_full() {
  Context& c = *ctx;
  if (!c.waiting || c.waiting != c.live) return;
  int line = 0;
  for (Fiber& f : c.fibers)
    if (f.state == Fiber::at_barrier) {
      if (line && f.line != line)
        c.error = "threads of one block met at different barriers (lines " + std::to_string(line) +
                  " and " + std::to_string(f.line) + ")";
      line = f.line;
    }
  c.waiting = 0;
  ++c.phase;
  for (Fiber& f : c.fibers)
    if (f.state == Fiber::at_barrier) make_ready(f);
}

inline void barrier(int line) {
  Hidden hidden;
  Fiber& f = *ctx->cur;
  char* const met = token(ctx->phase & 1);  // by turns: an early thread may be one barrier ahead
  hb_release(met);
  f.state = Fiber::at_barrier;
  f.line = line;
  ++ctx->waiting;
  wait();
  hb_acquire(met);
}

inline void finish_if_met(Rendezvous& r,
                          unsigned w) {  // all lanes of the mask that still run are here
  Context& c = *ctx;
  if (!r.arrived || r.arrived != (r.mask & ~c.exited[w])) return;
  r.slots[r.gen & 1].present = r.arrived;
  r.arrived = 0;
  ++r.gen;
  for (unsigned l = 0; l < 32 && w * 32 + l < c.fibers.size(); ++l) {
    Fiber& o = c.fibers[w * 32 + l];
    if ((r.mask >> l & 1u) && o.state == Fiber::at_warp && o.mask == r.mask) make_ready(o);
  }
}

// every lane of `mask` leaves its value; returns all slots (valid until the next but one meeting).
// `ordered`: the meeting also orders memory among its lanes, as __syncwarp does and shuffles,
// votes, mma do not
template <class T>
const Rendezvous::Slots& meet(unsigned mask, T v, int line, bool ordered = false) {
  Hidden hidden;
  static_assert(sizeof(T) <= 32 && std::is_trivially_copyable<T>::value,
                "warp collective on an unsupported type");
  Context& c = *ctx;
  Fiber& f = *c.cur;
  const unsigned w = f.linear / 32, lane = f.linear % 32;
  if (!(mask >> lane & 1u))
    fail("lane calls a warp collective whose mask leaves it out (line " + std::to_string(line) +
         ")");
  Rendezvous* r = nullptr;
  for (auto& q : c.warps[w])
    if (q.mask == mask) {
      r = &q;
      break;
    }
  if (!r) {
    if (c.warps[w].size() == c.warps[w].capacity()) fail("too many different warp masks");
    c.warps[w].emplace_back();
    r = &c.warps[w].back();
    r->mask = mask;
  }
  if (r->arrived == 0)
    r->line = line;
  else if (r->line != line)
    fail("lanes of one warp met at different collectives (lines " + std::to_string(r->line) +
         " and " + std::to_string(line) + ")");
  Rendezvous::Slots& slots = r->slots[r->gen & 1];
  std::memcpy(slots.v[lane], &v, sizeof(T));
  char* const met = token(2 + 2 * w + (r->gen & 1));
  if (ordered) hb_release(met);
  r->arrived |= 1u << lane;
  f.mask = mask;
  f.line = line;
  const unsigned before = r->gen;
  finish_if_met(*r, w);  // the last to come goes on at once
  if (r->gen == before) {
    f.state = Fiber::at_warp;
    wait();
  }
  if (ordered) hb_acquire(met);
  return slots;
}

// ---- cp.async: issued here, visible to the issuing thread at its wait, to others at the barrier
// after it ----
EMUL_INTERNAL bool in_shared(const void* p, size_t n) {
  const char* q = static_cast<const char*>(p);
  const char* d = static_cast<const char*>(ctx->dyn);
  return (d && q >= d && q + n <= d + ctx->dyn_size) ||
         (__start_lx_shared && q >= __start_lx_shared && q + n <= __stop_lx_shared);
}
inline void forbid(void* p, size_t n) {  // no thread may touch it now
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(p, n);
#else
  (void)p, (void)n;
#endif
}
inline void permit(const void* p, size_t n) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(p, n);
#else
  (void)p, (void)n;
#endif
}
// these three are the kernel's own accesses: the sanitizers see them, from the issuing thread
__attribute__((noinline)) inline void read_source(Copy& c) {
  for (unsigned i = 0; i < c.bytes; ++i) c.value[i] = c.src[i];
}
__attribute__((noinline)) inline void store16(unsigned char* dst, uint64_t lo, uint64_t hi) {
  uint64_t* q = reinterpret_cast<uint64_t*>(dst);  // aligned: checked at the issue
  q[0] = lo;
  q[1] = hi;
}
__attribute__((noinline)) inline bool same_source(const Copy& c) {
  bool same = true;
  for (unsigned i = 0; i < c.bytes; ++i) same &= c.value[i] == c.src[i];
  return same;
}
inline void async_copy(void* dst, const void* src, unsigned bytes, int line) {
  const char* wrong = bytes > 16                              ? "of more than 16 bytes"
                      : reinterpret_cast<uintptr_t>(dst) % 16 ? "to a misaligned shared address"
                      : reinterpret_cast<uintptr_t>(src) % 16 ? "from a misaligned global address"
                      : !in_shared(dst, 16)            ? "to an address outside shared memory"
                      : bytes && in_shared(src, bytes) ? "from shared memory"
                                                       : nullptr;
  if (wrong) fail(std::string("cp.async ") + wrong + " (line " + std::to_string(line) + ")");
  Copy c;
  c.dst = static_cast<unsigned char*>(dst);
  c.src = static_cast<const unsigned char*>(src);
  c.bytes = bytes;
  c.line = line;
  read_source(c);
  {
    Hidden hidden;
    if (!ctx->in_flight.insert(c.dst).second)
      fail("two cp.async in flight to one address (line " + std::to_string(line) + ")");
    ctx->cur->open.push_back(c);
  }
  store16(c.dst, ~uint64_t(0), ~uint64_t(0));  // whoever reads it now reads NaN
  forbid(c.dst, 16);
}
inline void async_commit() {
  Hidden hidden;
  Fiber& f = *ctx->cur;
  f.groups.push_back(std::move(f.open));
  f.open.clear();
}
inline void async_land(std::vector<Copy>& copies) {
  for (Copy& c : copies) {
    permit(c.dst, 16);
    uint64_t half[2];
    std::memcpy(half, c.value, 16);
    store16(c.dst, half[0], half[1]);
    if (!same_source(c))
      fail("the source of a cp.async changed while it was in flight (line " +
           std::to_string(c.line) + ")");
    Hidden hidden;
    ctx->in_flight.erase(c.dst);
  }
}
inline void async_wait(size_t pending) {  // all but the `pending` newest groups have landed
  for (;;) {
    std::vector<Copy> group;
    {
      Hidden hidden;
      Fiber& f = *ctx->cur;
      if (f.groups.size() <= pending) return;
      group.swap(f.groups.front());
      f.groups.pop_front();
    }
    async_land(group);
  }
}
inline void async_check_none() {  // at a thread's end
  Hidden hidden;
  Fiber& f = *ctx->cur;
  int line = f.open.empty() ? 0 : f.open[0].line;
  for (auto& g : f.groups)
    if (!g.empty()) line = g[0].line;
  if (line) fail("a thread returned with a cp.async in flight (line " + std::to_string(line) + ")");
  f.groups.clear();
}
inline void async_forget() {  // after an error
  for (const unsigned char* p : ctx->in_flight) permit(p, 16);
  ctx->in_flight.clear();
}

inline void* new_stack() {
  void* p = mmap(nullptr, kStack + 4096, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  mprotect(p, 4096, PROT_NONE);  // a guard page under each stack
  return static_cast<char*>(p) + 4096;
}

__attribute__((noinline, no_sanitize("address", "thread", "undefined"))) inline void fill(
    char* p, char* end) {
  for (volatile char* q = p; q && q < end; ++q) *q = char(0xFF);
}

inline void run_block(Context& c) {
  const unsigned n = c.block.x * c.block.y * c.block.z;
  c.live = n;
  c.waiting = 0;
  c.queue.clear();
  c.warps.assign((n + 31) / 32, {});
  for (auto& w : c.warps) w.reserve(64);
  c.exited.assign((n + 31) / 32, 0);
  if (n % 32) c.exited.back() = ~0u << (n % 32);  // lanes that never were
  for (unsigned i = 0; i < n; ++i) {
    Fiber& f = c.fibers[i];
    f.linear = i;
    f.tid = {i % c.block.x, i / c.block.x % c.block.y, i / (c.block.x * c.block.y)};
    make_ready(f);
  }
  size_t head = 0;
  std::vector<unsigned> round;
  unsigned solo = 0;
  for (;;) {
    round.assign(c.queue.begin() + head, c.queue.end());
    c.queue.clear();
    head = 0;
    if (round.empty()) break;
    if (order == Order::warps) {  // the others stay queued: no warp keeps pace with another
      const auto of_warp = [&](unsigned w) { return [w](unsigned i) { return i / 32 == w; }; };
      if (std::none_of(round.begin(), round.end(), of_warp(solo)))
        solo = round[rnd() % round.size()] / 32;
      c.queue.assign(round.begin(),
                     std::stable_partition(round.begin(), round.end(),
                                           [&](unsigned i) { return i / 32 != solo; }));
      round.erase(round.begin(), round.begin() + static_cast<long>(c.queue.size()));
    }
    if (order == Order::reverse) std::reverse(round.begin(), round.end());
    if (order == Order::random)
      for (size_t i = round.size(); i > 1; --i) std::swap(round[i - 1], round[rnd() % i]);
    for (unsigned i : round) {
      Fiber& f = c.fibers[i];
      c.cur = &f;
      switch_to(c.main, f);
      if (f.state == Fiber::done) {
        --c.live;
        c.exited[i / 32] |= 1u << (i % 32);
        for (auto& r : c.warps[i / 32]) finish_if_met(r, i / 32);
      }
      if (c.error.empty()) release_barrier_if_full();
      if (!c.error.empty()) throw Error(c.error);
    }
  }
  if (c.live) {
    int line = 0;
    for (Fiber& f : c.fibers)
      if (f.linear < n && f.state != Fiber::done) line = f.line;
    throw Error("deadlock: " + std::to_string(c.live) + " threads wait for ever, one at line " +
                std::to_string(line));
  }
}

inline void start(Fiber& f) {  // the next switch to it enters lx_emul_fiber_main
  void** sp =
      reinterpret_cast<void**>(const_cast<char*>(static_cast<const char*>(f.stack)) + kStack);
  *--sp = nullptr;
  *--sp = reinterpret_cast<void*>(&lx_emul_fiber_main);
  for (int k = 0; k < 6; ++k) *--sp = nullptr;
  f.sp = sp;
#if defined(__SANITIZE_THREAD__)
  f.tsan = __tsan_create_fiber(0);
#endif
}
inline Fiber make_fiber() {
  Fiber f;
  f.stack = new_stack();
  f.size = kStack;
  start(f);
  return f;
}
inline void forget_shared() {  // race detection: blocks do not share these arrays
#if defined(__SANITIZE_THREAD__)
  const auto lo = reinterpret_cast<unsigned long>(__start_lx_shared) & ~7ul,
             hi = (reinterpret_cast<unsigned long>(__stop_lx_shared) + 7) & ~7ul;
  static bool once = false;
  if (hi <= lo) return;
  if (once)
    __tsan_java_free(lo, hi - lo);
  else
    __tsan_java_init(lo, hi - lo);
  once = true;
  __tsan_java_alloc(lo, hi - lo);
#endif
}
inline void drop(Fiber& f) {  // its race-detector identity is left behind
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(f.stack, f.size);
#endif
  munmap(const_cast<char*>(static_cast<const char*>(f.stack)) - 4096, kStack + 4096);
}

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t smem, cudaStream_t, A&&... a) {
  const unsigned n = block.x * block.y * block.z;
  if (n == 0 || n > 1024 || !grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535 ||
      smem > 232448)
    throw Error("invalid launch configuration");
  Context& c = the_context;
  ctx = &c;
  c.grid = grid;
  c.block = block;
  c.error.clear();
#if defined(__SANITIZE_THREAD__)
  c.main.tsan = __tsan_get_current_fiber();
#endif
  auto bound = std::make_tuple(kernel, std::tuple<P...>(static_cast<P>(a)...));
  c.arg = &bound;
  c.entry = [](void* q) {
    auto& b = *static_cast<decltype(bound)*>(q);
    std::apply(std::get<0>(b), std::get<1>(b));
  };
  c.dyn = nullptr;
  c.dyn_size = smem;
  std::vector<std::unique_ptr<char, void (*)(void*)>> bytes;  // dynamic shared memory
  // blocks run in the chosen order too: a kernel that counts on an earlier block's result must not
  // pass
  const uint64_t total = uint64_t(grid.x) * grid.y * grid.z;
  std::vector<uint64_t> shuffled;
  if (order == Order::random) {
    shuffled.resize(total);
    for (uint64_t i = 0; i < total; ++i) shuffled[i] = i;
    for (uint64_t i = total; i > 1; --i) std::swap(shuffled[i - 1], shuffled[rnd() % i]);
  }
#if defined(__SANITIZE_THREAD__)
  c.tokens.assign(total * kTokens, 0);
#else
  c.tokens.assign(kTokens, 0);
#endif
  for (uint64_t k = 0; k < total; ++k) {
    c.blocks_left = c.tokens.size() / kTokens > 1 ? total - 1 - k : 0;
    const uint64_t b = order == Order::random    ? shuffled[k]
                       : order == Order::reverse ? total - 1 - k
                                                 : k;
    c.bid = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
    // two sets of fibers by turns: no CUDA thread of a block is taken for one of the block before
    // it
    c.fibers.swap(c.others);
    while (c.fibers.size() < n) c.fibers.push_back(make_fiber());
    forget_shared();
    fill(__start_lx_shared, __stop_lx_shared);
#if !defined(__SANITIZE_THREAD__)
    bytes.clear();  // the race detector must not see the host free it early
#endif
    if (smem) {
      bytes.emplace_back(static_cast<char*>(std::aligned_alloc(128, (smem + 127) / 128 * 128)),
                         &std::free);
      c.dyn = bytes.back().get();
      fill(static_cast<char*>(c.dyn), static_cast<char*>(c.dyn) + smem);
#if defined(__SANITIZE_ADDRESS__)
      ASAN_POISON_MEMORY_REGION(static_cast<char*>(c.dyn) + smem, (smem + 127) / 128 * 128 - smem);
#endif
    }
    hb_release(&c.start_token);
    try {
      run_block(c);
    } catch (const Error&) {  // fibers stuck inside the kernel are given up
      async_forget();
      for (Fiber& f : c.fibers) drop(f);
      c.fibers.clear();
      throw;
    }
  }
  hb_acquire(&c.sync_token);
}
}  // namespace emul

#define threadIdx (::emul::tid())
#define blockIdx (::emul::bid())
#define blockDim (::emul::bdim())
#define gridDim (::emul::gdim())
#define warpSize 32
#define __syncthreads() ::emul::barrier(__LINE__)
#define __syncwarp \
  ::emul::SyncWarp { __LINE__ }
#define __shfl_sync(...) ::emul::shfl(__LINE__, 0, __VA_ARGS__)
#define __shfl_up_sync(...) ::emul::shfl(__LINE__, 1, __VA_ARGS__)
#define __shfl_down_sync(...) ::emul::shfl(__LINE__, 2, __VA_ARGS__)
#define __shfl_xor_sync(...) ::emul::shfl(__LINE__, 3, __VA_ARGS__)
#define __ballot_sync(m, p) ::emul::ballot(__LINE__, m, p)
#define __any_sync(m, p) (::emul::ballot(__LINE__, m, p) != 0)
#define __all_sync(m, p) (::emul::ballot(__LINE__, m, p) == (m))

namespace emul {
struct SyncWarp {
  int line;
  void operator()(unsigned mask = 0xffffffffu) const { meet<char>(mask, 0, line, true); }
};
template <class T>
T shfl(int line, int kind, unsigned mask, T v, int arg, int width = 32) {
  const auto& s = meet<T>(mask, v, line);
  Hidden hidden;
  const int lane = int(lane_id()), base = lane / width * width, in = lane - base;
  int src = kind == 0   ? base + (arg & (width - 1))
            : kind == 1 ? (in - arg >= 0 ? lane - arg : lane)
            : kind == 2 ? (in + arg < width ? lane + arg : lane)
                        : ((lane ^ arg) < base + width ? lane ^ arg : lane);
  if (!(s.present >> src & 1u))
    fail("shuffle reads lane " + std::to_string(src) +
         ", which has returned or is not in the mask (line " + std::to_string(line) + ")");
  T out;
  std::memcpy(&out, s.v[src], sizeof(T));
  return out;
}
// What a tensor core does with exact products is not specified beyond single precision: two models.
//   nearest:  one rounding per instruction, the best case;
//   truncate: in blocks of `block` products, each addend cut to 24 bits below the largest exponent
//   and the sum
//             cut to single precision: no guard bits at all, the worst case seen in measurements of
//             the hardware.
enum class Accumulate { nearest, truncate };
inline Accumulate accumulate_model = Accumulate::nearest;
inline float cut_to_float(double v) {  // round towards zero
  float f = static_cast<float>(v);
  return std::fabs(double(f)) > std::fabs(v) ? std::nextafter(f, 0.0f) : f;
}
inline float accumulate(float c, const float* a, const float* b, int k, int block) {
  double sum = c;
  for (int i = 0; i < k; ++i) sum += double(a[i]) * b[i];
  if (accumulate_model == Accumulate::nearest || !std::isfinite(sum))
    return static_cast<float>(sum);
  for (int i = 0; i < k; i += block) {
    double top = std::fabs(double(c));
    for (int j = i; j < i + block; ++j) top = std::max(top, std::fabs(double(a[j]) * b[j]));
    if (top == 0) continue;
    const double unit = std::ldexp(1.0, std::ilogb(top) - 23);
    double cut = std::trunc(c / unit);
    for (int j = i; j < i + block; ++j) cut += std::trunc(double(a[j]) * b[j] / unit);
    c = cut_to_float(cut * unit);
  }
  return c;
}
inline unsigned ballot(int line, unsigned mask, int pred) {
  const auto& s = meet<unsigned char>(mask, pred != 0, line);
  Hidden hidden;
  unsigned r = 0;
  for (int l = 0; l < 32; ++l)
    if (s.present >> l & 1u) r |= unsigned(s.v[l][0]) << l;
  return r;
}
}  // namespace emul

// ---- atomics, fences, intrinsics
// --------------------------------------------------------------------------- acquire-release, so
// that the race detector takes "fence, then atomic" for the synchronisation it is
template <class T, class F>
T emul_rmw(T* p, F f) {
  T old, now;
  __atomic_load(p, &old, __ATOMIC_ACQUIRE);
  do now = f(old);
  while (!__atomic_compare_exchange(p, &old, &now, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
  return old;
}
template <class T>
T atomicAdd(T* p, std::common_type_t<T> v) {
  return emul_rmw(p, [&](T o) { return T(o + v); });
}
template <class T>
T atomicMax(T* p, std::common_type_t<T> v) {
  return emul_rmw(p, [&](T o) { return o > v ? o : v; });
}
template <class T>
T atomicMin(T* p, std::common_type_t<T> v) {
  return emul_rmw(p, [&](T o) { return o < v ? o : v; });
}
template <class T>
T atomicExch(T* p, std::common_type_t<T> v) {
  return emul_rmw(p, [&](T) { return v; });
}
template <class T>
T atomicCAS(T* p, std::common_type_t<T> c, std::common_type_t<T> v) {
  return emul_rmw(p, [&](T o) { return o == c ? v : o; });
}
inline unsigned atomicInc(unsigned* p, unsigned v) {
  return emul_rmw(p, [&](unsigned o) { return o >= v ? 0u : o + 1; });
}
inline void __threadfence() {}
inline void __threadfence_block() {}
template <class T>
T __ldg(const T* p) {
  return *p;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
inline float __expf(float v) { return std::exp(v); }
inline float __logf(float v) { return std::log(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline float __int_as_float(int v) {
  float f;
  std::memcpy(&f, &v, 4);
  return f;
}
inline float __uint_as_float(unsigned v) {
  float f;
  std::memcpy(&f, &v, 4);
  return f;
}
inline unsigned __float_as_uint(float v) {
  unsigned f;
  std::memcpy(&f, &v, 4);
  return f;
}
inline int __float_as_int(float v) {
  int f;
  std::memcpy(&f, &v, 4);
  return f;
}
using std::max;
using std::min;
