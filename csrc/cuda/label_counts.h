// Operators of torch.ops.cawa_fast_cuda that read label maps alone: pixels of each class, and what a loss divides by.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

namespace cawa_fast::cuda {

using torch::stable::Tensor;

// Both read (N, ...) uint8, int16, int32 or int64 labels once, 16 bytes at a time where they are contiguous and
// aligned, and do not wait for the device. num_classes is at most 8192, ignore_index any int64. `report`, (3,) int64,
// is added to where labels are neither in [0, num_classes) nor ignore_index: how many, the least, the largest.

// (N, num_classes) int64: valid pixels of each class in each image.
Tensor label_counts(const Tensor& target, int64_t num_classes, int64_t ignore_index,
                    const std::optional<Tensor>& report);

// (num_classes,) float32: what the loss of a pixel is multiplied with, by its label, so that the sum over all pixels is
// the reduction. weight: (num_classes,) contiguous float32, or none for 1.
Tensor label_scale(const Tensor& target, int64_t num_classes, int64_t ignore_index, const std::optional<Tensor>& weight,
                   int64_t reduction, const std::optional<Tensor>& report);

}  // namespace cawa_fast::cuda
