#include "device_program.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "network.h"

namespace landscapex::program::cuda {
namespace {

constexpr int64_t kAlign = 16;    // floats
constexpr int64_t kRegion = 256;  // bytes: where parts of a workspace begin

constexpr Numbers kKinds[] = {Numbers::moving, Numbers::fixed, Numbers::per_point};

int64_t aligned(int64_t floats) { return (floats + kAlign - 1) / kAlign * kAlign; }
int64_t aligned_bytes(int64_t bytes) { return (bytes + kRegion - 1) / kRegion * kRegion; }

void check(cudaError_t status) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

bool is_live(const Buffer& b) { return b.kind == Kind::kLive; }
bool is_product(const Buffer& b) { return is_live(b) && b.grid == Grid::kAffine; }

}  // namespace

// Parts of the memory that a call works in.
struct DeviceProgram::Workspace {
  double* terms = nullptr;                        // [tiles][points][num_terms]
  float* formed = nullptr;                        // [points][floats of moving weights]
  float* zeros = nullptr;                         // as many as the largest weight has
  float* arena = nullptr;                         // [tiles][points][arena_floats_]
  float* products = nullptr;                      // [tiles][num_sets][product_floats_]
  char* planes[3] = {nullptr, nullptr, nullptr};  // by kind: [points][plane_bytes_]
  int64_t bytes = 0;

  template <typename T>
  void place(T** part, void* base, int64_t count) {
    *part = reinterpret_cast<T*>(static_cast<char*>(base) + bytes);
    bytes += aligned_bytes(count * static_cast<int64_t>(sizeof(T)));
  }
};

DeviceProgram::DeviceProgram(int64_t lanes, Description description, Math math, int64_t block_bytes)
    : lanes_(lanes), description_(std::move(description)), math_(math), block_bytes_(block_bytes) {
  const std::vector<Buffer>& buffers = description_.buffers;
  std::vector<int64_t> sizes;  // by storage
  for (const Buffer& b : buffers) {
    if (b.elements * lanes_ > INT32_MAX)
      throw std::invalid_argument("a buffer of one cell must have fewer than 2^31 numbers.");
    if (!is_live(b) || is_product(b)) continue;
    if (b.storage >= static_cast<int64_t>(sizes.size())) sizes.resize(b.storage + 1);
    sizes[b.storage] = std::max(sizes[b.storage], aligned(b.elements * lanes_));
  }
  std::vector<int64_t> begins;
  for (const int64_t size : sizes) {
    begins.push_back(arena_floats_);
    arena_floats_ += size;
  }
  for (const Buffer& b : buffers) {
    starts_.push_back(is_product(b) ? product_floats_ : is_live(b) ? begins[b.storage] : 0);
    if (is_product(b)) product_floats_ += aligned(b.elements * lanes_);
  }
  for (const Output& o : description_.outputs)
    output_elements_ += static_cast<int64_t>(o.at.size());
  for (const Step& step : description_.steps) {
    const int32_t out = written(step);
    is_shared_.push_back(out >= 0 && is_product(buffers[out]));
  }
  arguments(description_.steps, nowhere(), Tables::writing(&tables_));
}

// For questions that no address answers.
Places DeviceProgram::nowhere() const {
  Places none;
  none.buffers.resize(description_.buffers.size());
  none.weights.resize(static_cast<size_t>(description_.num_weights));
  return none;
}

std::vector<StepArgs> DeviceProgram::steps_of(Sets sets, const Places& places) const {
  const std::vector<StepArgs> all =
      arguments(description_.steps, places, Tables::reading(device_tables_));
  std::vector<StepArgs> steps;
  for (size_t i = 0; i < all.size(); ++i)
    if (is_shared_[i] == (sets != Sets::kPoints)) steps.push_back(all[i]);
  return steps;
}

// Steps of a recurrent layer read the same weights, and share their planes.
void DeviceProgram::choose_planes() {
  rounded_.clear();
  std::fill(std::begin(plane_bytes_), std::end(plane_bytes_), 0);
  rounded_of_.assign(description_.steps.size(), -1);
  if (math_ == Math::kFp32) return;
  for (size_t i = 0; i < description_.steps.size(); ++i) {
    const auto* c = std::get_if<Contract>(&description_.steps[i]);
    if (c == nullptr || is_shared_[i] || !takes_tensor_cores(c->outputs, c->num_taps)) continue;
    const auto same = std::find_if(rounded_.begin(), rounded_.end(),
                                   [&](const Rounded& r) { return r.weight == c->weight; });
    if (same != rounded_.end()) {
      const bool fits = same->groups == c->groups && same->outputs == c->outputs;
      if (fits && same->taps == c->num_taps)
        rounded_of_[i] = static_cast<int>(same - rounded_.begin());
      continue;  // one weight in two shapes: the second stays in fp32
    }
    Rounded r = {c->weight, c->groups, c->outputs, c->num_taps, {}, 0};
    r.layout = plane_layout(math_, c->groups, c->outputs, c->num_taps);
    int64_t& end = plane_bytes_[static_cast<int>(placed_[c->weight].kind)];
    r.begin = end;
    end += r.layout.planes * aligned_bytes(r.bytes());
    rounded_of_[i] = static_cast<int>(rounded_.size());
    rounded_.push_back(r);
  }
}

// Networks whose buffers leave room for two blocks, and whose weights every block can read again.
bool DeviceProgram::fits_blocks() const {
  if (!rounded_.empty() || arena_floats_ * 8 > block_bytes_) return false;
  if (floats(Numbers::moving) + floats(Numbers::per_point) > kWeightsOfBlock) return false;
  int64_t filled = 0;
  for (const Buffer& b : description_.buffers)
    filled += is_live(b) && !is_product(b) && b.fill != 0;
  return filled <= kMostFilled &&
         fits_network(steps_of(Sets::kPoints, nowhere()), arena_floats_, block_bytes_);
}

void DeviceProgram::bind(const void* tables, const std::vector<Numbers>& kinds,
                         const std::vector<int64_t>& sizes, int64_t num_sets) {
  device_tables_ = static_cast<const char*>(tables);
  num_sets_ = num_sets;
  placed_.clear();
  std::fill(std::begin(floats_), std::end(floats_), 0);
  for (size_t w = 0; w < kinds.size(); ++w) {
    int64_t& end = floats_[static_cast<int>(kinds[w])];
    placed_.push_back({kinds[w], end, sizes[w]});
    end += aligned(sizes[w]);
    largest_weight_ = std::max(largest_weight_, sizes[w]);
  }
  choose_planes();
  in_blocks_ = fits_blocks();
}

DeviceProgram::Workspace DeviceProgram::workspace(const DeviceCall& call) const {
  Workspace w;
  const int64_t tiles = call.most_tiles, points = call.most_points;
  w.place(&w.terms, call.workspace, tiles * points * num_terms());
  w.place(&w.formed, call.workspace, points * floats(Numbers::moving));
  w.place(&w.zeros, call.workspace, largest_weight_);
  w.place(&w.arena, call.workspace, tiles * points * arena_floats_);
  w.place(&w.products, call.workspace, tiles * num_sets_ * product_floats_);
  for (const Numbers kind : kKinds) {
    const int64_t rows = kind == Numbers::fixed ? 1 : points;
    w.place(&w.planes[static_cast<int>(kind)], call.workspace,
            rows * plane_bytes_[static_cast<int>(kind)]);
  }
  return w;
}

int64_t DeviceProgram::workspace_bytes(int64_t tiles, int64_t points) const {
  DeviceCall call = {};
  call.most_tiles = tiles;
  call.most_points = points;
  return workspace(call).bytes;
}

// Products are made for the centre and for each direction as if those were points.
Cells DeviceProgram::cells(const DeviceCall& call, Sets sets) const {
  const bool points = sets == Sets::kPoints;
  Cells c = {};
  c.lanes = lanes_;
  c.tiles = call.tiles;
  c.points = points ? call.points : sets == Sets::kCenter ? 1 : num_sets_ - 1;
  c.num_sets = points ? num_sets_ : 1;
  c.coordinates = call.coordinates;
  c.valid = call.valid;
  c.terms = workspace(call).terms;
  c.num_terms = num_terms();
  return c;
}

Places DeviceProgram::places(const DeviceCall& call, Sets sets) const {
  const Workspace w = workspace(call);
  Places found;
  for (size_t i = 0; i < description_.buffers.size(); ++i) {
    const Buffer& b = description_.buffers[i];
    if (!is_live(b)) {
      // steps never write to inputs
      float* data = static_cast<float*>(const_cast<void*>(call.inputs[i]));
      found.buffers.push_back({data, b.elements * lanes_, 0, 0});
    } else if (!is_product(b)) {
      found.buffers.push_back(
          {w.arena + starts_[i], call.most_points * arena_floats_, arena_floats_, 0});
    } else {
      Ref ref = {w.products + starts_[i], num_sets_ * product_floats_, 0, 0};
      if (sets == Sets::kPoints) ref.per_set = product_floats_;
      if (sets == Sets::kDirections) {
        ref.data += product_floats_;
        ref.per_point = product_floats_;
      }
      found.buffers.push_back(ref);
    }
  }
  for (const Placed& p : placed_) {
    const int64_t row = floats(p.kind);
    if (p.kind == Numbers::per_point) {
      found.weights.push_back({call.per_point + p.offset, row});
    } else if (p.kind == Numbers::fixed) {  // no direction moves them
      found.weights.push_back({sets == Sets::kDirections ? w.zeros : call.fixed + p.offset, 0});
    } else if (sets == Sets::kPoints) {
      found.weights.push_back({w.formed + p.offset, row});
    } else {
      const bool center = sets == Sets::kCenter;
      found.weights.push_back({call.moving + (center ? 0 : row) + p.offset, center ? 0 : row});
    }
  }
  found.math = math_;
  for (const int r : rounded_of_)
    found.planes.push_back(r < 0 ? PlanesRef{} : planes_of(w, rounded_[static_cast<size_t>(r)]));
  return found;
}

PlanesRef DeviceProgram::planes_of(const Workspace& w, const Rounded& r) const {
  const auto kind = static_cast<int>(placed_[static_cast<size_t>(r.weight)].kind);
  PlanesRef ref;
  for (int p = 0; p < 2; ++p)  // one plane serves as both where there is no other
    ref.data[p] =
        w.planes[kind] + r.begin + (p < r.layout.planes ? p : 0) * aligned_bytes(r.bytes());
  const bool once = placed_[static_cast<size_t>(r.weight)].kind == Numbers::fixed;
  ref.per_point = once ? 0 : plane_bytes_[kind] / r.layout.element_bytes();
  return ref;
}

std::vector<PlaneTarget> DeviceProgram::targets(const Workspace& w, Numbers kind) const {
  std::vector<PlaneTarget> found;
  for (const Rounded& r : rounded_) {
    const Placed& placed = placed_[static_cast<size_t>(r.weight)];
    if (placed.kind != kind) continue;
    const PlanesRef planes = planes_of(w, r);
    PlaneTarget target = {};
    target.begin = placed.offset;
    target.end = placed.offset + placed.size;
    target.layout = r.layout;
    for (int p = 0; p < 2; ++p) target.data[p] = const_cast<void*>(planes.data[p]);
    target.per_point = planes.per_point * r.layout.element_bytes();
    found.push_back(target);
  }
  std::sort(found.begin(), found.end(),
            [](const PlaneTarget& a, const PlaneTarget& b) { return a.begin < b.begin; });
  return found;
}

void DeviceProgram::form_kind(const DeviceCall& call, Numbers kind, cudaStream_t stream) const {
  const Workspace w = workspace(call);
  const std::vector<PlaneTarget> planes = targets(w, kind);
  if (kind != Numbers::moving && planes.empty()) return;
  FormArgs args = {};
  args.sets = kind == Numbers::moving  ? call.moving
              : kind == Numbers::fixed ? call.fixed
                                       : call.per_point;
  args.size = floats(kind);
  args.num_sets = kind == Numbers::moving ? num_sets_ : 1;
  args.per_point = kind == Numbers::per_point ? floats(kind) : 0;
  args.coordinates = call.coordinates;
  args.points = kind == Numbers::fixed ? 1 : call.points;
  args.formed = kind == Numbers::moving ? w.formed : nullptr;
  args.math = math_;
  args.planes = planes.data();
  args.num_planes = static_cast<int64_t>(planes.size());
  check(form(args, stream));
}

// The steps of a cell in one block; results are the same.
void DeviceProgram::run_in_blocks(const DeviceCall& call, cudaStream_t stream) const {
  Places found = places(call, Sets::kPoints);
  std::vector<Filled> filled;
  for (size_t i = 0; i < description_.buffers.size(); ++i) {
    const Buffer& b = description_.buffers[i];
    if (!is_live(b) || is_product(b)) continue;
    found.buffers[i] = in_block(found.buffers[i], starts_[i]);
    if (b.fill != 0)
      filled.push_back({static_cast<int32_t>(starts_[i]),
                        static_cast<int32_t>(aligned(b.elements * lanes_)), b.fill});
  }
  check(run_network(steps_of(Sets::kPoints, found), filled, arena_floats_,
                    cells(call, Sets::kPoints), stream));
}

void DeviceProgram::run_steps(const DeviceCall& call, Sets sets, cudaStream_t stream) const {
  const Cells c = cells(call, sets);
  for (const StepArgs& step : steps_of(sets, places(call, sets)))
    std::visit([&](const auto& args) { check(cuda::run(args, c, stream)); }, step);
}

void DeviceProgram::prepare(const DeviceCall& given, cudaStream_t stream) const {
  DeviceCall call = given;
  call.tiles = call.most_tiles;
  call.points = call.most_points;
  const Workspace w = workspace(call);
  check(cudaMemsetAsync(w.zeros, 0, static_cast<size_t>(largest_weight_) * sizeof(float), stream));
  const Places found = places(call, Sets::kPoints);
  for (size_t i = 0; i < description_.buffers.size(); ++i) {
    const Buffer& b = description_.buffers[i];
    if (!is_live(b)) continue;
    Cells c = cells(call, Sets::kPoints);
    if (is_product(b)) c.points = 1;
    FillArgs args = {found.buffers[i], aligned(b.elements * lanes_), 1, 0, b.fill};
    if (is_product(b)) {
      args.num_sets = num_sets_;
      args.per_set = product_floats_;
    }
    check(fill(args, c, stream));
  }
  form_kind(call, Numbers::fixed, stream);
}

void DeviceProgram::form_weights(const DeviceCall& call, cudaStream_t stream) const {
  form_kind(call, Numbers::moving, stream);
  form_kind(call, Numbers::per_point, stream);
}

void DeviceProgram::share(const DeviceCall& call, cudaStream_t stream) const {
  if (product_floats_ == 0) return;
  run_steps(call, Sets::kCenter, stream);
  if (num_sets_ > 1) run_steps(call, Sets::kDirections, stream);
}

void DeviceProgram::copy_outputs(const DeviceCall& call, cudaStream_t stream) const {
  const Cells c = cells(call, Sets::kPoints);
  const std::vector<Ref> buffers = places(call, Sets::kPoints).buffers;
  const int64_t cell = output_elements_ * lanes_;
  int64_t begin = 0;
  for (const Output& o : description_.outputs) {
    CopyArgs args = {};
    args.from = buffers[static_cast<size_t>(o.buffer)];
    args.to = {call.values + begin, call.points * cell, cell, 0};
    args.lanes = lanes_;
    for (size_t i = 0; i < o.at.size(); i += CopyArgs::kMost) {
      args.count = static_cast<int>(std::min<size_t>(CopyArgs::kMost, o.at.size() - i));
      std::copy_n(o.at.data() + i, args.count, args.elements);
      check(copy(args, c, stream));
      args.to.data += args.count * lanes_;
    }
    begin += static_cast<int64_t>(o.at.size()) * lanes_;
  }
}

void DeviceProgram::run(const DeviceCall& call, cudaStream_t stream) const {
  const Workspace w = workspace(call);
  const int64_t cells = call.tiles * call.points;
  check(cudaMemsetAsync(w.terms, 0, static_cast<size_t>(cells * num_terms()) * sizeof(double),
                        stream));
  if (in_blocks_ && call.values == nullptr) {
    run_in_blocks(call, stream);
  } else {
    run_steps(call, Sets::kPoints, stream);
  }
  if (call.values != nullptr) copy_outputs(call, stream);
  check(collect(
      {w.terms, call.owner, call.tiles, call.points, num_terms(), call.totals, call.most_points},
      stream));
}

}  // namespace landscapex::program::cuda
