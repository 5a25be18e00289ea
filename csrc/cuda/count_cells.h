// Maps resized to the labels' size, split into cells, for the operators that count: confusion matrix and CAM counts.
//
// A sample is a value of the low-resolution map. Cell (x, y) has the output pixels whose upper left sample is (x, y).
// They interpolate between the same four samples, the cell's corners. A pixel's samples and weights have the bits of
// reference.bilinear_taps, and its value has those of reference.resize, so that counts agree in every pixel.
#pragma once

#include "pixel.h"

namespace cawa_fast::cuda {

constexpr int kCellsX = kWarp, kCellsY = 8, kCells = kCellsX * kCellsY;  // per thread block: one cell per thread

// One axis. Output position i lies at (i + half) * step - half among the samples. half: 1/2, or 0 if align_corners.
struct Axis {
  int in_size, out_size;
  float step, half;
};

// Maps (N, C, h, w) with any strides, in elements. The samples of a plane lie less than 2^31 elements apart.
struct ResizedMaps {
  const void* data;
  int64_t stride_n, stride_c;
  int stride_y, stride_x, classes;
  Axis y, x;
  uint32_t tiles_x, tiles_y;  // tiles that an image's cells are split into, one per thread block
};

// --------------------------------------------------------------------------------------------------- sample positions

// The position among the samples, at least 0. Rounded once, by the fused multiply-add.
__device__ inline float position_of(const Axis& axis, int out) {
  return fmaxf(fmaf(static_cast<float>(out) + axis.half, axis.step, -axis.half), 0.0f);
}

__device__ inline int low_sample(const Axis& axis, int out) {
  return min(static_cast<int>(position_of(axis, out)), axis.in_size - 1);
}

// The weight in [0, 1] of sample low + 1; `low` is low_sample(axis, out).
__device__ inline float high_weight(const Axis& axis, int out, int low) {
  return fminf(position_of(axis, out) - static_cast<float>(low), 1.0f);
}

// The first output position whose low sample is `cell` or a later one. The guess is off by one at most for sizes up to
// a million.
__device__ inline int first_output(const Axis& axis, int cell) {
  if (cell <= 0) return 0;
  if (cell >= axis.in_size) return axis.out_size;
  const float guess = divide_fast(static_cast<float>(cell) + axis.half, axis.step) - axis.half;
  int out = static_cast<int>(fminf(fmaxf(guess, 0.0f), static_cast<float>(axis.out_size)));
  while (out > 0 && low_sample(axis, out - 1) >= cell) --out;
  while (out < axis.out_size && low_sample(axis, out) < cell) ++out;
  return out;
}

// ------------------------------------------------------------------------------------------------------------- values

// Offsets of a cell's corners in a plane, in elements: `first` of the upper left one, and from there to the right and
// the lower one; 0 at the border.
struct Corners {
  int first;
  uint32_t right, below;
};

__device__ inline Corners corners_of(const ResizedMaps& maps, int x, int y) {
  return {y * maps.stride_y + x * maps.stride_x, x + 1 < maps.x.in_size ? static_cast<uint32_t>(maps.stride_x) : 0,
          y + 1 < maps.y.in_size ? static_cast<uint32_t>(maps.stride_y) : 0};
}

struct Samples {
  float a, b, c, d;  // upper left, upper right, lower left, lower right
};

// `first`: address of the upper left sample.
template <class T>
__device__ Samples samples_at(const T* first, const Corners& corners) {
  const auto sample = [first](uint32_t offset) { return static_cast<float>(load_constant(address_of(first, offset))); };
  return {static_cast<float>(load_constant(first)), sample(corners.right), sample(corners.below),
          sample(corners.right + corners.below)};
}

__device__ inline float largest_of(const Samples& s) { return fmaxf(fmaxf(s.a, s.c), fmaxf(s.b, s.d)); }

// The smallest sample, or NaN if any is NaN.
__device__ inline float least_of(const Samples& s) { return min_nan(min_nan(s.a, s.c), min_nan(s.b, s.d)); }

__device__ inline bool all_finite(const Samples& s) {
  return fmaf(s.a, 0.0f, fmaf(s.b, 0.0f, fmaf(s.c, 0.0f, s.d * 0.0f))) == 0;  // NaN if any is not finite
}

// Interpolation between two values, rounded as specified: every product and sum on its own, nothing fused.
__device__ inline float blend(float low, float high, float weight) {
  return __fadd_rn(__fmul_rn(low, 1 - weight), __fmul_rn(high, weight));
}

// Bilinear interpolation, along x first. Weights, in [0, 1], of the right and of the lower samples.
__device__ inline float mix(const Samples& s, float weight_x, float weight_y) {
  return blend(blend(s.a, s.b, weight_x), blend(s.c, s.d, weight_x), weight_y);
}

// A resized value lies in [smallest, largest] of its four finite samples, widened by kMargin * |v| + kTiny at each end
// v. Two products and a sum, twice, round by less than 6 half ulps, and the weights add another 2; kTiny covers
// products that underflow.
constexpr float kMargin = 0x1p-20f, kTiny = 1e-37f;
__device__ inline float somewhat_less(float v) { return v - (fabsf(v) * kMargin + kTiny); }
__device__ inline float somewhat_more(float v) { return v + (fabsf(v) * kMargin + kTiny); }

// -------------------------------------------------------------------------------------------------------------- tiles

// The cells of a thread block: kCellsX columns from x on, kCellsY rows from y on.
struct CellTile {
  int x, y;
  int64_t image;
};

__device__ inline CellTile cell_tile(const ResizedMaps& maps, uint32_t index) {
  const uint32_t row = index / maps.tiles_x, image = row / maps.tiles_y;
  return {static_cast<int>(index - row * maps.tiles_x) * kCellsX,
          static_cast<int>(row - image * maps.tiles_y) * kCellsY, image};
}

// The output pixels of a tile's cells, in shared memory. Cell (x, y) of the tile has columns [first_x[x],
// first_x[x + 1]) and rows [first_y[y], first_y[y + 1]).
struct TilePixels {
  int first_x[kCellsX + 1], first_y[kCellsY + 1];
  int most_x, most_y;  // the most columns and rows of a cell
};

// Fills `pixels`. Called by all threads; the first two warps work. The caller must synchronise the block afterwards.
__device__ inline void find_pixels(const ResizedMaps& maps, const CellTile& tile, TilePixels& pixels) {
  const int lane = threadIdx.x;
  if (threadIdx.y >= 2) return;
  const bool of_x = threadIdx.y == 0;
  const Axis& axis = of_x ? maps.x : maps.y;
  const int cells = of_x ? kCellsX : kCellsY, origin = of_x ? tile.x : tile.y;
  int* first = of_x ? pixels.first_x : pixels.first_y;
  const int begin = first_output(axis, origin + min(lane, cells));
  int end = __shfl_sync(kAllLanes, begin, min(lane + 1, kWarp - 1));
  if (lane == kWarp - 1) {
    end = first_output(axis, origin + cells);
    first[cells] = end;
  }
  if (lane < cells) first[lane] = begin;
  const int most = __reduce_max_sync(kAllLanes, end - begin);
  if (lane == 0) (of_x ? pixels.most_x : pixels.most_y) = most;
}

}  // namespace cawa_fast::cuda
