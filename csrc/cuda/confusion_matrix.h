// The operator confusion_matrix of torch.ops.cawa_fast_cuda.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

namespace cawa_fast::cuda {

using torch::stable::Tensor;

// clang-format off: it would break the table
//
// Confusion matrix of the argmax of logits, resized bilinearly to the labels' size. Of equal largest logits the first
// wins; NaN counts as the largest.
//
//   input            (N, C, h, w), C in [1, 32767]; float32, bfloat16 or float16, computed as float32; any values, any
//                    strides as long as the samples of a plane lie less than 2^31 elements apart
//   target           (N, H, W); uint8, int16, int32 or int64; any strides, copied unless contiguous. Labels outside
//                    [0, C) are not counted
//   ignore_index     any int64: such labels are not counted
//   align_corners    as in F.interpolate
//   report           (3,) contiguous int64, or none: number, minimum and maximum of labels that are neither classes nor
//                    ignore_index; those of target are added
//
// Returns (C, C) int64: rows are labels, columns are predictions. Equal to reference.confusion_matrix.
//
// All tensors are on one device. The work runs on its current stream, and the host does not synchronise with it, so
// that a CUDA graph can capture the call. No scratch memory. Designed for cells (count_cells.h) of up to about 8 x 8
// pixels. Larger cells give correct results, but slowly, since one thread loops over each.
// clang-format on
Tensor confusion_matrix(const Tensor& input, const Tensor& target, int64_t ignore_index, bool align_corners,
                        const std::optional<Tensor>& report);

}  // namespace cawa_fast::cuda
