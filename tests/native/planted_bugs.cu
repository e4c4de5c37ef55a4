// Kernels with one bug each, chosen with -DBUG=n (0: none): a tiled product, a two-level sum and a
// histogram. They show that the emulation notices barriers, shared tiles and atomics gone wrong.
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "launch.h"

namespace {

constexpr int kTile = 64, kDepth = 16;

#if BUG == 9
constexpr int kPitch = kTile + 1;  // float4 loads of odd rows are misaligned
#else
constexpr int kPitch = kTile + 4;
#endif

__global__ void product_kernel(const float* a, const float* b, float* c, int m, int n, int k) {
  __shared__ float sa[kDepth][kPitch];
  __shared__ float sb[kDepth][kTile];
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int row0 = blockIdx.y * kTile, col0 = blockIdx.x * kTile;
  float sums[4][4] = {};
  for (int k0 = 0; k0 < k; k0 += kDepth) {
    for (int i = threadIdx.x; i < kTile * kDepth; i += 256) {
      const int r = i / kDepth, ka = i % kDepth, kb = i / kTile, col = i % kTile;
      const bool in_a = BUG == 3 || (row0 + r < m && k0 + ka < k);
      const bool in_b = k0 + kb < k && col0 + col < n;
      sa[ka][r] = in_a ? a[(row0 + r) * k + k0 + ka] : 0.0f;
#if BUG == 10
      if (!in_b) continue;
#endif
      sb[kb + (BUG == 4 && kb == kDepth - 1)][col] = in_b ? b[(k0 + kb) * n + col0 + col] : 0.0f;
    }
#if BUG == 6
    if (threadIdx.x < 128) __syncthreads();
#elif BUG != 1
    __syncthreads();
#endif
    for (int kk = 0; kk < kDepth; ++kk) {
      const float4 va = *reinterpret_cast<const float4*>(&sa[kk][ty * 4]);
      const float4 vb = *reinterpret_cast<const float4*>(&sb[kk][tx * 4]);
      const float ra[4] = {va.x, va.y, va.z, va.w}, rb[4] = {vb.x, vb.y, vb.z, vb.w};
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) sums[i][j] += ra[i] * rb[j];
    }
#if BUG != 2
    __syncthreads();
#endif
  }
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      const int r = row0 + ty * 4 + i, col = col0 + tx * 4 + j;
      if (r < m && col < n) c[r * n + col] = sums[i][j];
    }
}

__device__ float warp_sum(float v) {
  for (int half = 16; half > 0; half /= 2) v += __shfl_down_sync(0xffffffffu, v, half);
  return v;
}

__global__ void sum_kernel(const float* x, float* out, int n) {
  LX_DYNAMIC_SHARED(float, warps);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float v = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) v += x[i];
  v = warp_sum(v);
#if BUG == 8
  if (lane < 20) v += __shfl_down_sync(0xffffffffu, v, 1);
#endif
  if (lane == 0) warps[warp + (BUG == 12)] = v;
#if BUG != 11
  __syncthreads();
#endif
  if (warp != 0) return;
  v = warp_sum(lane < int(blockDim.x) / 32 ? warps[lane] : 0.0f);
#if BUG == 5
  if (lane == 0) *out += v;
#elif BUG == 7
  *out = v;
#else
  if (lane == 0) atomicAdd(out, v);
#endif
}

__global__ void histogram_kernel(const int* x, int* counts, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
#if BUG == 13
    counts[x[i]] += 1;
#else
    atomicAdd(&counts[x[i]], 1);
#endif
  }
}

std::mt19937 generator(0);
std::vector<float> normals(int n) {
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<size_t>(n));
  for (float& v : out) v = normal(generator);
  return out;
}

bool product_is_right(int m, int n, int k) {
  const auto a = normals(m * k), b = normals(k * n);
  std::vector<float> c(static_cast<size_t>(m * n));
  landscapex::cuda::launch(product_kernel, dim3((n + 63) / 64, (m + 63) / 64), 256, 0, nullptr,
                           a.data(), b.data(), c.data(), m, n, k);
  bool right = true;
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j) {
      double sum = 0;
      for (int q = 0; q < k; ++q) sum += double(a[i * k + q]) * b[q * n + j];
      right &= std::fabs(sum - c[i * n + j]) < 1e-4;
    }
  return right;
}

bool sum_is_right() {
  const auto x = normals(10007);
  float out = 0;
  double want = 0;
  for (const float v : x) want += v;
  landscapex::cuda::launch(sum_kernel, 7, 256, 8 * sizeof(float), nullptr, x.data(), &out,
                           int(x.size()));
  return std::fabs(out - want) < 1e-2;
}

bool histogram_is_right() {
  std::vector<int> x(5000), counts(16), want(16);
  for (int& v : x) ++want[v = int(generator() % 16)];
  landscapex::cuda::launch(histogram_kernel, 1, 256, 0, nullptr, x.data(), counts.data(),
                           int(x.size()));
  return counts == want;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string order = argc > 1 ? argv[1] : "forward";
  emul::order = order == "reverse"  ? emul::Order::reverse
                : order == "random" ? emul::Order::random
                : order == "warps"  ? emul::Order::warps
                                    : emul::Order::forward;
  try {
    const bool right = product_is_right(70, 65, 50) && product_is_right(33, 20, 10) &&
                       sum_is_right() && histogram_is_right();
    std::puts(right ? "all right" : "WRONG");
    return !right;
  } catch (const emul::Error& error) {
    std::printf("ERROR: %s\n", error.what());
    return 1;
  }
}
