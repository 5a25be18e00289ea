// Cross-entropy with a bilinear resize: the loss, and statistics for the gradient. A lane handles a cell (resized.h).
//
// Cost per class and cell of 4 x 4 pixels, as compiled for sm_90: 4 loads, of samples that neighbouring lanes share in
// the L1 cache, 4 exponentials, 34 instructions for the pixels' exponentials and sums, and about 30 for the rest. That
// is 4.3 per pixel, where one exponential per pixel would take 13 or more. Each low-resolution logit and each label is
// read from device memory once.
#pragma once

#include "resized.h"

namespace cawa_fast::cuda {

constexpr int kForwardThreads = 128;

template <int kSide>
struct ForwardShared {
  static constexpr int kPixels = kSide * kSide;
  double* partial;  // (warps)
  float* at_label;  // (kPixels, threads): the label's exponential
  uint16_t* label;  // (kPixels, threads): kGone where invalid

  static constexpr int64_t kBytes =
      kWarp * sizeof(double) + kForwardThreads * kPixels * (sizeof(float) + sizeof(uint16_t));

  __device__ explicit ForwardShared(unsigned char* memory) {
    partial = reinterpret_cast<double*>(memory);
    at_label = reinterpret_cast<float*>(partial + kWarp) + threadIdx.x;
    label = reinterpret_cast<uint16_t*>(partial + kWarp) + kForwardThreads * kPixels * 2 + threadIdx.x;
  }
};

// Writes the loss of a valid pixel if p.pixel_loss is set, and returns its contribution to the summed loss.
// `negative_log`: minus the logarithm of the label's probability. With smoothing, `log_sum`: the logarithm of the sum
// of exp(z_c - largest); `weighted`: the sum of weight[c] * (z_c - largest); `largest` is the pixel's largest logit.
__device__ inline double finish_pixel(const ResizedProblem& p, int64_t pixel, int label, float negative_log,
                                      float log_sum, float weighted) {
  float loss = p.keep * weight_at(p, label) * negative_log;
  if (p.gamma > 0) loss *= focal_of(p.gamma, negative_log).factor;
  if (p.smooth > 0) loss += p.smooth * (weight_sum_of(p) * log_sum - weighted);
  if (p.pixel_loss) p.pixel_loss[pixel] = loss;
  return static_cast<double>(loss) * p.scale[label];
}

// Losses and statistics of a steep cell, pixel by pixel, as stage 3 of resized_forward computes them for other cells.
// Returns the cell's scaled loss.
template <class T, int kSide>
__device__ inline double steep_loss(const ResizedProblem& p, const Cell& cell, unsigned index) {
  double total = 0;
  for (int i = 0; i < kSide * kSide; ++i) {
    const int y = i / kSide, x = i % kSide;
    const bool inside = y < cell.height && x < cell.width;
    const int64_t pixel = pixel_index(p, cell, y, x);
    const int label = inside ? label_at(p, pixel) : kIgnored;
    float sum = 0, derivative = 0;
    if (label != kIgnored) {
      const Taps taps = taps_of(p, cell, y, x);
      const float largest = largest_logit_at<T>(p, taps);
      float weighted = 0;
      for (int c = 0; c < p.classes; ++c) {
        const float z = logit_at<T>(p, taps, c) - largest;
        sum += exp_fast(z);
        if (p.smooth > 0 && weight_at(p, c) > 0) weighted += weight_at(p, c) * z;
      }
      const float log_sum = logf(sum), negative_log = log_sum - (logit_at<T>(p, taps, label) - largest);
      total += finish_pixel(p, pixel, label, negative_log, log_sum, weighted);
      if (p.gamma > 0) derivative = focal_of(p.gamma, negative_log).derivative;
    } else if (inside && p.pixel_loss) {
      p.pixel_loss[pixel] = 0;
    }
    if (p.statistics) p.statistics[(1 + i) * p.cells + index] = sum;
    if (p.statistics && p.gamma > 0) p.statistics[(1 + kSide * kSide + i) * p.cells + index] = derivative;
  }
  return total;
}

// The number of thread blocks per multiprocessor for which the compiler limits registers: eight, where it does not
// spill.
template <int kSide, bool kOffset>
struct Forward {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  static constexpr int kBlocks = kSide == 8 ? 2 : kSide == 4 ? 6 : 8;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  static constexpr int kBlocks = kSide == 8 ? 3 : kSide == 4 && kOffset ? 7 : 8;
#else
  static constexpr int kBlocks = kSide == 8 ? 3 : 8;
#endif
};

// Launched with one thread per cell. kOffset: p.offset is not null; a test per class would cost several instructions
// even without one. Marks steep cells in p.references and leaves them to resized_forward_steep.
template <class T, int kSide, bool kOffset>
__global__ void __launch_bounds__(kForwardThreads, Forward<kSide, kOffset>::kBlocks)
    resized_forward(const __grid_constant__ ResizedProblem p) {
  constexpr int kPixels = kSide * kSide;
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const ForwardShared<kSide> shared(shared_memory);
  const unsigned index = blockIdx.x * kForwardThreads + threadIdx.x;
  const bool exists = index < p.cells;
  Cell cell = cell_at_index(p, exists ? index : 0);
  if (!exists) cell.width = 0;

  // 1. The labels.
  const bool any = store_labels<kSide>(p, cell, shared.label, kForwardThreads);
  keep_order();  // do not hold the labels in registers

  // 2. Sums of exponentials. The reference is a logit of the first class, until one far above it replaces it.
  float sum[kPixels] = {};
  float reference = -INFINITY;
  bool steep = false;
  const Place place = place_of(p, cell);
  CellLogits weighted{};  // with smoothing: sums so far of weight[c] * (sample + offset[c] - reference)
  float before = 0;       // and of weight[c]
  if (any_of_warp(any)) {
    const T* top = static_cast<const T*>(p.input) + place.top_left;
    const T* bottom = top + p.stride_y;
    CellLogits next = cell_logits_at(top, bottom);
    uint32_t flags = 0;
    for (int c = 0; c < p.classes; ++c) {
      const CellLogits z = next;
      if (c + 1 < p.classes) {  // load the next class while this one is computed
        top += p.stride_c, bottom += p.stride_c;
        next = cell_logits_at(top, bottom);
      }
      if (c % 32 == 0) flags = classes_of_warp<kSide>(shared.label, kForwardThreads, c);
      const float offset = kOffset ? p.offset[c] : 0.0f;
      const Sequence e = sequence_of(z, offset, place, p.span, steep);
      float power = power_of(e, reference);
      if (power > kAboveReference) {
        const float raised = e.sample + e.difference, factor = exp_fast(reference - raised);
#pragma unroll
        for (int i = 0; i < kPixels; ++i) {
          sum[i] *= factor;
          shared.at_label[i * kForwardThreads] *= factor;
        }
        if (before > 0) {
          const float less = before * (raised - reference);
          weighted = {weighted.a - less, weighted.b - less, weighted.c - less, weighted.d - less};
        }
        reference = raised;
        power = power_of(e, reference);
      }
      float row = exp2_fast(power), along = e.along;
      // Two versions of the loop, since a test at every pixel would cost as much as its sum.
      const auto add = [&]<bool kIsLabel>() {
#pragma unroll
        for (int y = 0; y < kSide; ++y) {
          float value = row;
#pragma unroll
          for (int x = 0; x < kSide; ++x) {
            const int i = y * kSide + x;
            sum[i] += value;
            if (kIsLabel && shared.label[i * kForwardThreads] == c) shared.at_label[i * kForwardThreads] = value;
            value *= along;
          }
          row *= e.down;
          along *= e.twist;
        }
      };
      if (flags >> (c % 32) & 1) {
        add.template operator()<true>();
      } else {
        add.template operator()<false>();
      }
      if (p.smooth > 0) {
        const float w = weight_at(p, c);
        if (w > 0) {  // 0 * (z - reference) would be NaN where the difference overflows
          const float from = reference - offset;
          weighted = {fmaf(w, z.a - from, weighted.a), fmaf(w, z.b - from, weighted.b), fmaf(w, z.c - from, weighted.c),
                      fmaf(w, z.d - from, weighted.d)};
          before += w;
        }
      }
    }
  }

  // 3. Losses and statistics. A cell is also steep if the label of one of its pixels has almost no probability.
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    if (i % kLoadsTogether == 0) keep_order();
    steep |= shared.label[i * kForwardThreads] != kGone && !(shared.at_label[i * kForwardThreads] > kLeastAtLabel);
  }
  double total = 0;
  if (exists) p.references[index] = steep ? INFINITY : reference;
  if (exists && !steep) {
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      float& at_label = shared.at_label[i * kForwardThreads];
      if (p.statistics) p.statistics[(1 + i) * p.cells + index] = sum[i];
      at_label = divide_fast(sum[i], at_label);  // both contain the same rounding of the label's exponential
    }
#pragma unroll kLoadsTogether
    for (int i = 0; i < kPixels; ++i) {
      const int label = shared.label[i * kForwardThreads], c = label == kGone ? 0 : label, y = i / kSide, x = i % kSide;
      const float negative_log = logf(shared.at_label[i * kForwardThreads]);
      float loss = p.keep * weight_at(p, c) * negative_log;
      if (p.gamma > 0) {
        const Focal focal = focal_of(p.gamma, negative_log);
        loss *= focal.factor;
        if (p.statistics) p.statistics[(1 + kPixels + i) * p.cells + index] = focal.derivative;
      }
      if (p.smooth > 0) {
        const float u = fmaf(x, place.du, place.u), v = fmaf(y, place.dv, place.v);
        const float above = fmaf(u, weighted.b - weighted.a, weighted.a);
        const float below = fmaf(u, weighted.d - weighted.c, weighted.c);
        const float of_weighted = fmaf(v, below - above, above);
        loss += p.smooth * (weight_sum_of(p) * logf(p.statistics[(1 + i) * p.cells + index]) - of_weighted);
      }
      loss = label == kGone ? 0.0f : loss;
      total += label == kGone ? 0.0f : loss * p.scale[c];
      if (p.pixel_loss && y < cell.height && x < cell.width) p.pixel_loss[pixel_index(p, cell, y, x)] = loss;
    }
  }
  if (p.partial_loss) {
    total = sum_of_block(total, shared.partial);
    if (threadIdx.x == 0) p.partial_loss[blockIdx.x] = total;
  }
}

// Computes the cells that resized_forward has marked as steep. Launched with `blocks` thread blocks, which share all
// cells and write their losses to partial_loss from `first_partial` on.
template <class T, int kSide>
__global__ void __launch_bounds__(kForwardThreads, 1)
    resized_forward_steep(const __grid_constant__ ResizedProblem p, unsigned blocks, unsigned first_partial) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  double total = 0;
  for (unsigned i = blockIdx.x * kForwardThreads + threadIdx.x; i < p.cells; i += blocks * kForwardThreads) {
    if (p.references[i] == INFINITY) total += steep_loss<T, kSide>(p, cell_at_index(p, i), i);
  }
  if (p.partial_loss) {
    total = sum_of_block(total, reinterpret_cast<double*>(shared_memory));
    if (threadIdx.x == 0) p.partial_loss[first_partial + blockIdx.x] = total;
  }
}

}  // namespace cawa_fast::cuda
