// Compiled once for each instruction set, with LX_ISA naming it.
#include "perturb.h"

#include "float_environment.h"
#include "search.h"

namespace landscapex::cpu::LX_ISA {
namespace {

constexpr int64_t kBlock = 512;  // entries whose float64 sums stay in the first-level cache

template <typename C, typename T>
struct Span {
  T* __restrict__ out;
  const C* __restrict__ center;
  const C* __restrict__ directions;  // row k begins k * stride further
  int64_t stride;
  const double* __restrict__ coordinates;
  int64_t num_directions;
};

// The number of directions that plots have is known to the compiler: one pass over memory.
template <int K, typename C, typename T>
void write_few(const Span<C, T>& span, int64_t n) {
  double c[K + 1] = {};
  for (int k = 0; k < K; ++k) c[k] = span.coordinates[k];
  const C* __restrict__ center = span.center;
  const C* __restrict__ d = span.directions;
  const int64_t stride = span.stride;
  T* __restrict__ out = span.out;
  for (int64_t i = 0; i < n; ++i) {
    double sum = center[i];
    for (int k = 0; k < K; ++k) sum = add_product(sum, c[k], d[k * stride + i]);
    out[i] = narrow<T>(static_cast<C>(sum));
  }
}

template <typename C, typename T>
void write_many(const Span<C, T>& span, int64_t n) {
  double sums[kBlock];
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t size = n - begin < kBlock ? n - begin : kBlock;
    for (int64_t i = 0; i < size; ++i) sums[i] = span.center[begin + i];
    for (int64_t k = 0; k < span.num_directions; ++k) {
      const C* __restrict__ d = span.directions + k * span.stride + begin;
      const double c = span.coordinates[k];
      for (int64_t i = 0; i < size; ++i) sums[i] = add_product(sums[i], c, d[i]);
    }
    for (int64_t i = 0; i < size; ++i) span.out[begin + i] = narrow<T>(static_cast<C>(sums[i]));
  }
}

template <typename C, typename T>
void write(const PerturbArgs& args, void* data, int64_t local, int64_t flat, int64_t n) {
  const Span<C, T> span = {static_cast<T*>(data) + local,
                           static_cast<const C*>(args.center) + flat,
                           static_cast<const C*>(args.directions) + flat,
                           args.num_params,
                           args.coordinates,
                           args.num_directions};
  switch (args.num_directions) {
    case 0:
      return write_few<0>(span, n);
    case 1:
      return write_few<1>(span, n);
    case 2:
      return write_few<2>(span, n);
    case 3:
      return write_few<3>(span, n);
    default:
      return write_many(span, n);
  }
}

struct Starts {
  const PerturbTensor* tensors;
  int64_t operator[](int64_t t) const { return tensors[t].start; }
};

template <typename C>
void perturb_from(const PerturbArgs& args, int64_t first, int64_t last) {
  int64_t t = last_not_after(Starts{args.tensors}, args.num_tensors, first);
  for (int64_t flat = first; flat < last; ++t) {
    const PerturbTensor& tensor = args.tensors[t];
    const int64_t end = t + 1 < args.num_tensors ? args.tensors[t + 1].start : args.num_params;
    const int64_t n = (end < last ? end : last) - flat, local = flat - tensor.start;
    switch (tensor.dtype) {
      case Dtype::kFloat16:
        write<C, Half>(args, tensor.data, local, flat, n);
        break;
      case Dtype::kBFloat16:
        write<C, BFloat16>(args, tensor.data, local, flat, n);
        break;
      case Dtype::kFloat32:
        write<C, float>(args, tensor.data, local, flat, n);
        break;
      case Dtype::kFloat64:
        write<C, double>(args, tensor.data, local, flat, n);
        break;
    }
    flat += n;
  }
}

}  // namespace

void perturb(const PerturbArgs& args, int64_t first, int64_t last) {
  if (first >= last) return;
  const FloatEnvironment ieee;
  if (args.dtype == Dtype::kFloat64) {
    perturb_from<double>(args, first, last);
  } else {
    perturb_from<float>(args, first, last);
  }
}

}  // namespace landscapex::cpu::LX_ISA
