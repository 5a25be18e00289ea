// confusion_matrix of torch.ops.cawa_fast_cuda.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

namespace cawa_fast::cuda {

using torch::stable::Tensor;

// clang-format off: it would break the table
//
// Pairs of label and argmax of the logits, resized bilinearly to the labels' size; the first of equal logits wins, NaN
// is the largest.
//
//   input            (N, C, h, w), C in [1, 32767]; float32, bfloat16 or float16, computed as float32; any values, any
//                    strides as long as the samples of a plane lie less than 2^31 elements apart
//   target           (N, H, W); uint8, int16, int32 or int64; labels outside [0, C) do not count. Copied unless
//                    contiguous
//   ignore_index     any int64: such labels do not count
//   align_corners    as in F.interpolate
//   report           (3,) contiguous int64: how many labels are neither classes nor ignore_index, the least and the
//                    largest of them; these of target are added
//
// Returns (C, C) int64: rows are labels, columns predictions. Exactly those of reference.confusion_matrix.
//
// All tensors are on one device, whose current stream does the work. Nothing waits for it and no value is read by the
// host, so that a CUDA graph can capture the call. No scratch memory. Made for cells (count_cells.h) of up to about
// 8 x 8 pixels: larger ones are right too, but a thread walks through each.
// clang-format on
Tensor confusion_matrix(const Tensor& input, const Tensor& target, int64_t ignore_index, bool align_corners,
                        const std::optional<Tensor>& report);

}  // namespace cawa_fast::cuda
