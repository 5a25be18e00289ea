// Cross-entropy of logits with one plane per class (contiguous NCHW), or with any strides, in registers.
//
// A thread block has a tile of pixels with all their classes. Thread (column, group) has kPixels of the tile's pixels
// and the classes of its group, at most kClasses. That is 32 logits, in registers from the loads until their gradients
// are stored. Groups exchange only the maximum and the sum of exponentials of each pixel.
//
// Cost per logit, forward and backward together:
//   device memory   one read and one write, in accesses of 16 bytes if kVector: the two passes that are unavoidable
//   exponentials    1 + 2 / kClasses (per group and pixel, one to combine the sums and one to scale the gradient)
//   shared memory   per group and pixel 2 words written and 3 read, and 3 of the pixel's read by each group: 32 /
//                   kClasses bytes, where kClasses is 8 for float32 and 4 for 16 bits. Neighbouring lanes access
//                   neighbouring words: no bank conflicts, but two-way ones where a thread has eight pixels
//   instructions    about 12 for float32, 15 for 16 bits
//
// Lower bounds on an H100 (132 multiprocessors, 1.98 GHz, 3.02 TB/s measured for copies, 16 exponentials and 128
// instructions per clock and multiprocessor) at 8x19x512x1024: in float32 213 us for the bytes, 24 us for the
// exponentials, 29 us for the instructions; in bfloat16 107, 29 and 36 us. These overlap, since several thread blocks
// share a multiprocessor. 64 registers for each of its 1024 threads hold 128 KiB of float32 logits in flight (64 KiB of
// 16 bits). 3 TB/s at a latency of 0.8 us need 9 KiB of them per multiprocessor in each direction.
//
// Measured there (bench/results/gpu-h100.json): 252 us, where the bound of the bytes is 85 % of the time, and 913 us at
// 8x150x512x512, where it is 834 us, 91 %. In bfloat16 195 us, and 762 us, where it is 418 us, 55 %: half the bytes
// save only 17 to 22 % of the time, which is not understood yet. sum_partial_losses adds 2 to 4 us.
#pragma once

#include "pixel.h"

namespace cawa_fast::cuda {

template <class T, bool kVector, bool kSmoothed, bool kFocal>
struct PlanarThread {
  static constexpr int kPixels = kVector ? Vector<T>::kSize : 4;
  static constexpr int kClasses = 32 / kPixels;
  static constexpr bool kPlain = !kSmoothed && !kFocal;
  static constexpr int kMost = kSmoothed ? 640 : 768;  // maximum number of threads in a thread block
  // The number of threads for which the compiler limits registers: 1024, with 64 registers each, where it does not
  // spill.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  static constexpr int kResident = kMost;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ > 800 && __CUDA_ARCH__ < 900
  static constexpr int kResident = kVector && kPlain && sizeof(T) == 4 ? 1024 : kMost;
#else
  static constexpr int kResident = kVector && kPlain ? 1024 : kMost;
#endif
};

// The shared memory of a thread block. It holds the tile too, since in registers that would displace logits.
struct PlanarShared {
  double* partial;  // (warps)
  Tile* tile;
  int* label;                                      // (pixels)
  float *logit, *at_label, *factor;                // (pixels): of the pixel's label
  float *pixel_maximum, *pixel_sum, *coefficient;  // (pixels)
  float *pixel_weighted, *label_term, *smooth;     // (pixels), only with smoothing
  float *maximum, *sum, *weighted;                 // (groups, pixels); weighted only with smoothing
  float* group_weight;                             // (groups): sum of the group's weights, only with smoothing

  static int64_t bytes(int pixels, int groups, bool smoothed) {
    const int64_t floats = smoothed ? pixels * (10 + 3 * groups) + groups : pixels * (7 + 2 * groups);
    return kWarp * sizeof(double) + sizeof(Tile) + floats * sizeof(float);
  }

  __device__ PlanarShared(unsigned char* memory, int pixels, int groups) {
    partial = reinterpret_cast<double*>(memory);
    tile = reinterpret_cast<Tile*>(partial + kWarp);
    label = reinterpret_cast<int*>(tile + 1);
    logit = reinterpret_cast<float*>(label + pixels);
    at_label = logit + pixels;
    factor = at_label + pixels;
    pixel_maximum = factor + pixels;
    pixel_sum = pixel_maximum + pixels;
    coefficient = pixel_sum + pixels;
    maximum = coefficient + pixels;
    sum = maximum + groups * pixels;
    weighted = sum + groups * pixels;
    pixel_weighted = weighted + groups * pixels;
    label_term = pixel_weighted + pixels;
    smooth = label_term + pixels;
    group_weight = smooth + pixels;
  }
};

__device__ inline void from_bits(uint32_t bits, float& value) { value = __uint_as_float(bits); }
__device__ inline void from_bits(uint32_t bits, int& value) { value = static_cast<int>(bits); }

// Reads the values of four of a thread's pixels, from `first` on: neighbours if kVector, else `columns` apart.
template <bool kVector, class Value>
__device__ inline void read4(const Value* from, int first, int columns, Value* values) {
  if constexpr (kVector) {
    const uint4 bits = *reinterpret_cast<const uint4*>(from + first);
    from_bits(bits.x, values[0]), from_bits(bits.y, values[1]);
    from_bits(bits.z, values[2]), from_bits(bits.w, values[3]);
  } else {
#pragma unroll
    for (int v = 0; v < 4; ++v) values[v] = from[first + v * columns];
  }
}

template <bool kVector>
__device__ inline void write4(float* to, int first, int columns, const float* values) {
  if constexpr (kVector) {
    *reinterpret_cast<uint4*>(to + first) = Vector<float>::pack(values);
  } else {
#pragma unroll
    for (int v = 0; v < 4; ++v) to[first + v * columns] = values[v];
  }
}

// Launched with (columns, groups) threads, columns a power of two, and tiles of columns * kPixels pixels. kVector: rows
// consist of whole vectors. kSmoothed, kFocal: label smoothing, or gamma, is not 0.
template <class T, bool kVector, bool kSmoothed, bool kFocal>
__global__ void __launch_bounds__(PlanarThread<T, kVector, kSmoothed, kFocal>::kResident)
    planar(const __grid_constant__ Problem p) {
  if (nothing_to_do(p)) return;
  using Thread = PlanarThread<T, kVector, kSmoothed, kFocal>;
  constexpr int kPixels = Thread::kPixels, kClasses = Thread::kClasses;
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const int columns = blockDim.x, groups = blockDim.y, pixels = columns * kPixels;
  const int column = threadIdx.x, group = threadIdx.y, thread = group * columns + column;
  const PlanarShared shared(shared_memory, pixels, groups);

  const int per_group = (p.classes + groups - 1) / groups, first_class = group * per_group;
  const int classes = min(max(p.classes - first_class, 0), per_group);  // this thread's classes, from first_class on
  const int first = kVector ? column * kPixels : column;                // its first pixel in the tile
  if (kSmoothed && column == 0) {
    float weight = 0;
    for (int k = 0; k < classes; ++k) weight += weight_at(p, first_class + k);
    shared.group_weight[group] = weight;
  }

  const Tile tile = tile_at(p, blockIdx.x);

  // 1. Load the logits; all loads come before the first use. Classes and pixels that do not exist are -inf.
  float z[kClasses][kPixels];
  const T* input = static_cast<const T*>(p.input) + tile.input + (tile.x + first) * p.pixels.stride_x +
                   first_class * p.pixels.stride_c;
  if constexpr (kVector) {
    uint4 bytes[kClasses];
    const bool inside = first < tile.count;
#pragma unroll
    for (int k = 0; k < kClasses; ++k) {
      constexpr uint32_t kEmpty = Vector<T>::kMinusInfinity;
      bytes[k] =
          inside && k < classes ? __ldcs(reinterpret_cast<const uint4*>(input)) : uint4{kEmpty, kEmpty, kEmpty, kEmpty};
      input += p.pixels.stride_c;
    }
#pragma unroll
    for (int k = 0; k < kClasses; ++k) Vector<T>::unpack(bytes[k], z[k]);
  } else {
    const int64_t step = columns * p.pixels.stride_x;
#pragma unroll
    for (int k = 0; k < kClasses; ++k) {
#pragma unroll
      for (int v = 0; v < kPixels; ++v) {
        const bool inside = first + v * columns < tile.count && k < classes;
        z[k][v] = inside ? static_cast<float>(input[v * step]) : -INFINITY;
      }
      input += p.pixels.stride_c;
    }
  }

  // 2. While these loads are in flight, load the labels, each once for all groups.
  for (int i = thread; i < pixels; i += columns * groups) {
    shared.label[i] = i < tile.count ? label_at(p, tile.labels + tile.x + i) : kIgnored;
  }
  if (thread == 0) *shared.tile = tile;
  __syncthreads();

  // 3. The offsets, the group's maximum, the label's logit if it belongs to the group, the group's exponentials and
  // their sum.
  if (p.offset) {
#pragma unroll
    for (int k = 0; k < kClasses; ++k) {
      if (k >= classes) break;
      const float offset = p.offset[first_class + k];
#pragma unroll
      for (int v = 0; v < kPixels; ++v) z[k][v] += offset;
    }
  }
#pragma unroll
  for (int h = 0; h < kPixels; h += 4) {
    const int at = first + h;  // four pixels at a time; `at` is their index in shared memory
    int label[4];
    float maximum[4], sum[4];
    read4<kVector>(shared.label, at, columns, label);
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      maximum[v] = z[0][h + v];
#pragma unroll
      for (int k = 1; k < kClasses; ++k) maximum[v] = fmaxf(maximum[v], z[k][h + v]);
      const int own = label[v] - first_class;
      if (static_cast<unsigned>(own) < static_cast<unsigned>(classes)) {
        float logit = 0;
#pragma unroll
        for (int k = 0; k < kClasses; ++k) logit = k == own ? z[k][h + v] : logit;
        shared.logit[at + (kVector ? v : v * columns)] = logit;
      }
    }
    if constexpr (kSmoothed) {
      float weighted[4] = {};
#pragma unroll
      for (int k = 0; k < kClasses; ++k) {
        if (k >= classes) break;
        const float weight = weight_at(p, first_class + k);
#pragma unroll
        for (int v = 0; v < 4; ++v) weighted[v] += weight * (z[k][h + v] - shift_of(maximum[v]));
      }
      write4<kVector>(shared.weighted + group * pixels, at, columns, weighted);
    }
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      const float shift = shift_of(maximum[v]);
      sum[v] = 0;
#pragma unroll
      for (int k = 0; k < kClasses; ++k) sum[v] += z[k][h + v] = exp_fast(z[k][h + v] - shift);
    }
    write4<kVector>(shared.maximum + group * pixels, at, columns, maximum);
    write4<kVector>(shared.sum + group * pixels, at, columns, sum);
  }
  __syncthreads();

  // 4. Per pixel, over the groups: maximum, sum, and the terms of the gradient. With many groups there are fewer pixels
  // than threads. Then `lanes` neighbouring threads share a pixel, always in whole warps.
  const int lanes = 1 << p.lanes_log2, lane = thread & (lanes - 1);
  for (int i = thread >> p.lanes_log2; i < pixels; i += columns * groups >> p.lanes_log2) {
    float maximum = -INFINITY, sum = 0;
#pragma unroll 2  // more unrolling would displace logits from registers
    for (int g = lane; g < groups; g += lanes) maximum = fmaxf(maximum, shared.maximum[g * pixels + i]);
    maximum = max_of_lanes(maximum, lanes);
    const float shift = shift_of(maximum);
#pragma unroll 2
    for (int g = lane; g < groups; g += lanes) {
      sum += shared.sum[g * pixels + i] * exp_fast(shared.maximum[g * pixels + i] - shift);
    }
    sum = sum_of_lanes(sum, lanes);
    float weighted = 0;
    if constexpr (kSmoothed) {
      for (int g = lane; g < groups; g += lanes) {
        const float own = shift_of(shared.maximum[g * pixels + i]);
        weighted += shared.weighted[g * pixels + i] + shared.group_weight[g] * (own - shift);
      }
      weighted = sum_of_lanes(weighted, lanes);
    }
    if (lane > 0) continue;
    const Pixel pixel = pixel_of(p, shared.label[i], shared.tile->labels + shared.tile->x + i);
    shared.at_label[i] = pixel.at_label;
    shared.factor[i] = pixel.factor;
    Terms terms = terms_of(p, pixel, sum, kSmoothed);
    if constexpr (kFocal) {
      terms.coefficient *= focal_of(p.gamma, (maximum - shared.logit[i]) + logf(sum)).derivative;
    }
    shared.pixel_maximum[i] = maximum;
    shared.pixel_sum[i] = sum;
    shared.coefficient[i] = terms.coefficient;
    if constexpr (kSmoothed) {
      shared.pixel_weighted[i] = weighted;
      shared.label_term[i] = terms.label_term;
      shared.smooth[i] = terms.smooth;
    }
  }
  __syncthreads();

  // 5. The gradient, in place of the exponentials.
  if (p.grad_input) {
    const int count = shared.tile->count;
#pragma unroll
    for (int h = 0; h < kPixels; h += 4) {
      const int at = first + h;
      int label[4];
      float values[4], coefficient[4];
      read4<kVector>(shared.maximum + group * pixels, at, columns, values);
      read4<kVector>(shared.pixel_maximum, at, columns, coefficient);
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const float scale = exp_fast(values[v] - shift_of(coefficient[v]));
#pragma unroll
        for (int k = 0; k < kClasses; ++k) z[k][h + v] *= scale;
      }
      read4<kVector>(shared.label, at, columns, label);
      read4<kVector>(kSmoothed ? shared.label_term : shared.pixel_sum, at, columns, values);
      read4<kVector>(shared.coefficient, at, columns, coefficient);
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const int own = label[v] - first_class;
        if (static_cast<unsigned>(own) < static_cast<unsigned>(classes)) {
#pragma unroll
          for (int k = 0; k < kClasses; ++k) z[k][h + v] = k == own ? z[k][h + v] - values[v] : z[k][h + v];
        }
#pragma unroll
        for (int k = 0; k < kClasses; ++k) z[k][h + v] *= coefficient[v];
      }
      if constexpr (kSmoothed) {
        read4<kVector>(shared.smooth, at, columns, values);
#pragma unroll
        for (int k = 0; k < kClasses; ++k) {
          if (k >= classes) break;
          const float weight = weight_at(p, first_class + k);
#pragma unroll
          for (int v = 0; v < 4; ++v) z[k][h + v] -= values[v] * weight;
        }
      }
      // Ignored pixels are set to 0, not multiplied by it: 0 * NaN is NaN.
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        if (label[v] == kIgnored) {
#pragma unroll
          for (int k = 0; k < kClasses; ++k) z[k][h + v] = 0;
        }
      }
    }
    T* grad = static_cast<T*>(p.grad_input) + shared.tile->grad + (shared.tile->x + first) * p.pixels.grad_stride_x +
              first_class * p.pixels.grad_stride_c;
#pragma unroll
    for (int k = 0; k < kClasses; ++k) {
      if constexpr (kVector) {
        if (first < count && k < classes) *reinterpret_cast<uint4*>(grad) = Vector<T>::pack(z[k]);
      } else {
        const int64_t step = columns * p.pixels.grad_stride_x;
#pragma unroll
        for (int v = 0; v < kPixels; ++v) {
          if (first + v * columns < count && k < classes) grad[v * step] = static_cast<T>(z[k][v]);
        }
      }
      grad += p.pixels.grad_stride_c;
    }
  }

  // 6. The loss. It comes last, when registers are free.
  if (p.pixel_loss || p.partial_loss) {
    const Tile& tile = *shared.tile;
    double total = 0;
    for (int i = thread; i < tile.count; i += columns * groups) {
      const Pixel pixel{shared.label[i], shared.at_label[i], shared.factor[i]};
      const float gap = shared.pixel_maximum[i] - shared.logit[i];
      const float weighted = kSmoothed ? shared.pixel_weighted[i] : 0;
      total += loss_of(p, pixel, tile.labels + tile.x + i, gap, shared.pixel_sum[i], weighted, kSmoothed);
    }
    if (p.partial_loss) {
      total = sum_of_block(total, shared.partial);
      if (thread == 0) p.partial_loss[blockIdx.x] = total;
    }
  }
}

}  // namespace cawa_fast::cuda
