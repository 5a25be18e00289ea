// Cross-entropy of logits whose classes are contiguous (channels_last), by way of shared memory.
//
// A tile of pixels is one contiguous piece of memory. It is copied to shared memory, and its gradient back, as 16-byte
// words. Each pixel has `lanes` neighbouring lanes. A lane has at most kInterleavedClasses of the pixel's classes,
// which stay in registers from the maximum to the gradient.
//
// Cost per logit, forward and backward together:
//   device memory   one read and one write, in accesses of 16 bytes
//   exponentials    1
//   shared memory   four accesses: two of 16 bytes from and to device memory, without bank conflicts, and two of one
//                   logit, whose conflicts are at most two-way for float32, by the choice of lanes
//   instructions    about 18 at 19 classes, of which 4 are shuffles and other work per pixel and lane
// For an H100 (as in planar.h) at 8x19x512x1024 in bfloat16: 107 us for the bytes, 19 for the exponentials, 43 for the
// instructions, 27 to 40 for the shared memory. Measured there (bench/results/gpu-h100.json), with the label count: 246
// us, 43 % of the copy bandwidth; at 8x150x512x512 924 us, 45 %. In float32 the kernel alone takes 281 us, where the
// bytes take 213 (76 %), and 1047 us, where they take 834 (80 %).
#pragma once

#include "pixel.h"

namespace cawa_fast::cuda {

constexpr int kInterleavedThreads = 256;
constexpr int kInterleavedClasses = 8;                               // per lane
constexpr int kInterleavedMaxClasses = kInterleavedClasses * kWarp;  // per pixel

// The shared memory of a thread block: the tile, and values per pixel.
template <class T>
struct InterleavedShared {
  double* partial;  // (warps)
  T* logits;        // (pixels, classes), later their gradient; a multiple of 16 bytes, since pixels is a multiple of 8
  float *at_label, *factor, *gap, *sum, *weighted;  // (pixels), as in pixel.h
  int* label;                                       // (pixels)

  static int64_t bytes(int pixels, int classes) {
    return kWarp * sizeof(double) + pixels * (sizeof(T) * classes + 5 * sizeof(float) + sizeof(int));
  }

  __device__ InterleavedShared(unsigned char* memory, int pixels, int classes) {
    partial = reinterpret_cast<double*>(memory);
    logits = reinterpret_cast<T*>(partial + kWarp);
    at_label = reinterpret_cast<float*>(logits + pixels * classes);
    factor = at_label + pixels;
    gap = factor + pixels;
    sum = gap + pixels;
    weighted = sum + pixels;
    label = reinterpret_cast<int*>(weighted + pixels);
  }
};

// Launched with kInterleavedThreads threads; lanes_log2 is log2(lanes).
template <class T>
__global__ void __launch_bounds__(kInterleavedThreads, 4)
    interleaved(const __grid_constant__ Problem p, int lanes_log2) {
  if (nothing_to_do(p)) return;
  constexpr int kPerWord = 16 / sizeof(T);
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const InterleavedShared<T> shared(shared_memory, p.tile_pixels, p.classes);
  const int thread = threadIdx.x, lanes = 1 << lanes_log2, lane = thread & (lanes - 1);
  const bool smoothed = p.smooth > 0, with_loss = p.pixel_loss || p.partial_loss;

  const Tile tile = tile_at(p, blockIdx.x);
  const int values = tile.count * p.classes, words = values / kPerWord;

  // 1. Load the tile and its labels. Its last values may be less than 16 bytes.
  const T* input = static_cast<const T*>(p.input) + tile.input + tile.x * p.classes;
  for (int i = thread; i < words; i += kInterleavedThreads) {
    start_copy(shared.logits + i * kPerWord, input + i * kPerWord);
  }
  for (int i = words * kPerWord + thread; i < values; i += kInterleavedThreads) shared.logits[i] = input[i];
  for (int i = thread; i < tile.count; i += kInterleavedThreads) {
    const Pixel pixel = pixel_at(p, tile.labels + tile.x + i);
    shared.label[i] = pixel.label;
    shared.at_label[i] = pixel.at_label;
    shared.factor[i] = pixel.factor;
  }
  wait_for_copies();
  __syncthreads();

  // 2. Per pixel: maximum, exponentials, their sum, and the gradient in place of the logits. All lanes of a warp take
  // part, since they exchange values in shuffles; those without a pixel or class have -inf.
  for (int begin = 0; begin < tile.count; begin += kInterleavedThreads >> lanes_log2) {
    const int i = begin + (thread >> lanes_log2);
    const bool inside = i < tile.count;
    T* logits = shared.logits + i * p.classes;
    float z[kInterleavedClasses], maximum = -INFINITY, sum = 0, weighted = 0, at_label = 0;
#pragma unroll
    for (int k = 0; k < kInterleavedClasses; ++k) {
      const int c = k * lanes + lane;
      z[k] = inside && c < p.classes ? static_cast<float>(logits[c]) : -INFINITY;
    }
    if (p.offset) {
#pragma unroll
      for (int k = 0; k < kInterleavedClasses; ++k) {
        const int c = k * lanes + lane;
        if (c < p.classes) z[k] += p.offset[c];
      }
    }
#pragma unroll
    for (int k = 0; k < kInterleavedClasses; ++k) maximum = fmaxf(maximum, z[k]);
    const Pixel pixel = inside ? Pixel{shared.label[i], shared.at_label[i], shared.factor[i]} : Pixel{kIgnored, 0, 0};
    if (pixel.label != kIgnored) at_label = static_cast<float>(logits[pixel.label]) + offset_at(p, pixel.label);
    maximum = max_of_lanes(maximum, lanes);
    const float shift = shift_of(maximum);
    if (smoothed) {
#pragma unroll
      for (int k = 0; k < kInterleavedClasses; ++k) {
        const int c = k * lanes + lane;
        if (inside && c < p.classes) weighted += weight_at(p, c) * (z[k] - shift);
      }
      weighted = sum_of_lanes(weighted, lanes);
    }
#pragma unroll
    for (int k = 0; k < kInterleavedClasses; ++k) {
      if (k * lanes >= p.classes) break;
      sum += z[k] = exp_fast(z[k] - shift);
    }
    sum = sum_of_lanes(sum, lanes);
    if (with_loss && inside && lane == 0) {
      shared.gap[i] = maximum - at_label;
      shared.sum[i] = sum;
      shared.weighted[i] = weighted;
    }
    if (!p.grad_input) continue;
    __syncwarp();  // after all lanes have read the label's logit
    Terms terms = terms_of(p, pixel, sum, smoothed);
    if (p.gamma > 0) terms.coefficient *= focal_of(p.gamma, (maximum - at_label) + logf(sum)).derivative;
#pragma unroll
    for (int k = 0; k < kInterleavedClasses; ++k) {
      const int c = k * lanes + lane;
      if (!inside || c >= p.classes) break;
      float grad = (c == pixel.label ? z[k] - terms.label_term : z[k]) * terms.coefficient;
      if (smoothed) grad -= terms.smooth * weight_at(p, c);
      logits[c] = static_cast<T>(pixel.label == kIgnored ? 0.0f : grad);  // not times 0: 0 * NaN is NaN
    }
  }
  __syncthreads();

  // 3. The losses, with one logarithm per thread, and the gradient to device memory.
  if (with_loss) {
    double total = 0;
    for (int i = thread; i < tile.count; i += kInterleavedThreads) {
      const Pixel pixel{shared.label[i], shared.at_label[i], shared.factor[i]};
      total += loss_of(p, pixel, tile.labels + tile.x + i, shared.gap[i], shared.sum[i], shared.weighted[i], smoothed);
    }
    if (p.partial_loss) {
      total = sum_of_block(total, shared.partial);
      if (thread == 0) p.partial_loss[blockIdx.x] = total;
    }
  }
  if (p.grad_input) {
    T* grad = static_cast<T*>(p.grad_input) + tile.grad + tile.x * p.classes;
    for (int i = thread; i < words; i += kInterleavedThreads) {
      reinterpret_cast<uint4*>(grad)[i] = reinterpret_cast<const uint4*>(shared.logits)[i];
    }
    for (int i = words * kPerWord + thread; i < values; i += kInterleavedThreads) grad[i] = shared.logits[i];
  }
}

}  // namespace cawa_fast::cuda
