// The operators of torch.ops.cawa_fast_cpu. Each has its own file; library.cpp registers them. They are called by
// cawa_fast/_ops/, which holds the public schemas and the fake implementations.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
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
//                 of the predictions. A target is bad outside [0, C) unless it is ignore_index; a prediction is bad
//                 outside [0, C) where the target is neither bad nor ignored. Bad pixels are not in counts. Without bad values
//                 the three are 0, INT64_MAX, INT64_MIN
//
// A non-contiguous label map is copied: labels are a small part of the traffic of whatever made them.
// The result is the same for any number of threads, since sums, minima and maxima of integers are exact in any order.
// clang-format on
std::tuple<Tensor, Tensor> confusion_matrix_labels(const Tensor& prediction, const Tensor& target, int64_t num_classes,
                                                   int64_t ignore_index);

// clang-format off
//
// Confusion matrix of the argmax of logits, resized bilinearly to the labels.
//
//   input         (N, C, h, w), C in [1, 32767]; float32, bfloat16 or float16; any values, any strides, never copied.
//                 The lowest of equal largest classes wins; NaN is the largest, the first one wins
//   target        (N, H, W); uint8, int16, int32 or int64; labels outside [0, C) count as ignored
//   ignore_index  any int64
//
// Returns (C, C), int64; rows = target, columns = prediction. Exactly what the specification (reference.py) counts.
// clang-format on
Tensor confusion_matrix(const Tensor& input, const Tensor& target, int64_t ignore_index, bool align_corners);

// clang-format off
//
// Pixels of each class's pseudo mask against the labels: the map, resized bilinearly, normalised, above tau.
//
//   cam           (N, C, h, w); float32, bfloat16 or float16; any values, any strides, never copied
//   target        (N, H, W); uint8, int16, int32 or int64; labels outside [0, C) count as ignored
//   truth         (N, C), contiguous int64: valid pixels of each class in each image (label_histogram)
//   tau           threshold, rounded to float32
//   normalize     0 max, 1 minmax, 2 gradcam, 3 none (reference.py, pseudo_masks)
//   all_classes   score every class in every image; else only those with truth > 0
//
// Returns tp, fp, fn, each (C,), int64. Exactly what the specification counts.
// clang-format on
std::tuple<Tensor, Tensor, Tensor> cam_counts(const Tensor& cam, const Tensor& target, const Tensor& truth, double tau,
                                              int64_t normalize, bool all_classes, int64_t ignore_index,
                                              bool align_corners);

// clang-format off
//
// How many pixels each class has in each image.
//
//   target        (N, ...); uint8, int16, int32 or int64; any strides (copied unless contiguous)
//   num_classes   C >= 1
//   ignore_index  any int64; never counted
//
// Returns
//   counts        (N, C), int64
//   bad           (3,), int64: number, minimum and maximum of the labels outside [0, C) that are not ignore_index
//                 (0, INT64_MAX, INT64_MIN without any)
// clang-format on
std::tuple<Tensor, Tensor> label_histogram(const Tensor& target, int64_t num_classes, int64_t ignore_index);

// The second result of label_histogram alone; target of any shape.
Tensor bad_labels(const Tensor& target, int64_t num_classes, int64_t ignore_index);

// clang-format off
//
// Weighted cross-entropy of logits, resized bilinearly to the labels where the sizes differ, and its gradient.
// With s = label_smoothing a pixel of label y has the loss
//   l = (1 - s) w_y (lse - z_y) + s / C sum_c w_c (lse - z_c),    lse = log sum_c exp z_c
//
//   input            (N, C, h, w), or (N, C, d1, ...) with the labels' sizes, at most 8 dimensions; C in [1, 65534];
//                    float32, bfloat16 or float16, computed as float32; any values, any strides, never copied
//   target           (N, H, W) or (N, d1, ...); uint8, int16, int32 or int64; labels outside [0, C) count as ignored
//   weight           (C,) contiguous float32, >= 0; none means 1
//   scale            (C,) contiguous float32: what each pixel's loss is multiplied with, by its label, in the sum
//   ignore_index     any int64
//   per_pixel        return l of every pixel (0 where ignored, without scale), not the sum; excludes with_grad
//   label_smoothing  s, in [0, 1]
//   align_corners    as in F.interpolate
//   with_grad        also form the gradient of the sum
//
// Returns
//   loss             float32: () sum of scale_y l over valid pixels, NaN if scale_0 is; or the target's shape
//   grad             input's shape, dtype and, if dense, strides; or, without with_grad, (0,)
//
// The same bits for any number of threads.
// clang-format on
std::tuple<Tensor, Tensor> cross_entropy(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight,
                                         const Tensor& scale, int64_t ignore_index, bool per_pixel,
                                         double label_smoothing, bool align_corners, bool with_grad);

// The gradient alone, times `grad`: (1,) or () for the sum, the target's shape for the pixels' losses; float32.
Tensor cross_entropy_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                              const std::optional<Tensor>& weight, const Tensor& scale, int64_t ignore_index,
                              double label_smoothing, bool align_corners);

// Frees the memory of the last large gradient, which is kept for the next one.
void release_gradient_memory();

}  // namespace cawa_fast
