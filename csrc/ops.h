// The operators of torch.ops.cawa_fast_cpu. Each has its own file, and library.cpp registers them. Only
// cawa_fast._ops calls them; it holds the public schemas and the fake implementations.
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
//   prediction    any shape, usually (N, H, W); uint8, int16, int32 or int64; any strides; in [0, num_classes)
//   target        shape of prediction; uint8, int16, int32 or int64, which may differ from prediction's; any strides;
//                 in [0, num_classes) or equal to ignore_index
//   num_classes   C, in [1, 65535]: the key t * C + p is 32 bits wide
//   ignore_index  any int64. Pixels whose target equals it are skipped, even if it lies in [0, C). A value that the
//                 dtype of target cannot hold, such as -100 for uint8, matches nothing
//
// Returns
//   counts        (C, C), int64, each in [0, number of pixels]; rows = target, columns = prediction
//   bad           (6,), int64: number, minimum and maximum of the bad targets, then of the bad predictions; 0,
//                 INT64_MAX, INT64_MIN without any. A target is bad if it is outside [0, C) and not ignore_index. A
//                 prediction is bad if it is outside [0, C) and its target is neither bad nor ignored. Pixels with a
//                 bad target or prediction are not in counts
//
// A label map that is not contiguous is copied, which is cheap beside the work that produced it.
// The result does not depend on the number of threads, since integer sums, minima and maxima are exact in any order.
// clang-format on
std::tuple<Tensor, Tensor> confusion_matrix_labels(const Tensor& prediction, const Tensor& target, int64_t num_classes,
                                                   int64_t ignore_index);

// clang-format off
//
// Confusion matrix of the argmax of logits, resized bilinearly to the labels.
//
//   input         (N, C, h, w), C in [1, 32767]; float32, bfloat16 or float16; any values, any strides, never copied.
//                 Of equal largest logits the lowest class wins. NaN counts as the largest, and the first NaN wins
//   target        (N, H, W); uint8, int16, int32 or int64; any strides, copied unless contiguous. Labels outside [0, C)
//                 count as ignored
//   ignore_index  any int64
//   align_corners as in F.interpolate
//
// Returns (C, C), int64; rows = target, columns = prediction. Equal to the specification (reference.py) in every pixel.
// clang-format on
Tensor confusion_matrix(const Tensor& input, const Tensor& target, int64_t ignore_index, bool align_corners);

// clang-format off
//
// True positives, false positives and false negatives of the pseudo masks. A class's mask holds the pixels at which its
// map, resized bilinearly to the labels and normalised, exceeds tau.
//
//   cam           (N, C, h, w); float32, bfloat16 or float16; any values, any strides, never copied
//   target        (N, H, W); uint8, int16, int32 or int64; any strides, copied unless contiguous. Labels outside [0, C)
//                 count as ignored
//   truth         (N, C), contiguous int64: valid pixels of each class in each image, from label_histogram
//   tau           threshold, rounded to float32
//   normalize     0 max, 1 minmax, 2 gradcam, 3 none, as pseudo_masks in reference.py defines them
//   all_classes   score every class in every image, not only those with truth > 0
//   ignore_index  any int64
//   align_corners as in F.interpolate
//
// Returns tp, fp, fn, each (C,), int64. Equal to the specification (reference.py) in every pixel.
// clang-format on
std::tuple<Tensor, Tensor, Tensor> cam_counts(const Tensor& cam, const Tensor& target, const Tensor& truth, double tau,
                                              int64_t normalize, bool all_classes, int64_t ignore_index,
                                              bool align_corners);

// clang-format off
//
// The number of pixels of each class in each image.
//
//   target        (N, ...); uint8, int16, int32 or int64; any strides, copied unless contiguous
//   num_classes   C >= 1
//   ignore_index  any int64; never counted
//
// Returns
//   counts        (N, C), int64
//   bad           (3,), int64: number, minimum and maximum of the labels outside [0, C) that are not ignore_index; 0,
//                 INT64_MAX, INT64_MIN without any
// clang-format on
std::tuple<Tensor, Tensor> label_histogram(const Tensor& target, int64_t num_classes, int64_t ignore_index);

// Only the second result of label_histogram. `target` has any shape.
Tensor bad_labels(const Tensor& target, int64_t num_classes, int64_t ignore_index);

// clang-format off
//
// Weighted cross-entropy or focal loss of logits, resized bilinearly to the labels where the sizes differ, and its
// gradient. With s = label_smoothing, a pixel of label y has the loss
//   l = (1 - s) w_y (1 - p_y)^gamma (lse - z_y) + s / C sum_c w_c (lse - z_c),
//   z = input + offset,    lse = log sum_c exp z_c,    p = exp(z - lse)
//
//   input            (N, C, h, w), or (N, C, d1, ...) with the labels' sizes, at most 8 dimensions; C in [1, 65534];
//                    float32, bfloat16 or float16, computed as float32; any values, any strides, never copied
//   target           (N, H, W) or (N, d1, ...); uint8, int16, int32 or int64; any strides, copied unless contiguous.
//                    Labels outside [0, C) count as ignored
//   weight           (C,) contiguous float32, >= 0; none means 1
//   offset           (C,) contiguous float32, finite; none means 0
//   scale            (C,) contiguous float32: factor of the loss of pixels with each label, in the sum
//   ignore_index     any int64
//   per_pixel        return l of every pixel, 0 where ignored and without scale, not the sum; excludes with_grad
//   label_smoothing  s, in [0, 1]; 0 if gamma > 0
//   gamma            finite and >= 0; 0 for the cross-entropy
//   align_corners    as in F.interpolate
//   with_grad        also compute the gradient of the sum
//
// Returns
//   loss             float32: () the sum of scale_y l over valid pixels, NaN if scale_0 is; with per_pixel the shape of
//                    target
//   grad             shape, dtype and, if dense, strides of input; without with_grad (0,)
//
// The results have the same bits for any number of threads.
// clang-format on
std::tuple<Tensor, Tensor> cross_entropy(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight,
                                         const std::optional<Tensor>& offset, const Tensor& scale, int64_t ignore_index,
                                         bool per_pixel, double label_smoothing, double gamma, bool align_corners,
                                         bool with_grad);

// The gradient with respect to input, in its shape, dtype and, if dense, strides. `grad` is the upstream gradient,
// float32: () or (1,) of the sum, or the shape of target for losses per pixel. The other arguments are those of
// cross_entropy.
Tensor cross_entropy_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                              const std::optional<Tensor>& weight, const std::optional<Tensor>& offset,
                              const Tensor& scale, int64_t ignore_index, double label_smoothing, double gamma,
                              bool align_corners);

// clang-format off
//
// The mean or summed loss of cross_entropy, and soft sums of each class over the valid pixels of each image, of which
// region losses such as Dice are functions. Arguments as in cross_entropy, and
//
//   squared          sum the squares of the probabilities
//
// Returns
//   loss             float32 (), as cross_entropy
//   sums             (N, 2, C), float32: sum of p_c over the pixels of label c, and of p_c, or p_c^2, over all pixels
//
// The results have the same bits for any number of threads.
// clang-format on
std::tuple<Tensor, Tensor> region_sums(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight,
                                       const std::optional<Tensor>& offset, const Tensor& scale, int64_t ignore_index,
                                       double label_smoothing, double gamma, bool squared, bool align_corners);

// The gradient with respect to input, in its shape, dtype and, if dense, strides. `grad`, (), and `grad_sums`,
// (N, 2, C), are the upstream gradients of loss and sums, contiguous float32.
Tensor region_sums_backward(const Tensor& grad, const Tensor& grad_sums, const Tensor& input, const Tensor& target,
                            const std::optional<Tensor>& weight, const std::optional<Tensor>& offset,
                            const Tensor& scale, int64_t ignore_index, double label_smoothing, double gamma,
                            bool squared, bool align_corners);

// Frees the memory of the last large gradient, which gradient_memory.cpp keeps for the next one.
void release_gradient_memory();

}  // namespace cawa_fast
