// What the glue of every operator needs: checks, words for messages, device and stream. Each
// operator's file is compiled into the CPU library, and with LX_CUDA into the CUDA library.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <sstream>
#include <stdexcept>
#include <string>

#include "../kernels/numeric.h"

#if defined(LX_EMULATE_CUDA)
#define LX_LIBRARY landscapex_emulated
#define LX_KEY CPU
#elif defined(LX_CUDA)
#define LX_LIBRARY landscapex
#define LX_KEY CUDA
#else
#define LX_LIBRARY landscapex
#define LX_KEY CPU
#endif

namespace landscapex {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Words>
[[noreturn]] void raise(const Words&... words) {
  std::ostringstream message;
  (message << ... << words);
  throw std::runtime_error(message.str());
}

// Message: "op: argument must be <rule>, got <value>". A RuntimeError in Python.
#define LX_CHECK(condition, ...)                        \
  do {                                                  \
    if (!(condition)) ::landscapex::raise(__VA_ARGS__); \
  } while (false)

inline std::string shape_of(const Tensor& tensor) {
  std::string out = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i)
    out += (i ? ", " : "") + std::to_string(tensor.size(i));
  return out + "]";
}

inline std::string device_of(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  const std::string kind = tensor.is_cuda() ? "cuda" : "another device";
  return kind + ":" + std::to_string(tensor.get_device_index());
}

inline bool same_device(const Tensor& a, const Tensor& b) { return device_of(a) == device_of(b); }

inline bool overlap(const Tensor& a, const Tensor& b) {
  const char* p = static_cast<const char*>(a.const_data_ptr());
  const char* q = static_cast<const char*>(b.const_data_ptr());
  return p < q + b.numel() * static_cast<int64_t>(b.element_size()) &&
         q < p + a.numel() * static_cast<int64_t>(a.element_size());
}

// As Python names them.
inline const char* dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    default:
      return torch::headeronly::toString(type);
  }
}

// "float32 of shape [2, 3] on cpu"
inline std::string words_for(const Tensor& tensor) {
  return dtype_name(tensor.scalar_type()) + (" of shape " + shape_of(tensor)) +
         (tensor.is_contiguous() ? "" : ", not contiguous,") + " on " + device_of(tensor);
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Half || type == ScalarType::BFloat16 || type == ScalarType::Float ||
         type == ScalarType::Double;
}
inline bool is_master(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double;
}

inline Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
      return Dtype::kFloat16;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::Double:
      return Dtype::kFloat64;
    default:
      raise("dtype must be floating, got ", torch::headeronly::toString(tensor.scalar_type()));
  }
}

}  // namespace landscapex

#if defined(LX_EMULATE_CUDA)
#include "../kernels/launch.h"
namespace landscapex {
struct DeviceGuard {
  explicit DeviceGuard(int) {}
  ~DeviceGuard() {}
};
inline cudaStream_t stream_of(const Tensor&) { return nullptr; }
}  // namespace landscapex
#elif defined(LX_CUDA)
#include <cuda_runtime.h>
namespace landscapex {
using torch::stable::accelerator::DeviceGuard;
inline cudaStream_t stream_of(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}
}  // namespace landscapex
#endif

#if defined(LX_CUDA) || defined(LX_EMULATE_CUDA)
namespace landscapex {
inline void check_launch(const char* op, cudaError_t status) {
  LX_CHECK(status == cudaSuccess, op, ": launch must succeed, got CUDA error ",
           static_cast<int>(status), " (", cudaGetErrorString(status), ")");
}
}  // namespace landscapex
#endif
