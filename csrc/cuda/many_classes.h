// Cross-entropy for more classes than a thread block can hold, with any strides: three passes over the logits' bytes.
//
// Each pixel has `lanes` neighbouring lanes: one lane where neighbouring pixels are contiguous, a warp where classes
// are. The lanes read the pixel's logits once for the maximum and the sum of exponentials, which is rescaled whenever
// the maximum grows, and once more for the gradient. Where a pixel's classes are contiguous, a cache mostly serves the
// second read.
//
// Cost per logit: two reads and one write, of one logit each; 2 + 1 / kChunk exponentials.
#pragma once

#include "pixel.h"

namespace cawa_fast::cuda {

constexpr int kManyThreads = 256;
constexpr int kChunk = 8;  // logits that a lane loads together

// Launched with kManyThreads threads, `lanes` 1 or a warp, and tiles of kManyThreads / lanes pixels. Five thread blocks
// share a multiprocessor: for a sixth the compiler would spill registers.
template <class T>
__global__ void __launch_bounds__(kManyThreads, 5) many_classes(const __grid_constant__ Problem p, int lanes) {
  if (nothing_to_do(p)) return;
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const int lane = threadIdx.x % lanes, i = threadIdx.x / lanes;
  const bool smoothed = p.smooth > 0;
  double total = 0;

  const Tile tile = tile_at(p, blockIdx.x);
  // Lanes without a pixel read nothing, but take part in the shuffles.
  const int classes = i < tile.count ? p.classes : 0;
  const int64_t at = tile.labels + tile.x + i;
  const Pixel pixel = i < tile.count ? pixel_at(p, at) : Pixel{kIgnored, 0, 0};
  const T* input = static_cast<const T*>(p.input) + tile.input + (tile.x + i) * p.pixels.stride_x;

  // 1. Over this lane's classes: maximum, sum of exp(z - shift), sum of weight * (z - shift), sum of weight.
  float maximum = -INFINITY, sum = 0, weighted = 0, weight = 0;
  for (int begin = lane; begin < classes; begin += kChunk * lanes) {
    const float last = shift_of(maximum);
    float z[kChunk];
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      const int c = begin + k * lanes;
      z[k] = c < classes ? static_cast<float>(input[c * p.pixels.stride_c]) : -INFINITY;
    }
    if (p.offset) {
#pragma unroll
      for (int k = 0; k < kChunk; ++k) {
        if (begin + k * lanes < classes) z[k] += p.offset[begin + k * lanes];
      }
    }
#pragma unroll
    for (int k = 0; k < kChunk; ++k) maximum = fmaxf(maximum, z[k]);
    const float shift = shift_of(maximum);
    if (sum > 0) sum *= exp_fast(last - shift);
    weighted += weight * (last - shift);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      sum += exp_fast(z[k] - shift);
      if (smoothed && begin + k * lanes < classes) {
        const float of_class = weight_at(p, begin + k * lanes);
        weighted += of_class * (z[k] - shift);
        weight += of_class;
      }
    }
  }

  // 2. Over all classes, and the loss.
  const float of_lane = maximum, own = shift_of(maximum);
  maximum = max_of_lanes(maximum, lanes);
  const float shift = shift_of(maximum);
  sum = sum_of_lanes(sum * exp_fast(of_lane - shift), lanes);
  weighted = sum_of_lanes(weighted + weight * (own - shift), lanes);
  // Read where it is needed, since a register for it would spill others.
  const auto gap = [&] {
    if (pixel.label == kIgnored) return 0.0f;
    return maximum - (static_cast<float>(input[pixel.label * p.pixels.stride_c]) + offset_at(p, pixel.label));
  };
  if (lane == 0 && i < tile.count && (p.pixel_loss || p.partial_loss)) {
    total += loss_of(p, pixel, at, gap(), sum, weighted, smoothed);
  }
  if (p.partial_loss) {
    total = sum_of_block(total, reinterpret_cast<double*>(shared_memory));
    if (threadIdx.x == 0) p.partial_loss[blockIdx.x] = total;
  }
  if (!p.grad_input) return;

  // 3. The gradient.
  Terms terms = terms_of(p, pixel, sum, smoothed);
  if (p.gamma > 0) terms.coefficient *= focal_of(p.gamma, gap() + logf(sum)).derivative;
  T* grad = static_cast<T*>(p.grad_input) + tile.grad + (tile.x + i) * p.pixels.grad_stride_x;
#pragma unroll 4
  for (int c = lane; c < classes; c += lanes) {
    const float e = exp_fast(static_cast<float>(input[c * p.pixels.stride_c]) + offset_at(p, c) - shift);
    float value = (c == pixel.label ? e - terms.label_term : e) * terms.coefficient;
    if (smoothed) value -= terms.smooth * weight_at(p, c);
    grad[c * p.pixels.grad_stride_c] = static_cast<T>(pixel.label == kIgnored ? 0.0f : value);
  }
}

}  // namespace cawa_fast::cuda
