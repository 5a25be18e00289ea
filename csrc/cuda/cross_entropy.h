// The operators of torch.ops.cawa_fast_cuda.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace cawa_fast::cuda {

using torch::stable::Tensor;

// clang-format off: it would break the table
//
// Weighted cross-entropy of logits of the labels' size, and its gradient. With s = label_smoothing a pixel of label y
// has the loss
//   l = (1 - s) w_y (lse - z_y) + s / C sum_c w_c (lse - z_c),    lse = log sum_c exp z_c
//
//   input            (N, C, d1, ...), at most 8 dimensions; C in [1, 32767]; float32, bfloat16 or float16, computed as
//                    float32; any values, any strides, never copied. Fastest contiguous, with planes of a multiple of
//                    16 bytes, or channels_last
//   target           (N, d1, ...); uint8, int16, int32 or int64; labels outside [0, C) count as ignored. Copied unless
//                    contiguous
//   weight           (C,) contiguous float32, >= 0; none means 1
//   scale            (C,) contiguous float32: what each pixel's loss is multiplied with, by its label, in the sum
//   ignore_index     any int64
//   per_pixel        return l of every pixel (0 where ignored, without scale), not the sum; excludes with_grad
//   label_smoothing  s, in [0, 1]
//   with_grad        also form the gradient of the sum
//
// Returns
//   loss             float32: () sum of scale_y l over valid pixels, NaN if scale_0 is; or the target's shape
//   grad             input's shape, dtype and, if dense, strides; or, without with_grad, (0,)
//
// All tensors are on one device, whose current stream does the work. Nothing waits for it and no value is read by the
// host, so that a CUDA graph can capture the call. Scratch memory: with a summed loss 8 bytes per block, which has 8 to
// 512 pixels; with label smoothing and weights one float more. Logits are read once, and their gradient written once;
// with more classes than fit into a block (many_classes.h) they are read twice. The same bits every time.
// clang-format on
std::tuple<Tensor, Tensor> cross_entropy(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight,
                                         const Tensor& scale, int64_t ignore_index, bool per_pixel,
                                         double label_smoothing, bool with_grad);

// The gradient alone, times `grad`: (1,) or () for the sum, the target's shape for the pixels' losses; float32.
Tensor cross_entropy_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                              const std::optional<Tensor>& weight, const Tensor& scale, int64_t ignore_index,
                              double label_smoothing);

// Makes of the gradient that cross_entropy formed, that of an upstream gradient of 1, the one for `grad`, () or (1,).
// If that is 1, as of loss.backward(), it costs a launch and no pass over memory; else the gradient is computed anew,
// from the logits, since a product of what is already rounded would be rounded twice.
void cross_entropy_rescale(const Tensor& grad_input, const Tensor& grad, const Tensor& input, const Tensor& target,
                           const std::optional<Tensor>& weight, const Tensor& scale, int64_t ignore_index,
                           double label_smoothing);

}  // namespace cawa_fast::cuda
