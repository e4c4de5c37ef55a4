// landscapex::perturb_: checks, dispatch, registration. No arithmetic.
#include "../kernels/perturb.h"

#include <cmath>
#include <vector>

#include "common.h"

namespace landscapex {
namespace {

void check_flat(const Tensor& center, const Tensor& directions,
                const std::vector<double>& coordinates) {
  LX_CHECK(center.dim() == 1 && center.is_contiguous() && is_master(center.scalar_type()),
           "perturb_: center must be a contiguous float32 or float64 [P] tensor, got ",
           words_for(center));
  LX_CHECK(directions.dim() == 2 && directions.is_contiguous() &&
               directions.size(1) == center.size(0) &&
               directions.scalar_type() == center.scalar_type() && same_device(directions, center),
           "perturb_: directions must be a contiguous [K, P] tensor with the dtype and device of ",
           "center and P = ", center.size(0), ", got ", words_for(directions));
  LX_CHECK(static_cast<int64_t>(coordinates.size()) == directions.size(0),
           "perturb_: coordinates must be K = ", directions.size(0), " numbers, got ",
           coordinates.size());
  for (const double c : coordinates)
    LX_CHECK(std::isfinite(c), "perturb_: coordinates must be finite, got ", c);
}

std::vector<PerturbTensor> check_params(const std::vector<Tensor>& params, const Tensor& center,
                                        const Tensor& directions) {
  std::vector<PerturbTensor> tensors;
  tensors.reserve(params.size());
  int64_t start = 0;
  for (size_t t = 0; t < params.size(); ++t) {
    const Tensor& param = params[t];
    LX_CHECK(
        param.is_contiguous() && is_floating(param.scalar_type()) && same_device(param, center),
        "perturb_: params must be contiguous floating tensors on ", device_of(center), ", got ",
        words_for(param), " at position ", t);
    const int64_t numel = param.numel();
    if (numel == 0) continue;
    LX_CHECK(!overlap(param, center) && !overlap(param, directions),
             "perturb_: params must not share memory with center or directions, got such a tensor ",
             "at position ", t);
    tensors.push_back({param.mutable_data_ptr(), start, dtype_of(param)});
    start += numel;
  }
  LX_CHECK(start == center.size(0), "perturb_: params must have P = ", center.size(0),
           " entries in all, got ", start);
  return tensors;
}

#if defined(LX_CUDA) || defined(LX_EMULATE_CUDA)
void run(const PerturbArgs& args, const Tensor& center) {
  const DeviceGuard guard(center.get_device_index());
  Tensor coordinates;  // more than fit the launch: rare, and then worth a copy
  const double* pointer = nullptr;
  if (args.num_directions > cuda::kPerturbCoordinates) {
    const Tensor host = torch::stable::from_blob(
        const_cast<double*>(args.coordinates), {args.num_directions}, {1},
        torch::stable::Device(torch::headeronly::DeviceType::CPU), ScalarType::Double);
    coordinates = torch::stable::to(host, center.device());
    pointer = static_cast<const double*>(coordinates.const_data_ptr());
  }
  check_launch("perturb_", cuda::perturb(args, pointer, stream_of(center)));
}
#else
constexpr int64_t kChunk = 16384;  // entries; chunks begin at the same places for any threads

void run(const PerturbArgs& args, const Tensor&) {
  const int64_t chunks = (args.num_params + kChunk - 1) / kChunk;
  torch::stable::parallel_for(0, chunks, 2, [&](int64_t first, int64_t last) {
    const int64_t end = last * kChunk;
    cpu::perturb(args, first * kChunk, end < args.num_params ? end : args.num_params);
  });
}
#endif

void perturb_(const std::vector<Tensor>& params, const Tensor& center, const Tensor& directions,
              const std::vector<double>& coordinates) {
  check_flat(center, directions, coordinates);
  const std::vector<PerturbTensor> tensors = check_params(params, center, directions);
  if (tensors.empty()) return;
  const PerturbArgs args = {tensors.data(),          static_cast<int64_t>(tensors.size()),
                            center.const_data_ptr(), directions.const_data_ptr(),
                            coordinates.data(),      directions.size(0),
                            center.size(0),          dtype_of(center)};
  run(args, center);
}

}  // namespace
}  // namespace landscapex

STABLE_TORCH_LIBRARY_IMPL(LX_LIBRARY, LX_KEY, m) {
  m.impl("perturb_", TORCH_BOX(&landscapex::perturb_));
}
