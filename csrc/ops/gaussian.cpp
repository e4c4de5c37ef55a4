// landscapex::gaussian_: checks, dispatch, registration. No arithmetic.
#include "../kernels/gaussian.h"

#include "common.h"

namespace landscapex {
namespace {

#if defined(LX_CUDA) || defined(LX_EMULATE_CUDA)
void run(const GaussianArgs& args, const Tensor& out) {
  const DeviceGuard guard(out.get_device_index());
  check_launch("gaussian_", cuda::gaussian(args, stream_of(out)));
}
#else
constexpr int64_t kChunk = 8192;  // entries

void run(const GaussianArgs& args, const Tensor&) {
  const int64_t chunks = (args.num + kChunk - 1) / kChunk;
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    const int64_t end = last * kChunk;
    cpu::gaussian(args, first * kChunk, end < args.num ? end : args.num);
  });
}
#endif

void gaussian_(const Tensor& out, int64_t key, int64_t stream, int64_t offset) {
  LX_CHECK(out.dim() == 1 && out.is_contiguous() && is_master(out.scalar_type()),
           "gaussian_: out must be a contiguous float32 or float64 [n] tensor, got ",
           words_for(out));
  int64_t end = 0;
  LX_CHECK(offset >= 0 && !__builtin_add_overflow(offset, out.numel(), &end),
           "gaussian_: offset must be at least 0 with offset + n < 2^63, got ", offset);
  run({out.mutable_data_ptr(), out.numel(), static_cast<uint64_t>(key),
       static_cast<uint64_t>(stream), static_cast<uint64_t>(offset), dtype_of(out)},
      out);
}

}  // namespace
}  // namespace landscapex

STABLE_TORCH_LIBRARY_IMPL(LX_LIBRARY, LX_KEY, m) {
  m.impl("gaussian_", TORCH_BOX(&landscapex::gaussian_));
}
