// What the kernels of cam_counts have in common: their problem, and a cell's samples and values.
#pragma once

#include "count_cells.h"
#include "count_labels.h"

namespace cawa_fast::cuda {

constexpr int kTogether = kCells;  // classes: a block chooses from as many at a time, a thread for each
constexpr int kAtOnce = 4;         // classes whose samples are loaded together, to wait for them once
constexpr int kInfinityBits = 0x7f800000;
constexpr int kMixed = -2;  // in place of a label: not all of a cell's are alike

struct CamProblem {
  ResizedMaps maps;
  LabelMap labels;
  const int64_t* truth;   // (N, C)
  int* maxima;            // (N, C) by order_of, zero at first; null: values are compared with tau as they are
  int64_t *tp, *fp, *fn;  // (C)
  float tau;
  bool every_class;
};

// Positive values in their order, NaN the largest; the others, which cannot be maxima, are no larger than 0.
__device__ inline int order_of(float v) { return static_cast<int>(__float_as_uint(max_nan(v, 0))); }

__device__ inline float value_of(int order) { return __uint_as_float(static_cast<uint32_t>(order)); }

// A cell: its pixels, and where its corners are. With kSame maps have the labels' size, and values are samples.
template <class T, bool kSame>
struct CamCell {
  const T* image;
  Corners corners;
  int x, y;  // of the cell among the cells
  int first_x, first_y, columns, rows;

  // `x_in_tile`, `y_in_tile`: which of the tile's
  __device__ CamCell(const ResizedMaps& maps, const CellTile& tile, const TilePixels& pixels, int x_in_tile,
                     int y_in_tile)
      : image(static_cast<const T*>(maps.data) + tile.image * maps.stride_n),
        corners(corners_of(maps, tile.x + x_in_tile, tile.y + y_in_tile)),
        x(tile.x + x_in_tile),
        y(tile.y + y_in_tile),
        first_x(pixels.first_x[x_in_tile]),
        first_y(pixels.first_y[y_in_tile]),
        columns(pixels.first_x[x_in_tile + 1] - first_x),
        rows(pixels.first_y[y_in_tile + 1] - first_y) {}

  // As are those beyond the map's border, whose corners are outside of it.
  __device__ bool empty() const { return columns <= 0 || rows <= 0; }

  __device__ Samples samples(const ResizedMaps& maps, int c) const {
    const T* first = image + corners.first + c * maps.stride_c;
    if (!kSame) return samples_at(first, corners);
    const float v = static_cast<float>(load_constant(first));
    return {v, v, v, v};
  }

  // At one of the cell's pixels.
  __device__ float value(const ResizedMaps& maps, const Samples& s, int column, int row) const {
    if (kSame) return s.a;
    return mix(s, high_weight(maps.x, first_x + column, x), high_weight(maps.y, first_y + row, y));
  }
};

// Samples of the kAtOnce classes of `list` from `start` on; behind its end, those of the last one.
template <class T, bool kSame>
__device__ void load_samples(const ResizedMaps& maps, const CamCell<T, kSame>& cell, const int* list, int start,
                             int count, Samples* samples) {
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) samples[i] = cell.samples(maps, list[min(start + i, count - 1)]);
}

}  // namespace cawa_fast::cuda
