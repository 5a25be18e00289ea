// Shared by the cross-entropy kernels: problem description, pixels and labels, terms of the loss, sums.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>

#include "../kernels.h"
#include "device.h"

namespace cawa_fast::cuda {

using BFloat16 = torch::headeronly::BFloat16;
using Half = torch::headeronly::Half;

constexpr int kWarp = 32;
constexpr int kIgnored = -1;

// A cross-entropy over all pixels. They are split into tiles, each of pixels of one row, one per thread block. s is the
// label smoothing, in [0, 1]. At most one of s and gamma is positive.
struct Problem {
  PixelRows pixels;
  int classes;
  const void* input;   // logits, any values
  void* grad_input;    // output, in the input's type; null for none
  const void* labels;  // contiguous, one per pixel
  Label label_type;
  int64_t ignore_index;
  const float* weight;      // (C), >= 0, or null for 1
  const float* weight_sum;  // (1): sum of weight; null for C
  const float* offset;      // (C), finite, added to the logits, or null for 0
  const float* scale;       // (C): the reduction as a factor per class
  float keep, smooth;       // 1 - s, s / C
  float gamma;              // >= 0, the exponent of the focal loss
  const float* grad;        // upstream gradient: null for 1, else (1), or one per pixel if grad_per_pixel
  bool grad_per_pixel;
  bool unless_one;       // do nothing if `grad` is 1: grad_input already holds the gradient for that
  float* pixel_loss;     // output per pixel, without scale and grad; may be null
  double* partial_loss;  // output per thread block, with scale, without grad; may be null
  uint32_t tiles_per_row;
  int tile_pixels;
  int lanes_log2;  // only planar.h: log2 of the threads that share a pixel
};

// Decided on the device: the host would have to synchronise to read `grad`.
__device__ inline bool nothing_to_do(const Problem& p) { return p.unless_one && *p.grad == 1.0f; }

// e^x for x <= 0. The rounding of the product adds an error of |x| / 2 units in the last place of the result.
__device__ inline float exp_fast(float x) { return exp2_fast(x * 1.4426950408889634f); }

// What is subtracted from logits: their maximum, or 0 if all are -inf, since -inf - -inf would be NaN.
__device__ inline float shift_of(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }

// ----------------------------------------------------------------------------------------------------------- 16 bytes

template <class T>
struct Vector;  // 16 bytes of T: four floats, or eight 16-bit floats, the first in the lower half of x

template <>
struct Vector<float> {
  static constexpr int kSize = 4;
  static constexpr uint32_t kMinusInfinity = 0xff800000;
  __device__ static void unpack(uint4 bytes, float* values) {
    values[0] = __uint_as_float(bytes.x), values[1] = __uint_as_float(bytes.y);
    values[2] = __uint_as_float(bytes.z), values[3] = __uint_as_float(bytes.w);
  }
  __device__ static uint4 pack(const float* values) {
    return {__float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]),
            __float_as_uint(values[3])};
  }
};

template <class T>
struct Vector16 {
  static constexpr int kSize = 8;
  __device__ static float value(uint32_t bits) {
    return static_cast<float>(T(static_cast<unsigned short>(bits), T::from_bits()));
  }
  __device__ static void unpack(uint4 bytes, float* values) {
    values[0] = value(bytes.x & 0xffff), values[1] = value(bytes.x >> 16);
    values[2] = value(bytes.y & 0xffff), values[3] = value(bytes.y >> 16);
    values[4] = value(bytes.z & 0xffff), values[5] = value(bytes.z >> 16);
    values[6] = value(bytes.w & 0xffff), values[7] = value(bytes.w >> 16);
  }
  __device__ static uint32_t pair(const float* values) {
    return T(values[0]).x | static_cast<uint32_t>(T(values[1]).x) << 16;
  }
  __device__ static uint4 pack(const float* values) {
    return {pair(values), pair(values + 2), pair(values + 4), pair(values + 6)};
  }
};
template <>
struct Vector<BFloat16> : Vector16<BFloat16> {
  static constexpr uint32_t kMinusInfinity = 0xff80ff80;
};
template <>
struct Vector<Half> : Vector16<Half> {
  static constexpr uint32_t kMinusInfinity = 0xfc00fc00;
};

// --------------------------------------------------------------------------------------------------- pixels and labels

// A tile: `count` pixels of a row, from pixel `x` on. `input`, `grad` and `labels` are offsets of the row's first
// pixel.
struct alignas(16) Tile {
  int64_t input, grad, labels, x;
  int count;
};

__device__ inline Tile tile_at(const Problem& p, uint32_t index) {
  uint32_t row = index / p.tiles_per_row;
  Tile tile{};
  tile.x = static_cast<int64_t>(index - row * p.tiles_per_row) * p.tile_pixels;
  tile.labels = row * p.pixels.length;
  const int64_t left = p.pixels.length - tile.x;
  tile.count = left < p.tile_pixels ? static_cast<int>(left) : p.tile_pixels;
  for (int d = p.pixels.outer - 1; d >= 0; --d) {
    const uint32_t size = static_cast<uint32_t>(p.pixels.size[d]);
    const uint32_t index_d = d > 0 ? row % size : row;
    tile.input += index_d * p.pixels.stride[d];
    tile.grad += index_d * p.pixels.grad_stride[d];
    row /= d > 0 ? size : 1;
  }
  return tile;
}

// The label at `i` as a class in [0, classes), or kIgnored. Other values of a label must not be used as an index.
__device__ inline int label_of(const void* labels, Label type, int64_t i, int classes, int64_t ignore_index) {
  int64_t label;
  switch (type) {
    case Label::kUInt8:
      label = static_cast<const uint8_t*>(labels)[i];
      break;
    case Label::kInt16:
      label = static_cast<const int16_t*>(labels)[i];
      break;
    case Label::kInt32:
      label = static_cast<const int32_t*>(labels)[i];
      break;
    default:
      label = static_cast<const int64_t*>(labels)[i];
  }
  const bool valid = label >= 0 && label < classes && label != ignore_index;
  return valid ? static_cast<int>(label) : kIgnored;
}

__device__ inline int label_at(const Problem& p, int64_t i) {
  return label_of(p.labels, p.label_type, i, p.classes, p.ignore_index);
}

// A pixel's label and the factors that it selects.
struct Pixel {
  int label;       // kIgnored where invalid; the factors are 0 there
  float at_label;  // (1 - s) * weight of the label
  float factor;    // scale of the label times the upstream gradient
};

// Pixel i, whose label is `label` (from label_at).
__device__ inline Pixel pixel_of(const Problem& p, int label, int64_t i) {
  if (label == kIgnored) return {kIgnored, 0, 0};
  float factor = p.scale[label];
  if (p.grad) factor *= p.grad[p.grad_per_pixel ? i : 0];
  return {label, p.weight ? p.keep * p.weight[label] : p.keep, factor};
}

__device__ inline Pixel pixel_at(const Problem& p, int64_t i) { return pixel_of(p, label_at(p, i), i); }

__device__ inline float weight_at(const Problem& p, int label) { return p.weight ? p.weight[label] : 1.0f; }

__device__ inline float offset_at(const Problem& p, int c) { return p.offset ? p.offset[c] : 0.0f; }

// --------------------------------------------------------------------------------------------------- loss and gradient

// The factor (1 - p)^gamma of a focal loss and, if f is the loss as a function of n = -log p, its derivative f'(n),
// with p the label's probability:
//   f(n) = (1 - p)^gamma n,   f'(n) = (1 - p)^gamma + gamma (1 - p)^(gamma - 1) p n
struct Focal {
  float factor, derivative;
};

__device__ inline Focal focal_of(float gamma, float negative_log) {
  const float n = fmaxf(negative_log, 0.0f);  // rounding may have made it negative
  const float p = exp_fast(-n);
  // Near p = 1 the difference 1 - p consists of rounding errors, and 0^(gamma - 1) is infinite.
  const float miss = n < 0x1p-5f ? n * (1 - n * (0.5f - n * (1.0f / 6))) : 1 - p;
  const float log_miss = log2f(fmaxf(miss, 0x1p-126f));
  const float scaled = p > 0 ? gamma * p * n : 0.0f;  // 0 * inf
  const float factor = exp2_fast(gamma * log_miss);
  return {factor, factor + exp2_fast((gamma - 1) * log_miss) * scaled};
}

// With e_c = exp(z_c - maximum), and label_term subtracted from the label's e_y first, the gradient of class c is
// e_c * coefficient - smooth * weight[c]. (e_y - sum) / sum is p_y - 1 without cancellation of rounded values.
// The callers multiply the coefficient by the derivative of a focal loss: only some of their kernels need its
// registers.
struct Terms {
  float coefficient, label_term, smooth;
};

// `sum`: the sum of e_c. `smoothed`: label smoothing is not 0.
__device__ inline Terms terms_of(const Problem& p, const Pixel& pixel, float sum, bool smoothed) {
  const float of_label = pixel.at_label * pixel.factor;
  if (!smoothed) return {divide_fast(of_label, sum), sum, 0};
  const float weight_sum = p.weight_sum ? *p.weight_sum : static_cast<float>(p.classes);
  const float of_all = of_label + pixel.factor * (p.smooth * weight_sum);
  return {of_all / sum, of_all != 0 ? sum * (of_label / of_all) : 0, pixel.factor * p.smooth};
}

// Writes the loss of pixel i if p.pixel_loss is set, and returns its contribution to the summed loss. The pixel may be
// ignored. `gap`: maximum minus the label's logit. `sum`: the sum of e_c. `weighted`: with smoothing, the sum of
// weight[c] * (z_c - maximum).
__device__ inline double loss_of(const Problem& p, const Pixel& pixel, int64_t i, float gap, float sum, float weighted,
                                 bool smoothed) {
  float loss = 0;
  if (pixel.label != kIgnored) {
    const float log_sum = logf(sum);
    loss = pixel.at_label * (gap + log_sum);
    if (p.gamma > 0) loss *= focal_of(p.gamma, gap + log_sum).factor;
    if (smoothed) {
      const float weight_sum = p.weight_sum ? *p.weight_sum : static_cast<float>(p.classes);
      loss += p.smooth * (weight_sum * log_sum - weighted);
    }
  }
  if (p.pixel_loss) p.pixel_loss[i] = loss;
  return pixel.label == kIgnored ? 0 : static_cast<double>(loss) * pixel.factor;
}

// --------------------------------------------------------------------------------------------------------------- sums

constexpr unsigned kAllLanes = 0xffffffff;

// Reductions over `lanes` neighbouring lanes, a power of two; all of them get the result.
__device__ inline float max_of_lanes(float value, int lanes) {
  for (int d = lanes / 2; d > 0; d /= 2) value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, d));
  return value;
}

template <class T>
__device__ T sum_of_lanes(T value, int lanes) {
  for (int d = lanes / 2; d > 0; d /= 2) value += __shfl_xor_sync(kAllLanes, value, d);
  return value;
}

// Sum over the thread block in a fixed order; thread 0 gets it. The block's size is a multiple of a warp. `shared` has
// a double per warp, reserved for this sum.
__device__ inline double sum_of_block(double value, double* shared) {
  const int thread = threadIdx.y * blockDim.x + threadIdx.x, warps = blockDim.x * blockDim.y / kWarp;
  value = sum_of_lanes(value, kWarp);
  if (thread % kWarp == 0) shared[thread / kWarp] = value;
  __syncthreads();
  if (thread >= kWarp) return 0;
  return sum_of_lanes(thread < warps ? shared[thread] : 0.0, kWarp);
}

}  // namespace cawa_fast::cuda
