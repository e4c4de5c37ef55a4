// Activations: what is applied to a value before it is stored.
#pragma once

#include "math.h"

namespace landscapex::program::LX_ISA {

// In place, to `n` numbers (a multiple of 16).
void activate(const Act& act, float* values, int64_t n);
// To one vector: for epilogues. Where many numbers lie together, the function above is faster.
Vec activate(const Act& act, Vec v);

struct Unchanged {
  LX_MEMBER Vec operator()(Vec v) const { return v; }
};
struct Rectified {
  LX_MEMBER Vec operator()(Vec v) const { return relu(v); }
};
struct Activated {
  Act act;
  LX_MEMBER Vec operator()(Vec v) const { return activate(act, v); }
};

// Calls `f` with one of the three, so that its loop is compiled for each.
template <typename F>
LX_INLINE void with_activation(const Act& act, F f) {
  switch (act.name) {
    case Activation::none:
      return f(Unchanged{});
    case Activation::relu:
      return f(Rectified{});
    default:
      return f(Activated{act});
  }
}

}  // namespace landscapex::program::LX_ISA
