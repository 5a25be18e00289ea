// The operators of torch.ops.cawa_fast_cuda for the cross-entropy of logits of the labels' size.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace cawa_fast::cuda {

using torch::stable::Tensor;

// clang-format off: it would break the table
//
// Weighted cross-entropy or focal loss of logits of the labels' size, and its gradient. With s = label_smoothing a pixel
// of label y has the loss
//   l = (1 - s) w_y (1 - p)^gamma (lse - z_y) + s / C sum_c w_c (lse - z_c),
//   z_c = input_c + offset_c,    lse = log sum_c exp z_c,    p = exp(z_y - lse)
//
//   input            (N, C, d1, ...), at most 8 dimensions; C in [1, 32767]; float32, bfloat16 or float16, computed as
//                    float32; any values, any strides, never copied. Fastest contiguous, with planes of a multiple of
//                    16 bytes, or channels_last
//   target           (N, d1, ...); uint8, int16, int32 or int64; any strides, copied unless contiguous. Labels outside
//                    [0, C) count as ignored
//   weight           (C,) contiguous float32, >= 0; none means 1
//   offset           (C,) contiguous float32, finite; none means 0
//   scale            (C,) contiguous float32: factor of the loss of pixels with each label, in the sum
//   ignore_index     any int64
//   per_pixel        return l of every pixel, 0 where ignored and without scale, not the sum; excludes with_grad
//   label_smoothing  s, in [0, 1]
//   gamma            >= 0; at most one of gamma and s is positive
//   with_grad        also compute the gradient of the sum
//
// Returns
//   loss             float32: () the sum of scale_y l over valid pixels, NaN if scale_0 is; with per_pixel the shape of
//                    target
//   grad             shape, dtype and, if dense, strides of input; without with_grad (0,)
//
// All tensors are on one device. The work runs on its current stream, and the host does not synchronise with it, so
// that a CUDA graph can capture the call. Scratch memory: for a summed loss 8 bytes per thread block, which has 8 to
// 512 pixels; with label smoothing and weights one float more. Logits are read once and their gradient is written once;
// with more classes than a thread block can hold (many_classes.h) they are read twice. The results are deterministic.
// clang-format on
std::tuple<Tensor, Tensor> cross_entropy(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight,
                                         const std::optional<Tensor>& offset, const Tensor& scale, int64_t ignore_index,
                                         bool per_pixel, double label_smoothing, double gamma, bool with_grad);

// The gradient with respect to input, in its shape, dtype and, if dense, strides. `grad` is the upstream gradient,
// float32: () or (1,) of the sum, or the shape of target for losses per pixel. The other arguments are those of
// cross_entropy.
Tensor cross_entropy_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                              const std::optional<Tensor>& weight, const std::optional<Tensor>& offset,
                              const Tensor& scale, int64_t ignore_index, double label_smoothing, double gamma);

// Turns grad_input, the gradient from cross_entropy for an upstream gradient of 1, into the gradient for `grad`, () or
// (1,) float32, in place. If `grad` is 1, as in loss.backward(), this costs a launch and no pass over memory. Otherwise
// the gradient is computed again from the logits, since scaling the already rounded values would round them twice.
void cross_entropy_rescale(const Tensor& grad_input, const Tensor& grad, const Tensor& input, const Tensor& target,
                           const std::optional<Tensor>& weight, const std::optional<Tensor>& offset,
                           const Tensor& scale, int64_t ignore_index, double label_smoothing, double gamma);

}  // namespace cawa_fast::cuda
