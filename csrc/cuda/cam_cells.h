// Shared by the kernels of cam_counts: the problem description, and a cell's samples and values.
#pragma once

#include "count_cells.h"
#include "count_labels.h"

namespace cawa_fast::cuda {

constexpr int kTogether = kCells;  // classes that a thread block tests for being wanted at a time, one per thread
constexpr int kAtOnce = 4;         // classes whose samples are loaded together, to hide latency
constexpr int kInfinityBits = 0x7f800000;
constexpr int kMixed = -2;  // in place of a label: the labels of a cell differ

struct CamProblem {
  ResizedMaps maps;
  LabelMap labels;
  const int64_t* truth;   // (N, C): valid pixels of each class in each image
  int* maxima;            // (N, C), as order_of, initially 0; null: values are compared with tau as they are
  int64_t *tp, *fp, *fn;  // (C), output
  float tau;              // >= 0
  bool every_class;       // score every class in every image, not only those with truth > 0
};

// An integer in the order of positive values, with NaN as the largest. Values that are not positive cannot be maxima of
// interest and give at most 0.
__device__ inline int order_of(float v) { return static_cast<int>(__float_as_uint(max_nan(v, 0))); }

// The inverse of order_of.
__device__ inline float value_of(int order) { return __uint_as_float(static_cast<uint32_t>(order)); }

// A cell: its pixels and the offsets of its corners. With kSame, maps have the labels' size, and values are samples.
template <class T, bool kSame>
struct CamCell {
  const T* image;
  Corners corners;
  int x, y;                             // position of the cell among the image's cells
  int first_x, first_y, columns, rows;  // output pixels

  // `x_in_tile`, `y_in_tile`: position of the cell in the tile.
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

  // Cells beyond the map's border are empty; their corners lie outside the map.
  __device__ bool empty() const { return columns <= 0 || rows <= 0; }

  __device__ Samples samples(const ResizedMaps& maps, int c) const {
    const T* first = image + corners.first + c * maps.stride_c;
    if (!kSame) return samples_at(first, corners);
    const float v = static_cast<float>(load_constant(first));
    return {v, v, v, v};
  }

  // The resized value at a pixel of the cell.
  __device__ float value(const ResizedMaps& maps, const Samples& s, int column, int row) const {
    if (kSame) return s.a;
    return mix(s, high_weight(maps.x, first_x + column, x), high_weight(maps.y, first_y + row, y));
  }
};

// Loads the samples of kAtOnce classes of list[start ...]; beyond the end of the list, those of its last class.
template <class T, bool kSame>
__device__ void load_samples(const ResizedMaps& maps, const CamCell<T, kSame>& cell, const int* list, int start,
                             int count, Samples* samples) {
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) samples[i] = cell.samples(maps, list[min(start + i, count - 1)]);
}

}  // namespace cawa_fast::cuda
