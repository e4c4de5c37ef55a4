#include "program.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <system_error>
#include <thread>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../kernels/perturb.h"
#include "contract_bf16.h"
#include "kernels.h"

namespace landscapex::program {
namespace {

constexpr int64_t kAlign = 16;           // floats: one cache line
constexpr size_t kHugePage = 2 << 20;    // bytes
constexpr int64_t kRunFloats = 1 << 17;  // of inputs that one stretch of a contraction touches
constexpr int64_t kShortestRun = 32;     // positions

int64_t aligned(int64_t floats) { return (floats + kAlign - 1) / kAlign * kAlign; }

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Memory = std::unique_ptr<float[], Free>;

// Large blocks lie in large pages where the system has them: weights stream through the processor
// once for each tile and point, and prefetching stops where the address of a page is not at hand.
Memory allocate(int64_t floats) {
  size_t bytes = static_cast<size_t>(aligned(std::max<int64_t>(floats, 1))) * sizeof(float);
  const bool large = bytes >= kHugePage / 4;
  if (large) bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* p = std::aligned_alloc(large ? kHugePage : 64, bytes);
  if (p == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (large) madvise(p, bytes, MADV_HUGEPAGE);  // a wish: small pages serve as well
#endif
  return Memory(static_cast<float*>(p));
}

void run_step(const Step& step, const Frame& frame) {
  struct Runner {
    const Frame& frame;
    void operator()(const Contract& s) const {
      s.bf16 ? run_contract_rounded(s, frame) : run_contract(s, frame);
    }
    void operator()(const Winograd& s) const { run_winograd(s, frame); }
    void operator()(const Map& s) const { run_map(s, frame); }
    void operator()(const Reduce& s) const { run_reduce(s, frame); }
    void operator()(const Normalize& s) const { run_normalize(s, frame); }
    void operator()(const Softmax& s) const { run_softmax(s, frame); }
    void operator()(const MatMul& s) const { run_matmul(s, frame); }
    void operator()(const LstmCell& s) const { run_lstm_cell(s, frame); }
    void operator()(const GruCell& s) const { run_gru_cell(s, frame); }
    void operator()(const Embedding& s) const { run_embedding(s, frame); }
    void operator()(const CrossEntropy& s) const { run_cross_entropy(s, frame); }
    void operator()(const ElementLoss& s) const { run_element_loss(s, frame); }
    void operator()(const Hits& s) const { run_hits(s, frame); }
  };
  std::visit(Runner{frame}, step);
}

// What no step writes (halos) keeps its value for ever: that of the centre, in the first set.
void fill_sets(float* data, const Buffer& b, int64_t set_floats, int64_t num_sets) {
  std::fill(data, data + set_floats, b.fill);
  std::fill(data + set_floats, data + set_floats * num_sets, 0.0f);
}

std::vector<int32_t> weights_of(const Step& step) {
  struct Reader {
    std::vector<int32_t> operator()(const Contract& s) const {
      return {s.weight, s.bias, s.scale, s.shift};
    }
    std::vector<int32_t> operator()(const Winograd& s) const {
      return {s.weight, s.bias, s.scale, s.shift};
    }
    std::vector<int32_t> operator()(const Map& s) const {
      std::vector<int32_t> ids;
      for (const Operand& o : s.operands)
        if (o.kind == Source::weight) ids.push_back(o.id);
      return ids;
    }
    std::vector<int32_t> operator()(const Normalize& s) const { return {s.gamma, s.beta}; }
    std::vector<int32_t> operator()(const Embedding& s) const { return {s.weight}; }
    std::vector<int32_t> operator()(const Reduce&) const { return {}; }
    std::vector<int32_t> operator()(const Softmax&) const { return {}; }
    std::vector<int32_t> operator()(const MatMul&) const { return {}; }
    std::vector<int32_t> operator()(const LstmCell&) const { return {}; }
    std::vector<int32_t> operator()(const GruCell&) const { return {}; }
    std::vector<int32_t> operator()(const CrossEntropy&) const { return {}; }
    std::vector<int32_t> operator()(const ElementLoss&) const { return {}; }
    std::vector<int32_t> operator()(const Hits&) const { return {}; }
  };
  return std::visit(Reader{}, step);
}

// Long stretches are cut, so that all blocks of outputs find their inputs in the cache.
void prepare(Contract* step, int64_t lanes) {
  for (int32_t& tap : step->taps) tap *= static_cast<int32_t>(lanes);
  const int64_t most =
      std::max(kShortestRun, kRunFloats / (std::max<int64_t>(step->num_taps, 1) * lanes));
  std::vector<Run> cut;
  for (Run run : step->runs) {
    const int64_t parts = (run.count + most - 1) / most;
    for (int64_t p = 0; p < parts; ++p) {
      Run part = run;
      part.count = static_cast<int32_t>((run.count + parts - 1 - p) / parts);
      cut.push_back(part);
      for (int k = 0; k < kTables; ++k) run.begin[k] += part.count * run.step[k];
    }
  }
  step->runs = std::move(cut);
}

// Runs f(worker, item) for all items, on this thread and others; passes an exception on.
template <typename F>
void parallel_for(int64_t num_threads, int64_t items, const F& f) {
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  const auto work = [&](int64_t worker) {
    try {
      for (int64_t i; (i = next.fetch_add(1)) < items;) f(worker, i);
    } catch (...) {
      next = items;
      if (!failed.test_and_set()) error = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  const int64_t wanted = std::min(num_threads, items);
  try {
    for (int64_t t = 1; t < wanted; ++t) threads.emplace_back(work, t);
  } catch (const std::system_error&) {
    // fewer threads than asked for: the work gets done all the same
  }
  work(0);
  for (std::thread& t : threads) t.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace

// What one thread works in. Buffers of several sets have them one after the other.
struct Program::Arena {
  int64_t num_sets = 0;
  Memory memory;
  std::vector<float*> buffers;       // by id; null for inputs
  std::vector<int64_t> set_strides;  // by id
  float* scratch = nullptr;
};

struct Program::Call {
  const Tiles& tiles;
  const Points& points;
  const std::vector<WeightData>& weights;
  const Products& products;
  int64_t num_sets;
  double* sums;
  float* values;
  std::vector<int64_t> offsets;  // by weight: where it lies among those formed; -1: not formed
  int64_t formed_floats;
  const float* formed;  // [G, formed_floats]
  const float* zeros;
  Bf16Kernel bf16;
  std::vector<int64_t> rounded_at;  // by contraction in bf16: where its weights lie
  std::vector<bool> rounded_once;   // the same for all points: they follow those that are not
  int64_t rounded_floats, rounded_once_floats;  // of one point; of all of them
  float* rounded;                               // [G, rounded_floats], [rounded_once_floats]
  float* rounded_at_point(int32_t number, int64_t point) const {
    const bool once = rounded_once[number];
    return rounded + (once ? points.count : point) * rounded_floats + rounded_at[number];
  }
};

Program::Program(int64_t lanes, Description description, bool bf16)
    : lanes_(lanes),
      buffers_(std::move(description.buffers)),
      num_weights_(description.num_weights),
      num_terms_(description.num_terms),
      outputs_(std::move(description.outputs)),
      formed_(static_cast<size_t>(num_weights_)) {
  for (Step& step : description.steps) {
    if (auto* c = std::get_if<Contract>(&step)) {
      if (bf16 && buffers_[c->out].grid != Grid::kAffine) {
        c->bf16 = bf16_layout(*c, buffers_[c->input].elements);
        c->rounded = num_rounded_++;
        scratch_floats_ = std::max(scratch_floats_, c->bf16->input_floats(lanes_));
      }
      prepare(c, lanes_);
    }
    if (auto* w = std::get_if<Winograd>(&step))
      scratch_floats_ = std::max(scratch_floats_, winograd_scratch(*w));
    const int32_t out = written(step);
    const bool is_shared = out >= 0 && buffers_[out].grid == Grid::kAffine;
    if (!is_shared)
      for (const int32_t id : weights_of(step))
        if (id >= 0) formed_[id] = true;
    (is_shared ? shared_ : steps_).push_back(std::move(step));
  }
  for (const Output& o : outputs_) output_elements_ += static_cast<int64_t>(o.at.size());
}

Program::~Program() = default;

int64_t Program::arena_floats(int64_t num_sets) const {
  std::vector<int64_t> storage;
  int64_t total = aligned(scratch_floats_);
  for (const Buffer& b : buffers_) {
    if (b.kind != Kind::kLive) continue;
    const int64_t floats = aligned(b.elements * lanes_) * (b.grid == Grid::kAffine ? num_sets : 1);
    if (b.storage >= static_cast<int64_t>(storage.size())) storage.resize(b.storage + 1);
    storage[b.storage] = std::max(storage[b.storage], floats);
  }
  for (const int64_t floats : storage) total += floats;
  return total;
}

int64_t Program::affine_floats(int64_t num_sets) const {
  int64_t total = 0;
  for (const Buffer& b : buffers_)
    if (b.kind == Kind::kLive && b.grid == Grid::kAffine)
      total += aligned(b.elements * lanes_) * num_sets;
  return total;
}

Program::Arena& Program::arena(int64_t thread, int64_t num_sets) {
  if (static_cast<int64_t>(arenas_.size()) <= thread) arenas_.resize(thread + 1);
  std::unique_ptr<Arena>& slot = arenas_[thread];
  if (slot && slot->num_sets == num_sets) return *slot;
  slot = std::make_unique<Arena>();
  Arena& a = *slot;
  a.num_sets = num_sets;
  a.memory = allocate(arena_floats(num_sets));
  a.buffers.assign(buffers_.size(), nullptr);
  a.set_strides.assign(buffers_.size(), 0);
  std::vector<int64_t> sizes, starts;
  for (size_t i = 0; i < buffers_.size(); ++i) {
    const Buffer& b = buffers_[i];
    if (b.kind != Kind::kLive) continue;
    const int64_t one = aligned(b.elements * lanes_);
    if (b.grid == Grid::kAffine) a.set_strides[i] = one;
    if (b.storage >= static_cast<int64_t>(sizes.size())) sizes.resize(b.storage + 1);
    sizes[b.storage] = std::max(sizes[b.storage], one * (b.grid == Grid::kAffine ? num_sets : 1));
  }
  int64_t start = aligned(scratch_floats_);
  for (const int64_t size : sizes) {
    starts.push_back(start);
    start += size;
  }
  a.scratch = a.memory.get();
  std::fill(a.scratch, a.scratch + aligned(scratch_floats_), 0.0f);
  for (size_t i = 0; i < buffers_.size(); ++i) {
    const Buffer& b = buffers_[i];
    if (b.kind != Kind::kLive) continue;
    a.buffers[i] = a.memory.get() + starts[b.storage];
    fill_sets(a.buffers[i], b, aligned(b.elements * lanes_),
              b.grid == Grid::kAffine ? num_sets : 1);
  }
  return a;
}

// The packed weights of one point, by the kernel that also moves the parameters of a model.
void Program::form_weights(const Call& call, int64_t point, float* formed) const {
  const double* c = call.points.coordinates + point * call.points.num_directions;
  for (int32_t w = 0; w < num_weights_; ++w) {
    if (call.offsets[w] < 0) continue;
    const WeightData& data = call.weights[w];
    const PerturbTensor out = {formed + call.offsets[w], 0, Dtype::kFloat32};
    const PerturbArgs args = {
        &out,           1, data.sets, data.sets + data.size, c, data.num_sets - 1, data.size,
        Dtype::kFloat32};
    cpu::perturb(args, 0, data.size);
  }
}

const float* Program::weight_at(const Call& call, int32_t id, int64_t point) const {
  const WeightData& data = call.weights[id];
  if (call.offsets[id] >= 0) return call.formed + point * call.formed_floats + call.offsets[id];
  return data.sets + (data.per_point ? point * data.size : 0);
}

// Weights that no direction moves are rounded once.
void Program::place_rounded(Call* call) const {
  call->bf16 = bf16_kernel();
  call->rounded_at.assign(static_cast<size_t>(num_rounded_), 0);
  call->rounded_once.assign(static_cast<size_t>(num_rounded_), false);
  for (const Step& step : steps_) {
    const auto* c = std::get_if<Contract>(&step);
    if (c == nullptr || !c->bf16) continue;
    const bool once = call->offsets[c->weight] < 0 && !call->weights[c->weight].per_point;
    int64_t& floats = once ? call->rounded_once_floats : call->rounded_floats;
    call->rounded_once[c->rounded] = once;
    call->rounded_at[c->rounded] = floats;
    floats += aligned(rounded_floats(*c, call->bf16));
  }
}

void Program::round_step(const Call& call, const Contract& step, int64_t point) const {
  if (!step.bf16 || (call.rounded_once[step.rounded] && point > 0)) return;
  round_weights(step, call.bf16, weight_at(call, step.weight, point),
                call.rounded_at_point(step.rounded, point));
}

// Where every buffer of a tile lies: inputs in the data, products where they are kept, the rest in
// the arena.
std::vector<float*> Program::buffers_of(const Call& call, const Arena& arena, int64_t tile) const {
  std::vector<float*> buffers = arena.buffers;
  float* product = call.products.data;
  if (product != nullptr) product += tile * affine_floats(call.num_sets);
  for (size_t i = 0; i < buffers_.size(); ++i) {
    const Buffer& b = buffers_[i];
    if (b.kind != Kind::kLive) {
      // steps never write to inputs
      buffers[i] = static_cast<float*>(const_cast<void*>(call.tiles.inputs[i]));
      if (buffers[i] != nullptr) buffers[i] += tile * b.elements * lanes_;
    } else if (b.grid == Grid::kAffine && product != nullptr) {
      buffers[i] = product;
      product += arena.set_strides[i] * call.num_sets;
    }
  }
  return buffers;
}

// The products of a tile that serve every point: each set by itself.
void Program::share(const Call& call, const Arena& arena, int64_t tile) const {
  const std::vector<float*> buffers = buffers_of(call, arena, tile);
  std::vector<float*> of_set = buffers;
  std::vector<const float*> weights(static_cast<size_t>(num_weights_), nullptr);
  const std::vector<int64_t> one_set(buffers_.size(), 0);
  const float one = 1.0f;
  if (call.products.data != nullptr) {
    for (size_t i = 0; i < buffers_.size(); ++i) {
      const Buffer& b = buffers_[i];
      if (b.kind == Kind::kLive && b.grid == Grid::kAffine)
        fill_sets(buffers[i], b, aligned(b.elements * lanes_), call.num_sets);
    }
  }
  Frame frame = {};
  frame.lanes = lanes_;
  frame.valid = call.tiles.valid[tile];
  frame.num_sets = 1;
  frame.coefficients = &one;
  frame.buffers = of_set.data();
  frame.set_strides = one_set.data();
  frame.weights = weights.data();
  frame.scratch = arena.scratch;
  for (int64_t k = 0; k < call.num_sets; ++k) {
    for (size_t i = 0; i < buffers_.size(); ++i)
      if (buffers[i] != nullptr) of_set[i] = buffers[i] + k * arena.set_strides[i];
    for (int32_t w = 0; w < num_weights_; ++w) {
      const WeightData& data = call.weights[w];
      weights[w] = k < data.num_sets ? data.sets + k * data.size : call.zeros;
    }
    for (const Step& step : shared_) run_step(step, frame);
  }
}

void Program::evaluate(const Call& call, const Arena& arena, int64_t tile, int64_t first,
                       int64_t last) const {
  const std::vector<float*> buffers = buffers_of(call, arena, tile);
  std::vector<const int32_t*> indices(buffers_.size(), nullptr);
  for (size_t i = 0; i < buffers_.size(); ++i)
    if (buffers_[i].kind == Kind::kIndex) indices[i] = reinterpret_cast<const int32_t*>(buffers[i]);
  std::vector<const float*> weights(static_cast<size_t>(num_weights_), nullptr);
  std::vector<float> coefficients(static_cast<size_t>(call.num_sets), 1.0f);
  Frame frame = {};
  frame.lanes = lanes_;
  frame.valid = call.tiles.valid[tile];
  frame.num_sets = call.num_sets;
  frame.coefficients = coefficients.data();
  frame.buffers = buffers.data();
  frame.set_strides = arena.set_strides.data();
  frame.indices = indices.data();
  frame.weights = weights.data();
  frame.scratch = arena.scratch;
  std::vector<const float*> rounded(static_cast<size_t>(num_rounded_), nullptr);
  frame.num_buffers = static_cast<int64_t>(buffers.size());
  frame.num_weights = num_weights_;
  frame.bf16 = call.bf16;
  frame.rounded = rounded.data();
  if (!shared_.empty() && call.products.data == nullptr) share(call, arena, tile);
  for (int64_t g = first; g < last; ++g) {
    for (int32_t w = 0; w < num_weights_; ++w) {
      weights[w] = weight_at(call, w, g);
    }
    for (int32_t r = 0; r < num_rounded_; ++r) rounded[r] = call.rounded_at_point(r, g);
    for (int64_t k = 1; k < call.num_sets; ++k)
      coefficients[k] =
          static_cast<float>(call.points.coordinates[g * call.points.num_directions + k - 1]);
    const int64_t cell = tile * call.points.count + g;
    frame.terms = call.sums + cell * num_terms_;
    std::fill(frame.terms, frame.terms + num_terms_, 0.0);
    for (const Step& step : steps_) run_step(step, frame);
    if (call.values == nullptr) continue;
    float* out = call.values + cell * output_elements_ * lanes_;
    for (const Output& o : outputs_)
      for (const int32_t element : o.at) {
        std::memcpy(out, buffers[o.buffer] + element * lanes_, lanes_ * sizeof(float));
        out += lanes_;
      }
  }
}

void Program::run(const Tiles& tiles, const Points& points, const std::vector<WeightData>& weights,
                  const Products& products, int64_t num_threads, double* sums, float* values) {
  if (tiles.count == 0 || points.count == 0) return;
  Call call = {tiles, points, weights, products, points.num_directions + 1, sums, values,
               {},    0,      nullptr, nullptr,  Bf16Kernel::portable,      {},   {},
               0,     0,      nullptr};
  int64_t largest = 1;
  call.offsets.assign(static_cast<size_t>(num_weights_), -1);
  for (int32_t w = 0; w < num_weights_; ++w) {
    const WeightData& data = weights[w];
    largest = std::max(largest, data.size);
    if (!formed_[w] || data.per_point || data.num_sets == 1) continue;
    call.offsets[w] = call.formed_floats;
    call.formed_floats += aligned(data.size);
  }
  const Memory zeros = allocate(shared_.empty() ? 1 : largest);
  std::fill(zeros.get(), zeros.get() + (shared_.empty() ? 1 : largest), 0.0f);
  const Memory formed = allocate(call.formed_floats * points.count);
  call.zeros = zeros.get();
  call.formed = formed.get();
  place_rounded(&call);
  const Memory rounded = allocate(call.rounded_floats * points.count + call.rounded_once_floats);
  call.rounded = rounded.get();
  if (call.formed_floats > 0 || num_rounded_ > 0)
    parallel_for(num_threads, points.count, [&](int64_t, int64_t g) {
      form_weights(call, g, formed.get() + g * call.formed_floats);
      for (const Step& step : steps_)
        if (const auto* c = std::get_if<Contract>(&step)) round_step(call, *c, g);
    });

  // Shared products are computed once per tile and block of points; where tiles are few, points
  // are cut into blocks to keep every thread busy.
  const int64_t threads = std::max<int64_t>(1, std::min(num_threads, tiles.count * points.count));
  int64_t blocks = 1;
  if (tiles.count < 4 * threads && threads > 1)
    blocks = std::min(points.count, (4 * threads + tiles.count - 1) / tiles.count);
  for (int64_t t = 0; t < threads; ++t) arena(t, call.num_sets);
  if (products.data != nullptr && !products.ready)
    parallel_for(threads, tiles.count,
                 [&](int64_t worker, int64_t tile) { share(call, *arenas_[worker], tile); });
  parallel_for(threads, tiles.count * blocks, [&](int64_t worker, int64_t item) {
    const int64_t block = item % blocks;
    evaluate(call, *arenas_[worker], item / blocks, points.count * block / blocks,
             points.count * (block + 1) / blocks);
  });
}

}  // namespace landscapex::program
