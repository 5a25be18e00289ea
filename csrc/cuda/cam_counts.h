// The operator cam_counts of torch.ops.cawa_fast_cuda.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <tuple>

namespace cawa_fast::cuda {

using torch::stable::Tensor;

// clang-format off: it would break the table
//
// True positives, false positives and false negatives of thresholded maps, resized bilinearly to the labels' size. Let
// v be a resized value and top the largest one of its map. A pixel is in a class's mask if v / top > tau. If top is not
// a positive finite number, no pixel is.
//
//   cam              (N, C, h, w), C in [1, 32767]; float32, bfloat16 or float16, computed as float32; any values, any
//                    strides as long as the samples of a plane lie less than 2^31 elements apart
//   target           (N, H, W); uint8, int16, int32 or int64; any strides, copied unless contiguous. Labels outside
//                    [0, C) are not counted
//   truth            (N, C) contiguous int64: valid pixels of each class in each image
//   tau              >= 0, rounded to float32
//   by_maximum       true: normalize="max", as above; false: "none", a pixel is in the mask if v > tau
//   every_class      count all classes in all images, not only those with truth > 0
//   ignore_index     any int64: such labels are not counted
//   align_corners    as in F.interpolate
//
// Returns tp, fp, fn: (C,) int64 each, equal to those of reference.cam_counts.
//
// All tensors are on one device. The work runs on its current stream, and the host does not synchronise with it, so
// that a CUDA graph can capture the call. Scratch memory: 4 bytes per map. Designed for cells (count_cells.h) of up to
// about 8 x 8 pixels. Larger cells give correct results, but slowly, since one thread loops over each.
// clang-format on
std::tuple<Tensor, Tensor, Tensor> cam_counts(const Tensor& cam, const Tensor& target, const Tensor& truth, double tau,
                                              bool by_maximum, bool every_class, int64_t ignore_index,
                                              bool align_corners);

}  // namespace cawa_fast::cuda
