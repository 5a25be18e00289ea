// The operators of torch.ops.cawa_fast_cuda for the cross-entropy of logits that are resized bilinearly to the labels.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace cawa_fast::cuda {

using torch::stable::Tensor;

// clang-format off: it would break the table
//
// The loss of cross_entropy.h, where z are the logits resized to the labels' size as in F.interpolate(mode="bilinear").
//
//   input            (N, C, h, w); C in [1, 4096], h and w at least 2; float32, bfloat16 or float16, computed as
//                    float32; any values. Copied unless the stride along w is 1
//   target           (N, H, W) with h <= H <= 8 h, with align_corners H - 1 <= 8 (h - 1), and likewise W; uint8, int16,
//                    int32 or int64; any strides, copied unless contiguous. Labels outside [0, C) count as ignored
//   weight           (C,) contiguous float32, >= 0; none means 1
//   offset           (C,) contiguous float32, finite; none means 0
//   scale            (C,) contiguous float32: factor of the loss of pixels with each label, in the sum
//   ignore_index     any int64
//   per_pixel        return the loss of every pixel, 0 where ignored and without scale, not the sum
//   label_smoothing  in [0, 1]
//   gamma            >= 0; at most one of gamma and label_smoothing is positive
//   align_corners    as in F.interpolate
//   save             also return the statistics that the gradient needs
//
// Returns
//   loss             float32: () the sum of scaled losses over valid pixels, NaN if scale_0 is; with per_pixel the
//                    shape of target
//   statistics       (S,) float32, about 1.06 values per pixel at ratio 4, with gamma 2.06; without save (0,)
//
// All tensors are on one device. The work runs on its current stream, and the host does not synchronise with it, so
// that a CUDA graph can capture the call. No tensor of N C H W elements is stored. The results are deterministic.
// clang-format on
std::tuple<Tensor, Tensor> resized_cross_entropy(const Tensor& input, const Tensor& target,
                                                 const std::optional<Tensor>& weight,
                                                 const std::optional<Tensor>& offset, const Tensor& scale,
                                                 int64_t ignore_index, bool per_pixel, double label_smoothing,
                                                 double gamma, bool align_corners, bool save);

// The gradient with respect to input, in its shape, dtype and, if dense, strides. `grad` is the upstream gradient,
// float32: () of the sum, or the shape of target for losses per pixel. `statistics` come from resized_cross_entropy
// with `save`, and the other arguments are those of that call.
Tensor resized_cross_entropy_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                                      const std::optional<Tensor>& weight, const std::optional<Tensor>& offset,
                                      const Tensor& scale, const Tensor& statistics, int64_t ignore_index,
                                      double label_smoothing, double gamma, bool align_corners);

}  // namespace cawa_fast::cuda
