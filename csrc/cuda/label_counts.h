// The operators of torch.ops.cawa_fast_cuda that read only label maps: pixels of each class, and the reduction's
// factors.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

namespace cawa_fast::cuda {

using torch::stable::Tensor;

// clang-format off: it would break the table
//
// Both operators read the labels once, 16 bytes at a time where these are contiguous and aligned. The host does not
// synchronise with the device.
//
//   target        (N, ...); uint8, int16, int32 or int64; any strides, copied unless contiguous
//   num_classes   C, in [1, 8192]
//   ignore_index  any int64: such labels are not counted
//   report        (3,) contiguous int64, or none: number, minimum and maximum of the labels that are neither in [0, C)
//                 nor ignore_index; those of target are added
//
// label_counts returns (N, C) int64: valid pixels of each class in each image. It is a view of a larger tensor.
// clang-format on
Tensor label_counts(const Tensor& target, int64_t num_classes, int64_t ignore_index,
                    const std::optional<Tensor>& report);

// Returns (C,) float32: the factor of the loss of pixels with each label, such that the sum over all pixels is the
// reduction. `weight`: (C,) contiguous float32, >= 0, or none for 1. `reduction`: 0 sum, 1 pixel_mean, 2 mean,
// 3 valid_mean, 4 class_mean, 5 none.
Tensor label_scale(const Tensor& target, int64_t num_classes, int64_t ignore_index, const std::optional<Tensor>& weight,
                   int64_t reduction, const std::optional<Tensor>& report);

}  // namespace cawa_fast::cuda
