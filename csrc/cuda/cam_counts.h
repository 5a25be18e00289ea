// cam_counts of torch.ops.cawa_fast_cuda.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <tuple>

namespace cawa_fast::cuda {

using torch::stable::Tensor;

// clang-format off: it would break the table
//
// True positives, false positives and false negatives of thresholded maps, resized bilinearly to the labels' size. With
// v a resized value and top the largest one of its map, a pixel is in a class's mask if v / top > tau; none if top is
// not a positive finite number.
//
//   cam              (N, C, h, w), C in [1, 32767]; float32, bfloat16 or float16, computed as float32; any values, any
//                    strides as long as the samples of a plane lie less than 2^31 elements apart
//   target           (N, H, W); uint8, int16, int32 or int64; labels outside [0, C) do not count. Copied unless
//                    contiguous
//   truth            (N, C) contiguous int64: pixels of each label in each image
//   tau              >= 0, rounded to float32
//   by_maximum       normalize="max", as above; else "none": a pixel is in the mask if v > tau
//   every_class      count all classes in all images, and not only those that the image's truth has
//   ignore_index     any int64: such labels do not count
//   align_corners    as in F.interpolate
//
// Returns tp, fp, fn: (C,) int64 each. Exactly those of reference.cam_counts.
//
// All tensors are on one device, whose current stream does the work. Nothing waits for it and no value is read by the
// host, so that a CUDA graph can capture the call. Scratch memory: 4 bytes for each map. Made for cells (count_cells.h)
// of up to about 8 x 8 pixels: larger ones are right too, but a thread walks through each.
// clang-format on
std::tuple<Tensor, Tensor, Tensor> cam_counts(const Tensor& cam, const Tensor& target, const Tensor& truth, double tau,
                                              bool by_maximum, bool every_class, int64_t ignore_index,
                                              bool align_corners);

}  // namespace cawa_fast::cuda
