// Cross-entropy with a bilinear resize: the gradient. Each value is gathered by one thread, so that there are no
// atomics and the results are deterministic.
//
// A lane handles a cell (resized.h). It keeps the factors of the cell's pixels (upstream gradient times weight over sum
// of exponentials) in registers while it loops over the classes. Per class, the cell's pixels give a sum to each of its
// four samples. A sample is written by the cell to its lower right. The sums of right samples go to the next lane, and
// those of lower samples to the next warp, which has the next row of cells. The first lane of a warp and the first warp
// of a thread block therefore compute only for others.
//
// Cost per class and cell of 4 x 4 pixels, as compiled for sm_90: 4 loads, 4 exponentials, about 84 instructions for
// the pixels and 40 for the rest, 7.8 per pixel. Cells that are computed twice multiply this by 32 / 31 * 10 / 9. At
// 8x150x128x128 to 512x512 in float32 an H100 takes 201 us, 40 % of the rate at which it issues instructions.
#pragma once

#include "resized.h"

namespace cawa_fast::cuda {

constexpr int kBackwardColumns = kWarp - 1;  // samples per row of a thread block
constexpr int kBackwardClasses = 4;          // classes whose sums warps exchange at a time

// The thread block for cells of up to kSide x kSide pixels: one warp per row of samples, and one for the cells above.
// Two blocks share a multiprocessor. That leaves 96 registers per thread with 20 warps, and 168 with 12: the cell's
// factors and 60 to 80 more.
template <int kSide>
struct Backward {
  static constexpr int kWarps = kSide == 8 ? 6 : 10, kRows = kWarps - 1, kThreads = kWarps * kWarp;
};

// The contributions of one class of a cell to the gradients of its four samples.
struct Shares {
  float upper_left, upper_right, lower_left, lower_right;
};

template <int kSide>
struct BackwardShared {
  static constexpr int kPixels = kSide * kSide, kThreads = Backward<kSide>::kThreads;
  Shares* smoothed;  // (threads): with smoothing, what is subtracted from each class's shares, times the class's weight
  float* upper;      // (kBackwardClasses, threads): contributions to the samples above
  float* lower;      // (2, kBackwardClasses, threads): to the samples below; double-buffered to save a barrier
  uint16_t* label;   // (kPixels, threads): kGone where invalid
  float* largest;    // (kPixels, threads): largest logits of the pixels of steep cells; only with kSteep

  static constexpr int64_t kBytes =
      kThreads * (sizeof(Shares) + 3 * kBackwardClasses * sizeof(float) + kPixels * sizeof(uint16_t));
  static constexpr int64_t kSteepBytes = kBytes + kThreads * kPixels * sizeof(float);

  __device__ explicit BackwardShared(unsigned char* memory) {
    Shares* const shares = reinterpret_cast<Shares*>(memory);
    float* const floats = reinterpret_cast<float*>(shares + kThreads);
    smoothed = shares + threadIdx.x;
    upper = floats + threadIdx.x;
    lower = upper + kBackwardClasses * kThreads;
    label = reinterpret_cast<uint16_t*>(floats + 3 * kBackwardClasses * kThreads) + threadIdx.x;
    largest = reinterpret_cast<float*>(memory + kBytes) + threadIdx.x;
  }
};

// The factors in the gradient of a valid pixel with probabilities p and class weights w:
// at_label * (p_c - [c is the label]) + smoothing * (p_c * sum(w) - w_c).
struct Strength {
  float at_label, smoothing;
};

__device__ inline Strength strength_of(const ResizedProblem& p, int label, int64_t pixel) {
  const float factor = p.scale[label] * p.grad[p.grad_per_pixel ? pixel : 0];
  return {factor * (p.keep * weight_at(p, label)), factor * p.smooth};
}

// The shares of class c of a steep cell, pixel by pixel. `largest`: the largest logit of each valid pixel, kThreads
// apart.
template <class T, int kSide>
__device__ Shares steep_gradient(const ResizedProblem& p, const Cell& cell, int64_t index, int c,
                                 const float* largest) {
  Shares shares{};
  for (int y = 0; y < cell.height; ++y) {
    for (int x = 0; x < cell.width; ++x) {
      const int64_t pixel = pixel_index(p, cell, y, x);
      const int label = label_at(p, pixel), i = y * kSide + x;
      if (label == kIgnored) continue;
      Strength strength = strength_of(p, label, pixel);
      if (p.gamma > 0) strength.at_label *= p.statistics[(1 + kSide * kSide + i) * p.cells + index];
      const float z = logit_at<T>(p, taps_of(p, cell, y, x), c) - largest[i * Backward<kSide>::kThreads];
      const float probability = exp_fast(z) / p.statistics[(1 + i) * p.cells + index];
      float g = (label == c ? probability - 1 : probability) * strength.at_label;
      if (p.smooth > 0) g += strength.smoothing * (probability * weight_sum_of(p) - weight_at(p, c));
      const float u = behind(p.columns, cell.x + x, cell.column), v = behind(p.rows, cell.y + y, cell.row);
      shares.upper_left += g * (1 - u) * (1 - v);
      shares.upper_right += g * u * (1 - v);
      shares.lower_left += g * (1 - u) * v;
      shares.lower_right += g * u * v;
    }
  }
  return shares;
}

// Computes thread block `block`. kOffset: as in resized_forward.h; unused with kSteep. Without kSteep it computes
// nothing and returns false if any of the cells is steep: steep cells need registers without which the others are
// faster.
template <class T, int kSide, bool kSteep, bool kOffset>
__device__ inline bool backward_block(const ResizedProblem& p, unsigned block) {
  constexpr int kPixels = kSide * kSide, kRows = Backward<kSide>::kRows, kThreads = Backward<kSide>::kThreads;
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const BackwardShared<kSide> shared(shared_memory);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;

  // 1. The cell. An item is a cell column in a strip of kRows rows; items are numbered by image, strip and column. A
  // thread block has kBackwardColumns items and the one before.
  const unsigned columns = p.columns.in + 1, strips = (p.rows.in + kRows - 1) / kRows;
  const unsigned item = block * kBackwardColumns + lane, line = item / columns;
  const int row = static_cast<int>(line % strips) * kRows + warp - 1, image = static_cast<int>(line / strips);
  const bool exists = image < p.images && row < p.rows.in;
  const Cell cell = exists ? cell_at(p, image, row, static_cast<int>(item % columns) - 1) : Cell{0, 0, 0, 0, 0, 0, 0};
  const unsigned index = (cell.image * (p.rows.in + 1) + cell.row + 1) * columns + cell.column + 1;
  const float reference = exists ? p.statistics[index] : 0.0f;
  const bool steep = exists && reference == INFINITY;
  if (!kSteep && any_of_block(steep)) return false;

  // 2. The cell's pixels: labels, factors, and positions for the bilinear weights.
  const float u_step = cell.column >= 0 && cell.column < p.columns.in - 1 ? p.columns.step : 0.0f;
  const float v_step = cell.row >= 0 && cell.row < p.rows.in - 1 ? p.rows.step : 0.0f;
  const float v_first = behind(p.rows, cell.y, cell.row), u_first = behind(p.columns, cell.x, cell.column);
  const float* const sums = p.statistics + p.cells + index;  // pixel i at i * cells
  const bool any = store_labels<kSide>(p, cell, shared.label, kThreads);
  float factor[kPixels];
  Shares smoothed{};
  constexpr int kStep = kPixels < kLoadsTogether ? kPixels : kLoadsTogether;
#pragma unroll
  for (int first = 0; first < kPixels; first += kStep) {
    keep_order();
    Strength strength[kStep];
#pragma unroll
    for (int j = 0; j < kStep; ++j) {  // all loads come before the first use
      const int i = first + j, label = shared.label[i * kThreads];
      const bool valid = label != kGone;
      strength[j] = strength_of(p, valid ? label : 0, valid ? pixel_index(p, cell, i / kSide, i % kSide) : 0);
      factor[i] = sums[i * p.cells];
    }
#pragma unroll
    for (int j = 0; j < kStep; ++j) {
      const int i = first + j;
      const bool valid = shared.label[i * kThreads] != kGone;
      const float all = strength[j].at_label + strength[j].smoothing * weight_sum_of(p);
      factor[i] = valid ? divide_fast(all, factor[i]) : 0.0f;
      if (p.smooth > 0 && valid) {
        const float u = fmaf(i % kSide, u_step, u_first), v = fmaf(i / kSide, v_step, v_first);
        const float below = strength[j].smoothing * v, above = strength[j].smoothing - below;
        smoothed = {smoothed.upper_left + above * (1 - u), smoothed.upper_right + above * u,
                    smoothed.lower_left + below * (1 - u), smoothed.lower_right + below * u};
      }
    }
  }
  *shared.smoothed = smoothed;
  keep_order();       // do not hold it in registers
  if (p.gamma > 0) {  // of an ignored pixel the derivative is undefined
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      if (i % kStep == 0) keep_order();
      if (shared.label[i * kThreads] != kGone) factor[i] *= sums[(kPixels + i) * p.cells];
    }
  }
  if (kSteep && steep && any) {
    for (int i = 0; i < kPixels; ++i) {
      const int y = i / kSide, x = i % kSide;
      if (shared.label[i * kThreads] == kGone) continue;
      shared.largest[i * kThreads] = largest_logit_at<T>(p, taps_of(p, cell, y, x));
    }
  }

  // 3. The classes: each cell's shares, exchanged with the neighbouring lane and warp, then stored.
  const Place place = place_of(p, cell);
  const T* top = static_cast<const T*>(p.input) + place.top_left;
  const T* bottom = top + p.stride_y;
  T* grad = static_cast<T*>(p.grad_input) + cell.image * p.grad_n + cell.row * p.grad_y + cell.column;
  const bool owner = exists && lane > 0 && warp > 0 && cell.column >= 0;
  CellLogits next = cell_logits_at(top, bottom);
  uint32_t flags = 0;
#pragma unroll 1
  for (int c = 0; c < p.classes; ++c) {
    const CellLogits z = next;
    if (c + 1 < p.classes) {  // load the next class while this one is computed
      top += p.stride_c, bottom += p.stride_c;
      next = cell_logits_at(top, bottom);
    }
    if (c % 32 == 0) flags = classes_of_warp<kSide>(shared.label, kThreads, c);
    bool unused = false;
    const float offset = kSteep ? offset_at(p, c) : kOffset ? p.offset[c] : 0.0f;
    const Sequence e = sequence_of(z, offset, place, p.span, unused);
    float row = exp2_fast(power_of(e, reference)), along = e.along;
    // Sums of the pixels' gradients, and of the gradients times x, y and x y. These small integers are constants, which
    // need no registers.
    float all = 0, by_x = 0, by_y = 0, by_xy = 0;
    const auto add = [&]<bool kIsLabel>(float share) {
#pragma unroll
      for (int y = 0; y < kSide; ++y) {
        float value = row, row_all = 0, row_by_x = 0;
#pragma unroll
        for (int x = 0; x < kSide; ++x) {
          const int i = y * kSide + x;
          float g = value;
          // Subtract 1 before summing: where the network is right, the differences are tiny.
          if (kIsLabel && shared.label[i * kThreads] == c) g -= share * sums[i * p.cells];
          g *= factor[i];
          row_all += g;
          row_by_x = fmaf(g, x, row_by_x);
          value *= along;
        }
        all += row_all;
        by_x += row_by_x;
        by_y = fmaf(row_all, y, by_y);
        by_xy = fmaf(row_by_x, y, by_xy);
        row *= e.down;
        along *= e.twist;
      }
    };
    if (flags >> (c % 32) & 1) {
      const float at_label = p.keep * weight_at(p, c), of_all = at_label + p.smooth * weight_sum_of(p);
      // Without smoothing it is exactly 1, which a fast division of equal values may miss.
      const float share = p.smooth > 0 ? (of_all > 0 ? divide_fast(at_label, of_all) : 0.0f) : 1.0f;
      add.template operator()<true>(share);
    } else {
      add.template operator()<false>(0.0f);
    }
    // From these, the sums of gradients times u, v and u v, with u = u_first + x u_step and v = v_first + y v_step.
    const float right = fmaf(u_step, by_x, u_first * all), low = fmaf(v_step, by_y, v_first * all);
    const float low_right = fmaf(v_step, fmaf(u_step, by_xy, u_first * by_y), v_first * right);
    Shares shares{(all - right) - (low - low_right), right - low_right, low - low_right, low_right};
    if (p.smooth > 0) {
      const float w = weight_at(p, c);
      const Shares less = *shared.smoothed;
      shares = {fmaf(-w, less.upper_left, shares.upper_left), fmaf(-w, less.upper_right, shares.upper_right),
                fmaf(-w, less.lower_left, shares.lower_left), fmaf(-w, less.lower_right, shares.lower_right)};
    }
    if (kSteep && steep && any) shares = steep_gradient<T, kSide>(p, cell, index, c, shared.largest);
    if (!any) shares = {};  // not times 0: 0 * NaN is NaN
    // The classes of one exchange are stored one after the other; the next exchange uses the other half of `lower`.
    const int k = c % kBackwardClasses, half = c / kBackwardClasses % 2 * kBackwardClasses;
    shared.upper[k * kThreads] = shares.upper_left + from_previous_lane(shares.upper_right);
    shared.lower[(half + k) * kThreads] = shares.lower_left + from_previous_lane(shares.lower_right);
    if (k == kBackwardClasses - 1 || c == p.classes - 1) {
      __syncthreads();
#pragma unroll
      for (int j = 0; j < kBackwardClasses; ++j) {
        if (owner && j <= k) {
          *grad = static_cast<T>(shared.upper[j * kThreads] + shared.lower[(half + j) * kThreads - kWarp]);
        }
        grad += p.grad_c;
      }
    }
  }
  return true;
}

// Launched with one thread block per kBackwardColumns items. is_left (blocks) tells which blocks have steep cells and
// are left to resized_backward_steep.
template <class T, int kSide, bool kOffset>
__global__ void __launch_bounds__(Backward<kSide>::kThreads, 2)
    resized_backward(const __grid_constant__ ResizedProblem p, uint8_t* is_left) {
  const bool done = backward_block<T, kSide, false, kOffset>(p, blockIdx.x);
  if (threadIdx.x == 0) is_left[blockIdx.x] = !done;
}

// Computes those of the `blocks` thread blocks of resized_backward that are left. Launched with about as many thread
// blocks as run at once.
template <class T, int kSide>
__global__ void __launch_bounds__(Backward<kSide>::kThreads, 1)
    resized_backward_steep(const __grid_constant__ ResizedProblem p, const uint8_t* is_left, unsigned blocks) {
  for (unsigned block = blockIdx.x; block < blocks; block += min(blocks, kSteepBlocks)) {
    if (!is_left[block]) continue;
    backward_block<T, kSide, true, false>(p, block);
    __syncthreads();  // before the next block reuses the shared memory
  }
}

}  // namespace cawa_fast::cuda
