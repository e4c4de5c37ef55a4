// In place of the emulation of the same name: writes down what is launched, and runs nothing.
#pragma once

#include <vector>

#define launch launch_emulated
#define cudaMemsetAsync memset_emulated
#include "../../tests/emulation/cuda_host_emulation.h"
#undef launch
#undef cudaMemsetAsync

namespace emul {

struct Launch {
  int64_t kernel;  // from the start of the library; 0: memory is set
  int64_t grid[3];
  int64_t threads, shared;  // of a block, and the bytes that the launch gives it
};

void write_down(const void* kernel, dim3 grid, dim3 block, size_t shared);

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, cudaStream_t, A&&...) {
  write_down(reinterpret_cast<const void*>(kernel), grid, block, shared);
}

}  // namespace emul

inline cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t = nullptr) {
  emul::write_down(nullptr, dim3(1), dim3(1), 0);
  return cudaSuccess;
}
