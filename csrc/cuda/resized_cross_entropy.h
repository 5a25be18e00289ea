// Operators of torch.ops.cawa_fast_cuda: cross-entropy of logits that are resized bilinearly to the labels' size.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace cawa_fast::cuda {

using torch::stable::Tensor;

// clang-format off: it would break the table
//
// The loss of cross_entropy.h, where z are the logits at the labels' size, by F.interpolate(mode="bilinear").
//
//   input            (N, C, h, w); C in [1, 4096], h and w at least 2; float32, bfloat16 or float16, computed as
//                    float32; any values. Read in place if neighbours along w are neighbours in memory, else copied
//   target           (N, H, W); uint8, int16, int32 or int64; labels outside [0, C) count as ignored. h <= H <= 8 h,
//                    with align_corners H - 1 <= 8 (h - 1), and likewise W. Copied unless contiguous
//   weight           (C,) contiguous float32, >= 0; none means 1
//   scale            (C,) contiguous float32: what each pixel's loss is multiplied with, by its label, in the sum
//   ignore_index     any int64
//   per_pixel        return the loss of every pixel (0 where ignored, without scale), not the sum
//   label_smoothing  in [0, 1]
//   align_corners    as in F.interpolate
//   save             also return what the gradient needs
//
// Returns
//   loss             float32: () sum over valid pixels, NaN if scale_0 is; or the target's shape
//   statistics       float32, about 1.06 values a pixel at ratio 4; or (0,)
//
// All tensors are on one device, whose current stream does the work. Nothing waits for it and no value is read by the
// host, so that a CUDA graph can capture the call. No tensor of N C H W elements exists. The same bits every time.
// clang-format on
std::tuple<Tensor, Tensor> resized_cross_entropy(const Tensor& input, const Tensor& target,
                                                 const std::optional<Tensor>& weight, const Tensor& scale,
                                                 int64_t ignore_index, bool per_pixel, double label_smoothing,
                                                 bool align_corners, bool save);

// The gradient with respect to input, in its dtype and, if dense, strides: times `grad`, () for the sum, the
// target's shape for the pixels' losses; float32. `statistics` are the forward pass's.
Tensor resized_cross_entropy_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                                      const std::optional<Tensor>& weight, const Tensor& scale,
                                      const Tensor& statistics, int64_t ignore_index, double label_smoothing,
                                      bool align_corners);

}  // namespace cawa_fast::cuda
