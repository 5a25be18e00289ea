// Describes logits and their gradient, of any strides, as rows of pixels; for CPU and CUDA kernels.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

#include "kernels.h"

namespace cawa_fast {

// Merges the dimensions of `input` and `grad`, both (N, C, d1, ...), into few long rows of pixels: neighbouring
// dimensions count as one if they are contiguous with each other in both tensors.
inline PixelRows pixel_rows(const torch::stable::Tensor& input, const torch::stable::Tensor& grad) {
  struct Dimension {
    int64_t size, stride, grad_stride;
  };
  std::vector<Dimension> dimensions;
  for (int64_t d = 0; d < input.dim(); ++d) {
    if (d == 1 || input.size(d) == 1) continue;
    const Dimension next{input.size(d), input.stride(d), grad.stride(d)};
    if (!dimensions.empty()) {
      Dimension& last = dimensions.back();
      if (last.stride == next.size * next.stride && last.grad_stride == next.size * next.grad_stride) {
        last = {last.size * next.size, next.stride, next.grad_stride};
        continue;
      }
    }
    dimensions.push_back(next);
  }
  if (dimensions.empty()) dimensions.push_back({1, 1, 1});
  STD_TORCH_CHECK(dimensions.size() <= kMaxOuter + 1, "input has too many dimensions; reshape it to (N, C, pixels)");
  PixelRows rows{};
  rows.rows = 1;
  rows.outer = static_cast<int>(dimensions.size()) - 1;
  for (int d = 0; d < rows.outer; ++d) {
    rows.rows *= dimensions[d].size;
    rows.size[d] = dimensions[d].size;
    rows.stride[d] = dimensions[d].stride;
    rows.grad_stride[d] = dimensions[d].grad_stride;
  }
  rows.length = dimensions.back().size;
  rows.stride_x = dimensions.back().stride;
  rows.grad_stride_x = dimensions.back().grad_stride;
  rows.stride_c = input.stride(1);
  rows.grad_stride_c = grad.stride(1);
  return rows;
}

}  // namespace cawa_fast
