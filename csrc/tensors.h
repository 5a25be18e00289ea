// Conversion of torch tensors to the structures of kernels.h, and memory for the kernels.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "bilinear_tables.h"
#include "dispatch.h"

namespace cawa_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Float float_type(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Float::kFloat32;
    case ScalarType::BFloat16:
      return Float::kBFloat16;
    case ScalarType::Half:
      return Float::kFloat16;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, bfloat16 or float16, not ",
                      torch::headeronly::toString(tensor.scalar_type()));
  }
}

// `target`: contiguous uint8, int16, int32 or int64. It must outlive the result.
inline Labels labels_of(const Tensor& target, int64_t num_classes, int64_t ignore_index) {
  STD_TORCH_CHECK(1 <= num_classes && num_classes <= kMaxClasses, "the number of classes must be in [1, ", kMaxClasses,
                  "], not ", num_classes);
  Labels labels{target.const_data_ptr(), Label::kUInt8, static_cast<int32_t>(num_classes), ignore_index};
  switch (target.scalar_type()) {
    case ScalarType::Byte:
      labels.type = Label::kUInt8;
      break;
    case ScalarType::Short:
      labels.type = Label::kInt16;
      break;
    case ScalarType::Int:
      labels.type = Label::kInt32;
      break;
    case ScalarType::Long:
      labels.type = Label::kInt64;
      break;
    default:
      STD_TORCH_CHECK(false, "target must be uint8, int16, int32 or int64, not ",
                      torch::headeronly::toString(target.scalar_type()), "; convert it with .long()");
  }
  return labels;
}

// `tensor`: (N, C, h, w) float32, bfloat16 or float16, with any strides. It must outlive the result.
inline Maps maps_of(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 4, name, " must be (N, C, h, w)");
  return {tensor.const_data_ptr(), float_type(tensor, name), tensor.size(0),   tensor.size(1),   tensor.size(2),
          tensor.size(3),          tensor.stride(0),         tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

// The tables that resize `maps` (N, C, h, w) to the size of `target` (N, H, W).
struct ResizeTables {
  ResizeTables(const Tensor& maps, const char* name, const Tensor& target, bool align_corners);
  const ColumnTables columns;
  const RowGroupTables rows;
  const Resize resize;
};

// The data of `tensor`, which must be contiguous float32 of n elements.
inline const float* floats_of(const Tensor& tensor, int64_t n, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.is_contiguous() && tensor.numel() == n, name,
                  " must be contiguous float32 of ", n, " elements");
  return tensor.const_data_ptr<float>();
}

// An uninitialised tensor with the shape, dtype and, if dense, strides of `like`. Large ones reuse memory of an earlier
// one (gradient_memory.cpp).
Tensor new_gradient(const Tensor& like);

// Uninitialised floats, aligned for any vector.
class ScratchMemory {
 public:
  explicit ScratchMemory(int64_t floats)
      : data_(static_cast<float*>(std::aligned_alloc(64, (floats * sizeof(float) + 64) / 64 * 64)), &std::free) {
    if (!data_) throw std::bad_alloc();
  }
  float* get() const { return data_.get(); }

 private:
  std::unique_ptr<float[], decltype(&std::free)> data_;
};

}  // namespace cawa_fast
