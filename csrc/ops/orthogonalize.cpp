// landscapex::orthogonalize_: checks, scratch, dispatch, registration. No arithmetic.
#include "../kernels/orthogonalize.h"

#include "common.h"

namespace landscapex {
namespace {

void check(const Tensor& w, const Tensor& basis, const Tensor& coefficients) {
  LX_CHECK(w.dim() == 1 && w.is_contiguous() && is_master(w.scalar_type()),
           "orthogonalize_: w must be a contiguous float32 or float64 [P] tensor, got ",
           words_for(w));
  LX_CHECK(basis.dim() == 2 && basis.is_contiguous() && basis.size(1) == w.size(0) &&
               basis.scalar_type() == w.scalar_type() && same_device(basis, w),
           "orthogonalize_: basis must be a contiguous [K, P] tensor with the dtype and device of ",
           "w and P = ", w.size(0), ", got ", words_for(basis));
  LX_CHECK(coefficients.dim() == 1 && coefficients.size(0) == basis.size(0) &&
               coefficients.is_contiguous() && coefficients.scalar_type() == ScalarType::Double &&
               same_device(coefficients, w),
           "orthogonalize_: coefficients must be a contiguous float64 [K] tensor on ", device_of(w),
           " with K = ", basis.size(0), ", got ", words_for(coefficients));
  LX_CHECK(!overlap(w, basis) && !overlap(w, coefficients) && !overlap(basis, coefficients),
           "orthogonalize_: w, basis and coefficients must not share memory, got two that do");
}

#if defined(LX_CUDA) || defined(LX_EMULATE_CUDA)
void run(const OrthogonalizeArgs& args, const Tensor& w) {
  const DeviceGuard guard(w.get_device_index());
  check_launch("orthogonalize_", cuda::orthogonalize(args, stream_of(w)));
}
#else
void run(const OrthogonalizeArgs& args, const Tensor&) {
  constexpr int64_t kGrain = 4;  // chunks
  const int64_t chunks = num_chunks(args.num_params);
  const auto sum = [&](bool again) {
    torch::stable::parallel_for(0, args.num_rows, 64, [&](int64_t first, int64_t last) {
      cpu::sum_chunks(args, again, first, last);
    });
  };
  const auto take = [&](bool dots) {
    torch::stable::parallel_for(0, chunks, kGrain, [&](int64_t first, int64_t last) {
      cpu::take_chunks(args, dots, first, last);
    });
  };
  torch::stable::parallel_for(
      0, chunks, kGrain, [&](int64_t first, int64_t last) { cpu::dot_chunks(args, first, last); });
  sum(false);
  take(true);
  sum(true);
  take(false);
}
#endif

void orthogonalize_(const Tensor& w, const Tensor& basis, const Tensor& coefficients) {
  check(w, basis, coefficients);
  const int64_t rows = basis.size(0), chunks = num_chunks(w.size(0));
  const Tensor scratch = torch::stable::new_empty(coefficients, {rows * chunks + rows});
  OrthogonalizeArgs args = {};
  args.w = w.mutable_data_ptr();
  args.basis = basis.const_data_ptr();
  args.coefficients = static_cast<double*>(coefficients.mutable_data_ptr());
  args.sums = static_cast<double*>(scratch.mutable_data_ptr());
  args.found = args.sums + rows * chunks;
  args.num_rows = rows;
  args.num_params = w.size(0);
  args.dtype = dtype_of(w);
  run(args, w);
}

}  // namespace
}  // namespace landscapex

STABLE_TORCH_LIBRARY_IMPL(LX_LIBRARY, LX_KEY, m) {
  m.impl("orthogonalize_", TORCH_BOX(&landscapex::orthogonalize_));
}
