// Prints what the baseline kernels of the operators give for fixed inputs, as one hash for each:
// the same lines on every processor. Inputs are made of integers, so that no function of the
// system's library takes part.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "filter_normalize.h"
#include "gaussian.h"
#include "orthogonalize.h"
#include "perturb.h"

using namespace landscapex;

namespace {

uint64_t state = 1;

// Knuth's generator of MMIX; a number in (-1, 1) with 24 bits, which every dtype rounds alike.
double next() {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<double>(static_cast<int64_t>(state) >> 40) / (1 << 23);
}

template <typename T>
std::vector<T> numbers(int64_t n) {
  std::vector<T> out(static_cast<size_t>(n));
  for (T& x : out) x = static_cast<T>(next());
  return out;
}

template <typename T>
void print(const char* what, const std::vector<T>& values) {
  uint64_t hash = 14695981039346656037u;  // FNV-1a
  const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
  for (size_t i = 0; i < values.size() * sizeof(T); ++i) hash = (hash ^ bytes[i]) * 1099511628211u;
  std::printf("%s %d bytes: %016llx\n", what, static_cast<int>(sizeof(T)),
              static_cast<unsigned long long>(hash));
}

template <typename T>
constexpr Dtype kDtype = sizeof(T) == 4 ? Dtype::kFloat32 : Dtype::kFloat64;

template <typename T>
void perturb() {
  constexpr int64_t kEntries = 1003, kDirections = 3;
  const auto center = numbers<T>(4 * kEntries);
  const auto directions = numbers<T>(4 * kEntries * kDirections);
  const auto coordinates = numbers<double>(kDirections);
  std::vector<uint16_t> half(kEntries), bfloat(kEntries);
  std::vector<float> single(kEntries);
  std::vector<double> full(kEntries);
  const PerturbTensor tensors[] = {{half.data(), 0, Dtype::kFloat16},
                                   {bfloat.data(), kEntries, Dtype::kBFloat16},
                                   {single.data(), 2 * kEntries, Dtype::kFloat32},
                                   {full.data(), 3 * kEntries, Dtype::kFloat64}};
  const PerturbArgs args = {
      tensors,      4,        center.data(), directions.data(), coordinates.data(), kDirections,
      4 * kEntries, kDtype<T>};
  cpu::perturb(args, 0, args.num_params);
  print("perturb, float16,", half);
  print("perturb, bfloat16,", bfloat);
  print("perturb, float32,", single);
  print("perturb, float64,", full);
}

template <typename T>
void filter_normalize() {
  constexpr int64_t kEntries = 9000, kDirections = 2, kGroups = 3;
  const std::vector<Run> runs = {{0, 1, 27, 27}, {27, 1, 0, 5000}, {5100, 40, 20, 9}};
  const std::vector<int64_t> groups = {0, 1, 2, 3}, group_of = {0, 1, 2};
  std::vector<int64_t> segments = {0};
  for (const Run& run : runs)
    segments.push_back(segments.back() + num_segments(run.count * run.inner));
  const auto center = numbers<T>(kEntries);
  auto directions = numbers<T>(kEntries * kDirections);
  std::vector<double> norms((kDirections + 1) * kGroups);
  std::vector<double> sums(static_cast<size_t>((kDirections + 1) * segments.back()));
  const FilterNormalizeArgs args = {directions.data(), center.data(), runs.data(), groups.data(),
                                    segments.data(),   norms.data(),  kDirections, kEntries,
                                    kGroups,           kGroups,       kDtype<T>,   false};
  cpu::sum_segments(args, sums.data(), 0, segments.back());
  cpu::sum_groups(args, sums.data(), 0, kGroups);
  cpu::scale_segments(args, group_of.data(), 0, segments.back());
  print("filter_normalize, norms,", norms);
  print("filter_normalize, directions,", directions);
}

template <typename T>
void gaussian() {
  std::vector<T> out(100001);
  const GaussianArgs args = {out.data(), static_cast<int64_t>(out.size()), 11, 5, 3, kDtype<T>};
  cpu::gaussian(args, 0, args.num);
  print("gaussian,", out);
}

template <typename T>
void orthogonalize() {
  constexpr int64_t kEntries = 5001, kRows = 3;
  auto vector = numbers<T>(kEntries);
  const auto basis = numbers<T>(kRows * kEntries);
  const int64_t chunks = num_chunks(kEntries);
  std::vector<double> coefficients(kRows), found(kRows);
  std::vector<double> sums(static_cast<size_t>(kRows * chunks));
  const OrthogonalizeArgs args = {vector.data(), basis.data(), coefficients.data(),
                                  sums.data(),   found.data(), kRows,
                                  kEntries,      kDtype<T>};
  cpu::dot_chunks(args, 0, chunks);
  cpu::sum_chunks(args, false, 0, kRows);
  cpu::take_chunks(args, true, 0, chunks);
  cpu::sum_chunks(args, true, 0, kRows);
  cpu::take_chunks(args, false, 0, chunks);
  print("orthogonalize, vector,", vector);
  print("orthogonalize, coefficients,", coefficients);
}

template <typename T>
void all() {
  perturb<T>();
  filter_normalize<T>();
  gaussian<T>();
  orthogonalize<T>();
}

}  // namespace

int main() {
  all<float>();
  all<double>();
}
