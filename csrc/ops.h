// The operators of torch.ops.cawa_fast_cpu. Each has its own file; library.cpp registers them. They are called by
// cawa_fast/_ops.py, which holds the public schemas and the fake implementations.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <tuple>

namespace cawa_fast {

using torch::stable::Tensor;

// clang-format off: it would break the table
//
// Confusion matrix of two label maps: counts[t][p] = number of pixels with target t and prediction p.
//
//   prediction    any shape, usually (N, H, W); uint8, int16, int32 or int64; any strides;
//                 meant to be in [0, num_classes)
//   target        the same shape; one of the same dtypes, not necessarily the same one; any strides;
//                 meant to be in [0, num_classes) or equal to ignore_index
//   num_classes   C, in [1, 65535]: the key t * C + p is 32 bits wide
//   ignore_index  any int64. Pixels whose target equals it are skipped, even if it lies in [0, C); a value that the
//                 dtype of target cannot hold (-100 for uint8) matches nothing
//
// Returns
//   counts        (C, C), int64, each in [0, number of pixels]; rows = target, columns = prediction
//   bad           (6,), int64: how many targets are bad, the smallest and the largest of them; then the same three
//                 of the predictions. A target is bad outside [0, C) unless it is ignore_index; a prediction is bad outside
//                 [0, C) where the target is neither bad nor ignored. Bad pixels are not in counts. Without bad values
//                 the three are 0, INT64_MAX, INT64_MIN
//
// A non-contiguous label map is copied: labels are a small part of the traffic of whatever made them.
// The result is the same for any number of threads, since sums, minima and maxima of integers are exact in any order.
// clang-format on
std::tuple<Tensor, Tensor> confusion_matrix_labels(const Tensor& prediction, const Tensor& target, int64_t num_classes,
                                                   int64_t ignore_index);

}  // namespace cawa_fast
