// Runs the kernels without torch: the CPU kernels on two threads and the CUDA kernels under the
// emulation, against plain loops. Built plain and under sanitizers by harness.py.
//   driver ORDER [wide]      ORDER: forward, reverse, random, warps
// "wide" adds cases beyond 2^31 entries, whose memory is reserved but hardly touched.
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "filter_normalize.h"
#include "gaussian.h"
#include "orthogonalize.h"
#include "perturb.h"

using namespace landscapex;

namespace {

int failures = 0;

void expect(bool condition, const std::string& what) {
  if (condition) return;
  ++failures;
  std::printf("WRONG: %s\n", what.c_str());
}

// Memory of exactly that size, so that the address sanitizer sees one entry too far.
template <typename T>
struct Buffer {
  explicit Buffer(size_t n) : size(n), data(new T[n]()) {}
  template <typename F>
  Buffer(size_t n, F&& fill) : Buffer(n) {
    for (size_t i = 0; i < n; ++i) data[i] = T(fill());
  }
  Buffer copy() const {
    Buffer out(size);
    std::memcpy(out.data.get(), data.get(), size * sizeof(T));
    return out;
  }
  bool same(const Buffer& other) const {
    return size == other.size && std::memcmp(data.get(), other.data.get(), size * sizeof(T)) == 0;
  }
  T* get() const { return data.get(); }
  size_t size;
  std::unique_ptr<T[]> data;
};

// Zeros that take no memory until they are written.
template <typename T>
struct Reserved {
  explicit Reserved(int64_t n) : bytes(static_cast<size_t>(n) * sizeof(T)) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    data = static_cast<T*>(p);
  }
  ~Reserved() { munmap(data, bytes); }
  size_t bytes;
  T* data;
};

template <typename F>
void on_two_threads(int64_t n, const F& f) {
  std::thread other([&] { f(n / 2, n); });
  f(0, n / 2);
  other.join();
}

// Calls f for every instruction set that this processor has.
template <typename F>
void each_isa(const F& f) {
  const std::string names = cpu::isa_names();
  for (size_t begin = 0; begin < names.size();) {
    const size_t end = std::min(names.find(',', begin), names.size());
    if (cpu::set_isa(names.substr(begin, end - begin).c_str())) f();
    begin = end + 1;
  }
}

std::mt19937 generator(7);
double normal() { return std::normal_distribution<double>()(generator); }

size_t size_of(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

void store_value(void* data, Dtype dtype, int64_t i, double value, bool from_float) {
  const float f = static_cast<float>(value);
  unsigned char* at = static_cast<unsigned char*>(data) + static_cast<size_t>(i) * size_of(dtype);
  const auto put = [&](auto v) { std::memcpy(at, &v, sizeof(v)); };
  switch (dtype) {
    case Dtype::kFloat16:
      return from_float ? put(narrow<Half>(f)) : put(narrow<Half>(value));
    case Dtype::kBFloat16:
      return from_float ? put(narrow<BFloat16>(f)) : put(narrow<BFloat16>(value));
    case Dtype::kFloat32:
      return put(f);
    case Dtype::kFloat64:
      return from_float ? put(static_cast<double>(f)) : put(value);
  }
}

template <typename C>
void check_perturb(const std::vector<std::pair<Dtype, int64_t>>& shapes, int64_t num_directions,
                   const std::string& what) {
  int64_t size = 0;
  for (const auto& [dtype, n] : shapes) size += n;
  const Buffer<C> center(static_cast<size_t>(size), normal);
  const Buffer<C> directions(static_cast<size_t>(size * num_directions), normal);
  const Buffer<double> coordinates(static_cast<size_t>(num_directions), normal);
  std::vector<Buffer<unsigned char>> want, cpu, cuda;
  std::vector<PerturbTensor> cpu_tensors, cuda_tensors;
  int64_t start = 0;
  for (const auto& [dtype, n] : shapes) {
    want.emplace_back(static_cast<size_t>(n) * size_of(dtype));
    for (int64_t i = 0; i < n; ++i) {
      double value = center.get()[start + i];
      for (int64_t k = 0; k < num_directions; ++k)
        value += coordinates.get()[k] * directions.get()[k * size + start + i];
      store_value(want.back().get(), dtype, i, value, sizeof(C) == 4);
    }
    cpu.emplace_back(want.back().size);
    cuda.emplace_back(want.back().size);
    cpu_tensors.push_back({cpu.back().get(), start, dtype});
    cuda_tensors.push_back({cuda.back().get(), start, dtype});
    start += n;
  }
  PerturbArgs args = {cpu_tensors.data(),
                      static_cast<int64_t>(shapes.size()),
                      center.get(),
                      directions.get(),
                      coordinates.get(),
                      num_directions,
                      size,
                      sizeof(C) == 4 ? Dtype::kFloat32 : Dtype::kFloat64};
  each_isa([&] {
    for (const auto& buffer : cpu) std::memset(buffer.get(), 0xff, buffer.size);
    on_two_threads(size, [&](int64_t first, int64_t last) { cpu::perturb(args, first, last); });
    for (size_t t = 0; t < shapes.size(); ++t)
      expect(cpu[t].same(want[t]), "perturb, CPU, " + what);
  });
  args.tensors = cuda_tensors.data();
  cuda::perturb(args, coordinates.get(), nullptr);
  for (size_t t = 0; t < shapes.size(); ++t)
    expect(cuda[t].same(want[t]), "perturb, CUDA, " + what);
}

void test_perturb() {
  const std::vector<std::pair<Dtype, int64_t>> mixed = {
      {Dtype::kFloat32, 1},     {Dtype::kFloat16, 37}, {Dtype::kFloat32, 600}, {Dtype::kFloat64, 5},
      {Dtype::kBFloat16, 2049}, {Dtype::kFloat64, 3},  {Dtype::kFloat32, 1500}};
  for (const int64_t k : {0, 1, 2, 3, 5, 40}) {
    check_perturb<float>(mixed, k, "float32, " + std::to_string(k) + " directions");
    check_perturb<double>(mixed, k, "float64, " + std::to_string(k) + " directions");
  }
  check_perturb<float>(std::vector<std::pair<Dtype, int64_t>>(2000, {Dtype::kFloat32, 2}), 2,
                       "2000 tensors");
}

struct Groups {
  std::vector<Run> runs;
  std::vector<int64_t> first, segments, group_of;
};

Groups some_groups() {
  Groups g;
  g.runs = {{0, 1, 27, 27},    {27, 1, 0, 1500}, {1530, 1, 0, 5000}, {6530, 40, 20, 9},
            {6540, 40, 20, 9}, {7330, 0, 1, 1},  {7330, 70, 30, 29}, {9430, 1, 0, 570}};
  g.first = {0, 1, 2, 2, 3, 5, 7, 8};  // one group without runs, two with two
  g.segments = {0};
  for (const Run& run : g.runs)
    g.segments.push_back(g.segments.back() + num_segments(run.count * run.inner));
  for (size_t f = 0; f + 1 < g.first.size(); ++f)
    for (int64_t r = g.first[f]; r < g.first[f + 1]; ++r)
      g.group_of.push_back(static_cast<int64_t>(f));
  return g;
}
constexpr int64_t kSize = 10000;

template <typename T>
double value_of(const T& v) {
  return widen(v);
}

template <typename T>
void check_filter_normalize(Dtype dtype, int64_t num_directions, bool elementwise) {
  const Groups groups = some_groups();
  const int64_t f_count = static_cast<int64_t>(groups.first.size()) - 1;
  const auto draw = [] { return narrow<T>(normal()); };
  const Buffer<T> center(kSize, draw);
  const Buffer<T> before(static_cast<size_t>(kSize * num_directions), draw);
  const Buffer<T> cpu = before.copy(), cuda = before.copy();
  const size_t norm_count = static_cast<size_t>((num_directions + 1) * f_count);
  const Buffer<double> cpu_norms(norm_count), cuda_norms(norm_count);
  FilterNormalizeArgs args = {cpu.get(),
                              center.get(),
                              groups.runs.data(),
                              groups.first.data(),
                              groups.segments.data(),
                              cpu_norms.get(),
                              num_directions,
                              kSize,
                              static_cast<int64_t>(groups.runs.size()),
                              f_count,
                              dtype,
                              elementwise};
  const std::string what = "filter_normalize, dtype " + std::to_string(static_cast<int>(dtype));
  args.directions = cuda.get();
  args.norms = cuda_norms.get();
  cuda::filter_normalize(args, nullptr);
  args.directions = cpu.get();
  args.norms = cpu_norms.get();
  const int64_t total = groups.segments.back();
  const Buffer<double> sums(static_cast<size_t>((num_directions + 1) * total));
  each_isa([&] {
    std::memcpy(cpu.get(), before.get(), before.size * sizeof(T));
    on_two_threads(total, [&](int64_t first, int64_t last) {
      cpu::sum_segments(args, sums.get(), first, last);
    });
    on_two_threads(f_count, [&](int64_t first, int64_t last) {
      cpu::sum_groups(args, sums.get(), first, last);
    });
    on_two_threads(total, [&](int64_t first, int64_t last) {
      cpu::scale_segments(args, groups.group_of.data(), first, last);
    });
    expect(cuda.same(cpu) && cuda_norms.same(cpu_norms), what + ": CPU and CUDA differ");
  });

  const Buffer<T> want = before.copy();
  for (int64_t k = 0; k <= num_directions; ++k) {
    const T* x = k < num_directions ? before.get() + k * kSize : center.get();
    for (int64_t f = 0; f < f_count; ++f) {
      long double sum = 0, center_sum = 0;
      const auto each = [&](const auto& visit) {
        for (int64_t r = groups.first[f]; r < groups.first[f + 1]; ++r)
          for (int64_t c = 0; c < groups.runs[r].count; ++c)
            for (int64_t i = 0; i < groups.runs[r].inner; ++i)
              visit(groups.runs[r].offset + c * groups.runs[r].stride + i);
      };
      each([&](int64_t i) {
        sum += static_cast<long double>(value_of(x[i])) * value_of(x[i]);
        center_sum +=
            static_cast<long double>(value_of(center.get()[i])) * value_of(center.get()[i]);
      });
      const double norm = static_cast<double>(std::sqrt(sum));
      expect(std::fabs(cpu_norms.get()[k * f_count + f] - norm) <= 1e-13 * norm, what + ": norms");
      if (k == num_directions) continue;
      const double scale = static_cast<double>(std::sqrt(center_sum)) / norm;
      each([&](int64_t i) {
        want.get()[k * kSize + i] =
            narrow<T>(value_of(x[i]) * (elementwise ? value_of(center.get()[i]) : scale));
      });
    }
  }
  bool close = true;  // and entries of no run are as they were
  for (size_t i = 0; i < want.size; ++i)
    close &= std::fabs(value_of(want.get()[i]) - value_of(cpu.get()[i])) <=
             (sizeof(T) == 2   ? 1e-2
              : sizeof(T) == 4 ? 1e-6
                               : 1e-12) *
                 std::fabs(value_of(want.get()[i]));
  expect(close, what + ": directions");
}

void test_filter_normalize() {
  for (const int64_t k : {0, 1, 3}) check_filter_normalize<float>(Dtype::kFloat32, k, false);
  check_filter_normalize<float>(Dtype::kFloat32, 2, true);
  check_filter_normalize<double>(Dtype::kFloat64, 2, false);
  check_filter_normalize<Half>(Dtype::kFloat16, 2, false);
  check_filter_normalize<BFloat16>(Dtype::kBFloat16, 2, true);
}

template <typename T>
void check_gaussian(int64_t n, uint64_t offset) {
  const Buffer<T> cpu(static_cast<size_t>(n)), cuda(cpu.size), want(cpu.size);
  GaussianArgs args = {cpu.get(), n,      11,
                       5,         offset, sizeof(T) == 4 ? Dtype::kFloat32 : Dtype::kFloat64};
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t index = offset + static_cast<uint64_t>(i);
    const Normals pair = normal_pair(index / 2, args.stream, args.key);
    want.get()[i] = static_cast<T>(index % 2 ? pair.z1 : pair.z0);
  }
  each_isa([&] {
    std::memset(cpu.get(), 0, cpu.size * sizeof(T));
    on_two_threads(n, [&](int64_t first, int64_t last) { cpu::gaussian(args, first, last); });
    expect(cpu.same(want), "gaussian, CPU");
  });
  args.out = cuda.get();
  cuda::gaussian(args, nullptr);
  expect(cuda.same(want), "gaussian, CUDA");
}

void test_gaussian() {
  for (const int64_t n : {0, 1, 2, 127, 1001, 1024}) {
    for (const uint64_t offset : {0ull, 3ull, 1ull << 62}) {
      check_gaussian<float>(n, offset);
      check_gaussian<double>(n, offset);
    }
  }
  const auto known = [](Philox counter, uint32_t k0, uint32_t k1, Philox want) {
    const Philox got = philox4x32_10(counter, k0, k1);
    expect(got.w0 == want.w0 && got.w1 == want.w1 && got.w2 == want.w2 && got.w3 == want.w3,
           "Philox, known answer");
  };
  // from the table kat_vectors of Random123
  known({0, 0, 0, 0}, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  known({~0u, ~0u, ~0u, ~0u}, ~0u, ~0u, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  known({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0,
        {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

// Chunks of a vector and rows, with their scratch.
template <typename T>
struct Rows {
  Rows(const Buffer<T>& vector, const Buffer<T>& basis, int64_t rows)
      : w(vector.copy()),
        coefficients(static_cast<size_t>(rows), [] { return 7.0; }),
        sums(static_cast<size_t>(rows * num_chunks(static_cast<int64_t>(w.size)))),
        found(static_cast<size_t>(rows)),
        args{w.get(),
             basis.get(),
             coefficients.get(),
             sums.get(),
             found.get(),
             rows,
             static_cast<int64_t>(w.size),
             sizeof(T) == 4 ? Dtype::kFloat32 : Dtype::kFloat64} {}
  Buffer<T> w;
  Buffer<double> coefficients, sums, found;
  OrthogonalizeArgs args;
};

template <typename T>
void check_orthogonalize(int64_t rows, int64_t size) {
  const Buffer<T> vector(static_cast<size_t>(size), normal);
  const Buffer<T> basis(static_cast<size_t>(rows * size),
                        [&] { return normal() / std::sqrt(1.0 + static_cast<double>(size)); });
  const std::string what = "orthogonalize, " + std::to_string(rows) + " rows of " +
                           std::to_string(size) + ", " + std::to_string(sizeof(T)) + " bytes";
  const Rows<T> cuda(vector, basis, rows);
  cuda::orthogonalize(cuda.args, nullptr);
  const int64_t chunks = num_chunks(size);
  each_isa([&] {
    const Rows<T> cpu(vector, basis, rows);
    on_two_threads(chunks, [&](int64_t a, int64_t b) { cpu::dot_chunks(cpu.args, a, b); });
    on_two_threads(rows, [&](int64_t a, int64_t b) { cpu::sum_chunks(cpu.args, false, a, b); });
    on_two_threads(chunks, [&](int64_t a, int64_t b) { cpu::take_chunks(cpu.args, true, a, b); });
    on_two_threads(rows, [&](int64_t a, int64_t b) { cpu::sum_chunks(cpu.args, true, a, b); });
    on_two_threads(chunks, [&](int64_t a, int64_t b) { cpu::take_chunks(cpu.args, false, a, b); });
    expect(cuda.w.same(cpu.w) && cuda.coefficients.same(cpu.coefficients),
           what + ": CPU and CUDA differ");
  });

  std::vector<double> left(vector.get(), vector.get() + size), total(static_cast<size_t>(rows));
  for (int pass = 0; pass < 2; ++pass) {
    std::vector<double> c(static_cast<size_t>(rows));
    for (int64_t k = 0; k < rows; ++k)
      for (int64_t i = 0; i < size; ++i) c[k] += left[i] * basis.get()[k * size + i];
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t k = 0; k < rows; ++k) left[i] -= c[k] * basis.get()[k * size + i];
      left[i] = static_cast<T>(left[i]);
    }
    for (int64_t k = 0; k < rows; ++k) total[k] += c[k];
  }
  bool close = true;
  for (int64_t k = 0; k < rows; ++k)
    close &= std::fabs(total[k] - cuda.coefficients.get()[k]) <= 1e-12 * (1 + std::fabs(total[k]));
  for (int64_t i = 0; i < size; ++i)
    close &= std::fabs(left[i] - cuda.w.get()[i]) <=
             (sizeof(T) == 4 ? 1e-6 : 1e-12) * (1 + std::fabs(left[i]));
  expect(close, what);
}

void test_orthogonalize() {
  for (const int64_t rows : {0, 1, 4, 9}) {
    for (const int64_t size : {0, 1, 33, 2047, 2049}) {
      check_orthogonalize<float>(rows, size);
      check_orthogonalize<double>(rows, size);
    }
  }
  check_orthogonalize<float>(1, 70000);  // more chunks than a warp has lanes
}

// Entries from `far` on, of k directions: beyond 2^31 as an entry, or as row times P.
void check_wide_perturb(int64_t far, int64_t k) {
  constexpr int64_t kCount = 59;
  const int64_t size = far + kCount;
  const Reserved<float> center(size), directions(k * size);
  const Buffer<double> coordinates(static_cast<size_t>(k), [] { return 2.0; });
  for (int64_t i = 0; i < kCount; ++i) {
    center.data[far + i] = static_cast<float>(i);
    directions.data[(k - 1) * size + far + i] = 16.0f;
  }
  const Buffer<float> cpu(kCount), cuda(kCount);
  PerturbTensor tensor = {cpu.get(), far, Dtype::kFloat32};
  const PerturbArgs args = {&tensor,           1, center.data, directions.data,
                            coordinates.get(), k, size,        Dtype::kFloat32};
  cpu::perturb(args, far, size);
  tensor.data = cuda.get();
  cuda::perturb(args, coordinates.get(), nullptr);
  bool right = true;
  for (int64_t i = 0; i < kCount; ++i) {
    const float want = static_cast<float>(i) + 32.0f;
    right &= cpu.get()[i] == want && cuda.get()[i] == want;
  }
  expect(right, "perturb beyond 2^31");
}

void check_wide_filter_normalize(int64_t far, int64_t k) {
  constexpr int64_t kCount = 40;
  const int64_t size = far + kCount;
  const Reserved<float> center(size), cpu(k * size), cuda(k * size);
  const Run run = {far, 2, 20, 20};
  const int64_t first[] = {0, 1}, segments[] = {0, 1}, group_of[] = {0};
  for (int64_t i = 0; i < kCount; ++i) {
    center.data[far + i] = 6.0f;
    for (const auto* d : {&cpu, &cuda}) d->data[(k - 1) * size + far + i] = 3.0f;
  }
  const Buffer<double> norms(static_cast<size_t>(k + 1)), sums(static_cast<size_t>(k + 1));
  FilterNormalizeArgs args = {cpu.data, center.data, &run, first, segments,        norms.get(),
                              k,        size,        1,    1,     Dtype::kFloat32, false};
  cpu::sum_segments(args, sums.get(), 0, 1);
  cpu::sum_groups(args, sums.get(), 0, 1);
  cpu::scale_segments(args, group_of, 0, 1);
  args.directions = cuda.data;
  cuda::filter_normalize(args, nullptr);
  bool right = true;
  for (int64_t at = (k - 1) * size + far; at < (k - 1) * size + far + kCount; ++at)
    right &= std::fabs(cpu.data[at] - 6.0f) < 1e-5f && cuda.data[at] == cpu.data[at];
  expect(right, "filter_normalize beyond 2^31");
}

// The last chunk of P entries and k rows, on the CPU alone: a CUDA kernel walks over all of them.
void check_wide_orthogonalize(int64_t size, int64_t k) {
  const int64_t last = num_chunks(size) - 1, begin = last * kDotChunk;
  const Reserved<float> w(size), basis(k * size);
  const Reserved<double> sums(k * num_chunks(size));
  const Buffer<double> coefficients(static_cast<size_t>(k)), found(static_cast<size_t>(k));
  const OrthogonalizeArgs args = {w.data, basis.data, coefficients.get(), sums.data, found.get(),
                                  k,      size,       Dtype::kFloat32};
  for (int64_t i = begin; i < size; ++i) {
    w.data[i] = 5.0f;
    basis.data[(k - 1) * size + i] = 2.0f;
  }
  const double count = static_cast<double>(size - begin);
  cpu::dot_chunks(args, last, last + 1);
  cpu::sum_chunks(args, false, 0, k);
  bool right = coefficients.get()[k - 1] == 10.0 * count;
  found.get()[k - 1] = 2.0;
  cpu::take_chunks(args, true, last, last + 1);
  cpu::sum_chunks(args, true, 0, k);
  for (int64_t i = begin; i < size; ++i) right &= w.data[i] == 1.0f;
  expect(right && coefficients.get()[k - 1] == 12.0 * count, "orthogonalize beyond 2^31");
}

void test_wide() {
  constexpr int64_t kEntries = (int64_t{1} << 31) + 5, kRows = (int64_t{1} << 30) + 5;
  check_wide_perturb(kEntries, 1);
  check_wide_perturb(kRows, 3);
  check_wide_filter_normalize(kEntries, 1);
  check_wide_filter_normalize(kRows, 3);
  check_wide_orthogonalize(kEntries, 1);
  check_wide_orthogonalize(kRows, 3);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string order = argc > 1 ? argv[1] : "forward";
  emul::order = order == "reverse"  ? emul::Order::reverse
                : order == "random" ? emul::Order::random
                : order == "warps"  ? emul::Order::warps
                                    : emul::Order::forward;
  try {
    test_perturb();
    test_filter_normalize();
    test_gaussian();
    test_orthogonalize();
    if (argc > 2) test_wide();
  } catch (const emul::Error& error) {
    expect(false, error.what());
  }
  std::printf(failures ? "%d wrong\n" : "all right\n", failures);
  return failures != 0;
}
