// Four lanes, which a thread handles together: one access of 16 bytes.
#pragma once

#include "activation.cuh"

namespace landscapex::program::cuda {

constexpr int kQuad = 4;

// Blocks of a multiprocessor that kernels leave registers for. Where they do not say it, the
// compiler saves registers by spilling some.
constexpr int kBlocks = 3;

struct Quad {
  float v[kQuad];
};

__device__ __forceinline__ Quad load(const float* p) {
  const float4 four = *reinterpret_cast<const float4*>(p);
  return {{four.x, four.y, four.z, four.w}};
}
__device__ __forceinline__ void store(float* p, const Quad& q) {
  *reinterpret_cast<float4*>(p) = make_float4(q.v[0], q.v[1], q.v[2], q.v[3]);
}
__device__ __forceinline__ Quad splat(float x) { return {{x, x, x, x}}; }

// f of each lane of some quads.
template <typename F>
__device__ __forceinline__ Quad each(F f, const Quad& a) {
  Quad out;
#pragma unroll
  for (int i = 0; i < kQuad; ++i) out.v[i] = f(a.v[i]);
  return out;
}
template <typename F>
__device__ __forceinline__ Quad each(F f, const Quad& a, const Quad& b) {
  Quad out;
#pragma unroll
  for (int i = 0; i < kQuad; ++i) out.v[i] = f(a.v[i], b.v[i]);
  return out;
}
template <typename F>
__device__ __forceinline__ Quad each(F f, const Quad& a, const Quad& b, const Quad& c) {
  Quad out;
#pragma unroll
  for (int i = 0; i < kQuad; ++i) out.v[i] = f(a.v[i], b.v[i], c.v[i]);
  return out;
}

__device__ __forceinline__ Quad fma(const Quad& a, const Quad& b, const Quad& c) {
  return each([](float x, float y, float z) { return fmaf(x, y, z); }, a, b, c);
}
// By itself, so that a kernel has the many functions once, and pays with none of its registers.
__device__ __noinline__ inline Quad activate_by_call(Act act, Quad q) {
  apply(act, [&q](auto f) { q = each(f, q); });
  return q;
}
__device__ __forceinline__ Quad activate(const Act& act, const Quad& q) {
  if (!is_cheap(act)) return activate_by_call(act, q);
  return each([&act](float x) { return activate_cheaply(act, x); }, q);
}

// Reads four lanes of a buffer in one cell; combines its sets if it is AFFINE.
class QuadReader {
 public:
  __device__ QuadReader(const Ref& ref, const Cells& cells, const Cell& cell)
      : base_(address(ref, cell)),
        per_set_(ref.per_set),
        num_sets_(ref.per_set == 0 ? 1 : static_cast<int>(cells.num_sets)),
        coordinates_(cells.coordinates + cell.point * (cells.num_sets - 1)) {}
  // Those from an offset in floats on, a multiple of four.
  __device__ __forceinline__ Quad operator()(int offset) const {
    Quad sum = load(base_ + offset);
    for (int k = 1; k < num_sets_; ++k) {
      const Quad c = splat(static_cast<float>(coordinates_[k - 1]));
      sum = fma(c, load(base_ + k * per_set_ + offset), sum);
    }
    return sum;
  }

 private:
  const float* base_;
  int64_t per_set_;
  int num_sets_;
  const double* coordinates_;
};

// The items of a share as rows of `width` items each, without a division for each item. A cell has
// fewer than 2^31 numbers in a buffer, so that 32 bits count its items.
class Walk {
 public:
  __device__ __forceinline__ Walk(const Share& share, int64_t width)
      : width_(static_cast<uint32_t>(width)),
        row_(static_cast<uint32_t>(share.first) / width_),
        column_(static_cast<uint32_t>(share.first) - row_ * width_),
        rows_(static_cast<uint32_t>(share.stride) / width_),
        columns_(static_cast<uint32_t>(share.stride) - rows_ * width_) {}
  __device__ __forceinline__ int row() const { return static_cast<int>(row_); }
  __device__ __forceinline__ int column() const { return static_cast<int>(column_); }
  __device__ __forceinline__ void next() {
    row_ += rows_;
    column_ += columns_;
    if (column_ < width_) return;
    column_ -= width_;
    ++row_;
  }

 private:
  uint32_t width_, row_, column_, rows_, columns_;
};

// Calls `f(row, lane)` for `rows` rows of a buffer, four lanes at a time.
template <typename F>
__device__ __forceinline__ void for_quads(int64_t rows, const Cells& cells, const Share& share,
                                          F f) {
  for (Walk walk(share, cells.lanes / kQuad); walk.row() < rows; walk.next())
    f(walk.row(), walk.column() * kQuad);
}

}  // namespace landscapex::program::cuda
