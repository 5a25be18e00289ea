// Shared by the forward and the backward kernel of cross-entropy with a bilinear resize: problem, cells, exponentials.
//
// A sample is a low-resolution logit. A cell is the output pixels between four neighbouring samples. With (u, v) a
// pixel's position in the cell, its logit is
//
//     a b        z(u, v) = a + u dx + v dy + u v dxy,   dx = b - a, dy = c - a, dxy = (d - c) - (b - a)
//     c d
//
// Along a row of pixels u grows by a constant step, so exp z is a geometric sequence. The same holds down a column, and
// the ratio of a row's sequence is itself geometric from row to row. Four exponentials therefore serve all pixels of a
// cell and class, instead of one per pixel: 16 at ratio 4 and 64 at ratio 8.
//
// The exponentials are those of differences to a reference, which is one logit of the cell. This works as long as no
// class changes by more than kSpan within the cell; otherwise a pixel's largest exponential could vanish beside the
// reference. A cell in which a class changes more, or is not finite, is called steep and is computed pixel by pixel.
#pragma once

#include "pixel.h"

namespace cawa_fast::cuda {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kSpan = 33.0f;            // 48 powers of two
constexpr float kAboveReference = 24.0f;  // in powers of two; a logit further above the reference replaces it
constexpr float kLeastAtLabel = 1e-30f;   // a label's exponential below this has lost too much precision to divide by
constexpr int kGone = 0xffff;             // label of a pixel that is invalid or does not exist
constexpr unsigned kSteepBlocks = 256;    // about as many thread blocks as run at once
constexpr int kMaxResizedClasses = 4096;  // a sum of so many exponentials below 2^(24 + 48) is finite

// One axis. Output i lies at (i * scale + shift) / unit among the samples, clamped to [0, in - 1]. These are integers,
// since float32 would make the interpolation weights inexact. Cell s has the outputs in [s, s + 1); s runs from -1,
// left of the first sample, to in - 1.
struct CellAxis {
  int in, out, scale, shift, unit;  // in >= 2, (in + 1) * out < 2^29
  float inverse_unit, step;         // step: distance of neighbouring outputs, in samples
};

// The first output in cell `cell`, or in a later one if it is empty.
__device__ inline int first_output(const CellAxis& axis, int cell) {
  const int ahead = cell * axis.unit - axis.shift;
  return min((max(ahead, 0) + axis.scale - 1) / axis.scale, axis.out);
}

// The distance of an output from sample `left`, in samples.
__device__ inline float behind(const CellAxis& axis, int out, int left) {
  const int position = min(max(out * axis.scale + axis.shift, 0), (axis.in - 1) * axis.unit);
  return static_cast<float>(position - left * axis.unit) * axis.inverse_unit;
}

struct ResizedProblem {
  CellAxis rows, columns;
  int images, classes;
  int64_t cells;                         // images * (rows.in + 1) * (columns.in + 1)
  const void* input;                     // (N, C, h, w) logits, any values
  int64_t stride_n, stride_c, stride_y;  // in elements; the stride along x is 1
  float span;                            // largest change of a class within a cell that is not steep; at most kSpan
  const void* labels;                    // (N, H, W) contiguous
  Label label_type;
  int64_t ignore_index;
  const float* weight;      // (C), >= 0, or null for 1
  const float* weight_sum;  // (1): sum of weight; null for C
  const float* offset;      // (C), finite, added to the logits, or null for 0
  const float* scale;       // (C): the reduction as a factor per class
  float keep, smooth;       // 1 - s, s / C, with s the label smoothing in [0, 1]
  float gamma;              // >= 0, the exponent of the focal loss; at most one of s and gamma is positive
  // Output of the forward pass; one of the two is null.
  float* pixel_loss;     // (N, H, W), without scale
  double* partial_loss;  // per thread block, with scale
  // (statistics_rows, cells), from the forward to the backward pass. The first row has each cell's reference, or
  // infinity if the cell is steep. kSide^2 rows have each pixel's sum of exponentials, relative to the reference or, in
  // a steep cell, to the pixel's largest logit. With gamma kSide^2 more have the derivative of the focal loss (pixel.h)
  // at each valid pixel. Null only in a forward pass without a gradient and without label smoothing.
  float* statistics;
  float* references;  // (cells): the first row of statistics; never null in the forward pass
  // Backward pass.
  const float* grad;  // upstream gradient: (1), or (N, H, W) if grad_per_pixel
  bool grad_per_pixel;
  void* grad_input;                // output (N, C, h, w), in the input's type
  int64_t grad_n, grad_c, grad_y;  // its strides in elements; the stride along x is 1
};

__device__ inline float weight_at(const ResizedProblem& p, int label) { return p.weight ? p.weight[label] : 1.0f; }

__device__ inline float offset_at(const ResizedProblem& p, int c) { return p.offset ? p.offset[c] : 0.0f; }

__device__ inline float weight_sum_of(const ResizedProblem& p) {
  return p.weight_sum ? *p.weight_sum : static_cast<float>(p.classes);
}

__device__ inline int label_at(const ResizedProblem& p, int64_t pixel) {
  return label_of(p.labels, p.label_type, pixel, p.classes, p.ignore_index);
}

constexpr int kLoadsTogether = 8;  // pixels for which a thread has loads in flight together

// A cell of `image`. It has height x width pixels from (y, x) on, at most kSide each way; none if it does not exist.
struct Cell {
  int image, row, column;
  int y, x, height, width;
};

__device__ inline Cell cell_at(const ResizedProblem& p, int image, int row, int column) {
  Cell cell{image, row, column, first_output(p.rows, row), first_output(p.columns, column), 0, 0};
  cell.height = first_output(p.rows, row + 1) - cell.y;
  cell.width = first_output(p.columns, column + 1) - cell.x;
  return cell;
}

// Cell number `index`; cells are numbered by image, row and column.
__device__ inline Cell cell_at_index(const ResizedProblem& p, unsigned index) {
  const unsigned columns = p.columns.in + 1, rows = p.rows.in + 1, line = index / columns;
  return cell_at(p, static_cast<int>(line / rows), static_cast<int>(line % rows) - 1,
                 static_cast<int>(index % columns) - 1);
}

// The index in (N, H, W) of pixel (y, x) of a cell.
__device__ inline int64_t pixel_index(const ResizedProblem& p, const Cell& cell, int y, int x) {
  return (static_cast<int64_t>(cell.image) * p.rows.out + cell.y + y) * p.columns.out + cell.x + x;
}

// Stores the labels of a cell's pixels in `to`, `stride` apart, kGone where invalid. Returns whether any is valid.
// kLoadsTogether loads are issued before the first use: one after the other they would take longer than the classes.
template <class L, int kSide>
__device__ inline bool store_labels(const ResizedProblem& p, const Cell& cell, uint16_t* to, int stride) {
  constexpr int kPixels = kSide * kSide, kStep = kPixels < kLoadsTogether ? kPixels : kLoadsTogether;
  const L* const from = static_cast<const L*>(p.labels) + pixel_index(p, cell, 0, 0);
  bool any = false;
#pragma unroll
  for (int first = 0; first < kPixels; first += kStep) {
    keep_order();
    L labels[kStep];
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
      const int y = (first + i) / kSide, x = (first + i) % kSide;
      labels[i] = y < cell.height && x < cell.width ? from[static_cast<int64_t>(y) * p.columns.out + x] : L{0};
    }
#pragma unroll
    for (int i = 0; i < kStep; ++i) {
      const int y = (first + i) / kSide, x = (first + i) % kSide;
      const int64_t label = labels[i];
      const bool inside = y < cell.height && x < cell.width;
      const bool valid = inside && label >= 0 && label < p.classes && label != p.ignore_index;
      to[(first + i) * stride] = static_cast<uint16_t>(valid ? label : kGone);
      any |= valid;
    }
  }
  return any;
}

template <int kSide>
__device__ inline bool store_labels(const ResizedProblem& p, const Cell& cell, uint16_t* to, int stride) {
  switch (p.label_type) {
    case Label::kUInt8:
      return store_labels<uint8_t, kSide>(p, cell, to, stride);
    case Label::kInt16:
      return store_labels<int16_t, kSide>(p, cell, to, stride);
    case Label::kInt32:
      return store_labels<int32_t, kSide>(p, cell, to, stride);
    default:
      return store_labels<int64_t, kSide>(p, cell, to, stride);
  }
}

// A cell's place among the samples: its corners, the position of its first pixel between them, and the step to the next
// pixel. In the half cells at the borders all pixels lie on one sample, and the step is 0.
struct Place {
  int64_t top_left;  // offset of sample a in elements; b follows it, and c and d lie a row below
  float u, v, du, dv;
};

__device__ inline Place place_of(const ResizedProblem& p, const Cell& cell) {
  const int left = min(max(cell.column, 0), p.columns.in - 2), top = min(max(cell.row, 0), p.rows.in - 2);
  Place place;
  place.top_left = cell.image * p.stride_n + top * p.stride_y + left;
  place.u = behind(p.columns, cell.x, left);
  place.v = behind(p.rows, cell.y, top);
  place.du = cell.column == left ? p.columns.step : 0.0f;
  place.dv = cell.row == top ? p.rows.step : 0.0f;
  return place;
}

// The samples of one class at a cell's corners.
struct CellLogits {
  float a, b, c, d;
};

template <class T>
__device__ inline CellLogits cell_logits_at(const T* top, const T* bottom) {
  return {static_cast<float>(top[0]), static_cast<float>(top[1]), static_cast<float>(bottom[0]),
          static_cast<float>(bottom[1])};
}

// One class in a cell. The logit of the first pixel is `sample` + `difference`, which includes the offset. Its
// exponential is multiplied by `along` from pixel to pixel along a row and by `down` from row to row; `along` itself is
// multiplied by `twist` from row to row.
struct Sequence {
  float sample, difference, along, down, twist;
};

// The base-2 logarithm of the first pixel's exponential, relative to the reference. The logits of a cell are close to
// each other, however large they are, so that only differences are rounded. A rounded logit would bias all pixels of
// the cell in the same direction.
__device__ inline float power_of(const Sequence& e, float reference) {
  return ((e.sample - reference) + e.difference) * kLog2E;
}

// `offset`: of the class. Sets `steep` if the class changes by more than `span` or is not finite.
__device__ inline Sequence sequence_of(const CellLogits& z, float offset, const Place& place, float span, bool& steep) {
  const float dx = z.b - z.a, dy = z.c - z.a, dxy = (z.d - z.c) - dx;
  steep |= !(fabsf(dx) + fabsf(dy) + fabsf(dxy) <= span);
  const float slope_x = fmaf(place.v, dxy, dx), slope_y = fmaf(place.u, dxy, dy);
  const float difference = fmaf(place.v, slope_y, fmaf(place.u, dx, offset));
  return {z.a, difference, exp2_fast(slope_x * (place.du * kLog2E)), exp2_fast(slope_y * (place.dv * kLog2E)),
          exp2_fast(dxy * (place.du * place.dv * kLog2E))};
}

// Bit k of the result: whether class first + k is the label of any of the warp's pixels. A lane's labels lie `stride`
// apart.
template <int kSide>
__device__ inline uint32_t classes_of_warp(const uint16_t* labels, int stride, int first) {
  uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < kSide * kSide; ++i) {
    const unsigned k = labels[i * stride] - first;
    bits |= k < 32 ? 1u << k : 0u;
  }
  return or_of_warp(bits);
}

// -------------------------------------------------------------------------------------------------------- steep cells

// A pixel's samples, the same as in F.interpolate, so that a sample that is not finite affects the same pixels.
struct Taps {
  int64_t top_left;  // offset of the upper left sample, in elements
  int right;         // offset from there to the right sample; 0 in the last column
  int64_t below;     // to the lower sample; 0 in the last row
  float u, v;        // weights of the right and the lower sample
};

__device__ inline Taps taps_of(const ResizedProblem& p, const Cell& cell, int y, int x) {
  const int left = max(cell.column, 0), top = max(cell.row, 0);
  // Beyond the last sample both taps are that sample, so that any weights are right.
  const int u = max((cell.x + x) * p.columns.scale + p.columns.shift, 0) - left * p.columns.unit;
  const int v = max((cell.y + y) * p.rows.scale + p.rows.shift, 0) - top * p.rows.unit;
  return {cell.image * p.stride_n + top * p.stride_y + left, left + 1 < p.columns.in ? 1 : 0,
          top + 1 < p.rows.in ? p.stride_y : 0, static_cast<float>(u) * p.columns.inverse_unit,
          static_cast<float>(v) * p.rows.inverse_unit};
}

template <class T>
__device__ inline float logit_at(const ResizedProblem& p, const Taps& taps, int label) {
  const T* z = static_cast<const T*>(p.input) + taps.top_left + label * p.stride_c;
  const float a = static_cast<float>(z[0]), b = static_cast<float>(z[taps.right]);
  const float c = static_cast<float>(z[taps.below]), d = static_cast<float>(z[taps.below + taps.right]);
  // explicit fused multiply-adds, so that all kernels compute the same bits
  const float top = fmaf(b, taps.u, a * (1 - taps.u)), bottom = fmaf(d, taps.u, c * (1 - taps.u));
  return fmaf(bottom, taps.v, top * (1 - taps.v)) + offset_at(p, label);
}

// The largest logit of a pixel, or 0 if all are -inf.
template <class T>
__device__ inline float largest_logit_at(const ResizedProblem& p, const Taps& taps) {
  float largest = -INFINITY;
  for (int c = 0; c < p.classes; ++c) largest = fmaxf(largest, logit_at<T>(p, taps, c));
  return shift_of(largest);
}

}  // namespace cawa_fast::cuda
