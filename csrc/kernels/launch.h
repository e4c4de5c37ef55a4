// The one place that knows how a CUDA kernel is launched: nvcc's <<<>>>, or the tests' emulation
// of the execution model on the host.
#pragma once

#ifdef LX_EMULATE_CUDA
#include "cuda_host_emulation.h"
namespace landscapex::cuda {
using emul::launch;
}
#else
#include <cuda_runtime.h>
// Shared memory whose size the launch says, as an array.
#define LX_DYNAMIC_SHARED(T, name)                           \
  extern __shared__ __align__(16) unsigned char lx_shared[]; \
  T* name = reinterpret_cast<T*>(lx_shared)
#ifdef __CUDACC__
namespace landscapex::cuda {
template <typename... P, typename... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
            A&&... arguments) {
  // clang-format off
  kernel<<<grid, block, shared, stream>>>(static_cast<P>(arguments)...);
  // clang-format on
}
}  // namespace landscapex::cuda
#endif
#endif
