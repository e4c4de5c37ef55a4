// landscapex::filter_normalize_: checks, tables, dispatch, registration. No arithmetic.
#include "../kernels/filter_normalize.h"

#include <vector>

#include "common.h"

namespace landscapex {
namespace {

void check_tensors(const Tensor& directions, const Tensor& center, const Tensor& runs,
                   const Tensor& groups, const Tensor& norms) {
  LX_CHECK(
      directions.dim() == 2 && directions.is_contiguous() && is_floating(directions.scalar_type()),
      "filter_normalize_: directions must be a contiguous floating [K, P] tensor, got ",
      words_for(directions));
  LX_CHECK(
      center.dim() == 1 && center.is_contiguous() && center.size(0) == directions.size(1) &&
          center.scalar_type() == directions.scalar_type() && same_device(center, directions),
      "filter_normalize_: center must be a contiguous [P] tensor with the dtype and device of ",
      "directions and P = ", directions.size(1), ", got ", words_for(center));
  LX_CHECK(runs.dim() == 2 && runs.size(1) == 4 && runs.is_contiguous() && runs.is_cpu() &&
               runs.scalar_type() == ScalarType::Long,
           "filter_normalize_: runs must be a contiguous int64 [R, 4] tensor on cpu, got ",
           words_for(runs));
  LX_CHECK(groups.dim() == 1 && groups.numel() > 0 && groups.is_contiguous() && groups.is_cpu() &&
               groups.scalar_type() == ScalarType::Long,
           "filter_normalize_: groups must be a contiguous int64 [F + 1] tensor on cpu, got ",
           words_for(groups));
  LX_CHECK(norms.dim() == 2 && norms.size(0) == directions.size(0) + 1 &&
               norms.size(1) == groups.numel() - 1 && norms.is_contiguous() &&
               norms.scalar_type() == ScalarType::Double && same_device(norms, directions),
           "filter_normalize_: norms must be a contiguous float64 [K + 1, F] tensor on ",
           device_of(directions), " with K + 1 = ", directions.size(0) + 1,
           " and F = ", groups.numel() - 1, ", got ", words_for(norms));
}

// The end of a run, or -1 where the run is not inside [0, size) or its pieces overlap.
int64_t end_of(const Run& run, int64_t size) {
  if (run.offset < 0 || run.count < 0 || run.stride < 0 || run.inner < 0) return -1;
  if (run.count == 0 || run.inner == 0) return run.offset <= size ? run.offset : -1;
  if (run.count > 1 && run.stride < run.inner) return -1;
  int64_t end = 0;
  if (__builtin_mul_overflow(run.count - 1, run.stride, &end) ||
      __builtin_add_overflow(end, run.offset, &end) ||
      __builtin_add_overflow(end, run.inner, &end) || end > size)
    return -1;
  return end;
}

// Segments of every run, running totals: [R + 1].
std::vector<int64_t> check_runs(const Tensor& runs, int64_t size) {
  const Run* rows = static_cast<const Run*>(runs.const_data_ptr());
  std::vector<int64_t> segments = {0};
  segments.reserve(static_cast<size_t>(runs.size(0)) + 1);
  for (int64_t r = 0; r < runs.size(0); ++r) {
    const Run& run = rows[r];
    LX_CHECK(end_of(run, size) >= 0,
             "filter_normalize_: runs must be rows (offset, count, stride, inner) of entries in ",
             "[0, P) with P = ", size, " and stride >= inner, got (", run.offset, ", ", run.count,
             ", ", run.stride, ", ", run.inner, ") in row ", r);
    segments.push_back(segments.back() + num_segments(run.count * run.inner));
  }
  return segments;
}

void check_groups(const Tensor& groups, int64_t num_runs) {
  const int64_t* rows = static_cast<const int64_t*>(groups.const_data_ptr());
  const int64_t last = groups.numel() - 1;
  bool rising = rows[0] == 0 && rows[last] == num_runs;
  for (int64_t f = 0; f < last && rising; ++f) rising = rows[f] <= rows[f + 1];
  LX_CHECK(rising, "filter_normalize_: groups must rise from 0 to R = ", num_runs,
           ", got a table from ", rows[0], " to ", rows[last],
           rows[0] == 0 && rows[last] == num_runs ? " that falls in between" : "");
}

#if defined(LX_CUDA) || defined(LX_EMULATE_CUDA)
// The tables, one after the other, in one copy to the device.
Tensor upload(const Tensor& runs, const Tensor& groups, const std::vector<int64_t>& segments,
              const Tensor& like) {
  std::vector<int64_t> table;
  const int64_t* rows = static_cast<const int64_t*>(runs.const_data_ptr());
  const int64_t* first = static_cast<const int64_t*>(groups.const_data_ptr());
  table.insert(table.end(), rows, rows + runs.numel());
  table.insert(table.end(), first, first + groups.numel());
  table.insert(table.end(), segments.begin(), segments.end());
  const Tensor host = torch::stable::from_blob(
      table.data(), {static_cast<int64_t>(table.size())}, {1},
      torch::stable::Device(torch::headeronly::DeviceType::CPU), ScalarType::Long);
  return torch::stable::to(host, like.device(), /*non_blocking=*/false, /*copy=*/true);
}

void run(FilterNormalizeArgs args, const Tensor& runs, const Tensor& groups,
         const std::vector<int64_t>& segments, const Tensor& directions) {
  const DeviceGuard guard(directions.get_device_index());
  const Tensor table = upload(runs, groups, segments, directions);
  const int64_t* rows = static_cast<const int64_t*>(table.const_data_ptr());
  args.runs = reinterpret_cast<const Run*>(rows);
  args.groups = rows + runs.numel();
  args.segments = args.groups + groups.numel();
  check_launch("filter_normalize_", cuda::filter_normalize(args, stream_of(directions)));
}
#else
std::vector<int64_t> group_of_runs(const FilterNormalizeArgs& args) {
  std::vector<int64_t> group_of(static_cast<size_t>(args.num_runs));
  for (int64_t f = 0; f < args.num_groups; ++f)
    for (int64_t r = args.groups[f]; r < args.groups[f + 1]; ++r)
      group_of[static_cast<size_t>(r)] = f;
  return group_of;
}

void run(FilterNormalizeArgs args, const Tensor& runs, const Tensor& groups,
         const std::vector<int64_t>& segments, const Tensor&) {
  constexpr int64_t kGrain = 32;  // segments
  args.runs = static_cast<const Run*>(runs.const_data_ptr());
  args.groups = static_cast<const int64_t*>(groups.const_data_ptr());
  args.segments = segments.data();
  const std::vector<int64_t> group_of = group_of_runs(args);
  const int64_t total = segments.back();
  std::vector<double> sums(static_cast<size_t>((args.num_directions + 1) * total));
  torch::stable::parallel_for(0, total, kGrain, [&](int64_t first, int64_t last) {
    cpu::sum_segments(args, sums.data(), first, last);
  });
  torch::stable::parallel_for(0, args.num_groups, 1024, [&](int64_t first, int64_t last) {
    cpu::sum_groups(args, sums.data(), first, last);
  });
  torch::stable::parallel_for(0, total, kGrain, [&](int64_t first, int64_t last) {
    cpu::scale_segments(args, group_of.data(), first, last);
  });
}
#endif

void filter_normalize_(const Tensor& directions, const Tensor& center, const Tensor& runs,
                       const Tensor& groups, const Tensor& norms, bool elementwise) {
  check_tensors(directions, center, runs, groups, norms);
  const std::vector<int64_t> segments = check_runs(runs, center.size(0));
  check_groups(groups, runs.size(0));
  FilterNormalizeArgs args = {};
  args.directions = directions.mutable_data_ptr();
  args.center = center.const_data_ptr();
  args.norms = static_cast<double*>(norms.mutable_data_ptr());
  args.num_directions = directions.size(0);
  args.num_params = center.size(0);
  args.num_runs = runs.size(0);
  args.num_groups = groups.numel() - 1;
  args.dtype = dtype_of(directions);
  args.elementwise = elementwise;
  run(args, runs, groups, segments, directions);
}

}  // namespace
}  // namespace landscapex

STABLE_TORCH_LIBRARY_IMPL(LX_LIBRARY, LX_KEY, m) {
  m.impl("filter_normalize_", TORCH_BOX(&landscapex::filter_normalize_));
}
