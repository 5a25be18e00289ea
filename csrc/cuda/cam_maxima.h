// The kernel cam_maxima, the first launch of cam_counts.
#pragma once

#include "cam_cells.h"

namespace cawa_fast::cuda {

struct MaximaShared {
  TilePixels pixels;
  int wanted, unsure;      // lengths of `list` and `again`
  int list[kTogether];     // wanted classes
  float known[kTogether];  // per listed class: the maximum that other thread blocks had found before
  int found[kTogether];    // per listed class: the largest value at the outermost pixels of all cells, by order_of
  int bound[kTogether];    // per listed class: upper bound of all values, by order_of
  int again[kTogether];    // indices in `list` of classes of which another pixel may have a larger value
};

// The largest value at the outermost pixels of a cell, and an upper bound of all its values.
struct CellMaximum {
  float found, bound;
};

// The interpolation weights of the outermost pixels, in [0, 1].
struct Outermost {
  float left, right, top, bottom;
};

// In exact arithmetic the largest value of a cell is at one of its four outermost pixels. With rounding another pixel
// can exceed it by the margin.
__device__ inline CellMaximum maximum_of(const Samples& s, const Outermost& weights) {
  const float over_left = blend(s.a, s.b, weights.left), under_left = blend(s.c, s.d, weights.left);
  const float over_right = blend(s.a, s.b, weights.right), under_right = blend(s.c, s.d, weights.right);
  const float upper = max_nan(blend(over_left, under_left, weights.top), blend(over_right, under_right, weights.top));
  const float lower =
      max_nan(blend(over_left, under_left, weights.bottom), blend(over_right, under_right, weights.bottom));
  const float found = max_nan(upper, lower);
  const float size = fmaxf(fmaxf(fabsf(s.a), fabsf(s.b)), fmaxf(fabsf(s.c), fabsf(s.d)));
  return {found, found + 2 * (size * kMargin + kTiny)};
}

// Stages:
//   1. the outermost pixels of each cell, and a bound for all its pixels
//   2. for classes whose bound exceeds the maximum that all thread blocks have found so far: all pixels of cells that
//      may exceed it
// Few thread blocks reach stage 2: those that find a new maximum.
template <class T, bool kSame>
__global__ void __launch_bounds__(kCells, 4) cam_maxima(const __grid_constant__ CamProblem p) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  MaximaShared& shared = *reinterpret_cast<MaximaShared*>(shared_memory);
  const ResizedMaps& maps = p.maps;
  const int thread = threadIdx.y * kCellsX + threadIdx.x;
  const CellTile tile = cell_tile(maps, blockIdx.x);
  if (blockIdx.x == 0) {  // initial values for cam_masks
    for (int c = thread; c < maps.classes; c += kCells) p.tp[c] = p.fp[c] = p.fn[c] = 0;
  }
  find_pixels(maps, tile, shared.pixels);
  __syncthreads();
  const CamCell<T, kSame> cell(maps, tile, shared.pixels, threadIdx.x, threadIdx.y);
  const bool empty = cell.empty();
  const Outermost weights{
      high_weight(maps.x, cell.first_x, cell.x), high_weight(maps.x, cell.first_x + cell.columns - 1, cell.x),
      high_weight(maps.y, cell.first_y, cell.y), high_weight(maps.y, cell.first_y + cell.rows - 1, cell.y)};
  int* const maxima = p.maxima + tile.image * maps.classes;

  for (int begin = 0; begin < maps.classes; begin += kTogether) {
    if (thread == 0) shared.wanted = shared.unsure = 0;
    shared.found[thread] = shared.bound[thread] = 0;
    __syncthreads();
    const int c = begin + thread;
    if (c < maps.classes && (p.every_class || p.truth[tile.image * maps.classes + c] > 0)) {
      const int index = atomicAdd(&shared.wanted, 1);
      shared.list[index] = c;
      shared.known[index] = value_of(maxima[c]);
    }
    __syncthreads();

    // 1. Outermost pixels.
    const int wanted = shared.wanted;
    for (int start = 0; start < wanted; start += kAtOnce) {
      Samples samples[kAtOnce] = {};
      if (!empty) load_samples(maps, cell, shared.list, start, wanted, samples);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (start + i >= wanted) break;
        // Skip cells that cannot exceed the maximum: most maps are 0 in most places. Cells with infinities are not
        // skipped, since these can give NaN even where no corner is positive.
        const float largest = largest_of(samples[i]);
        const bool may_exceed = largest > 0 && somewhat_more(largest) > shared.known[start + i];
        if (__ballot_sync(kAllLanes, !empty && (may_exceed || !all_finite(samples[i]))) == 0) continue;
        const CellMaximum maximum = kSame ? CellMaximum{samples[i].a, samples[i].a} : maximum_of(samples[i], weights);
        const int found = __reduce_max_sync(kAllLanes, empty ? 0 : order_of(maximum.found));
        const int bound = __reduce_max_sync(kAllLanes, empty ? 0 : order_of(maximum.bound));
        if (threadIdx.x == 0 && bound > 0) {
          atomicMax(shared.found + start + i, found);
          atomicMax(shared.bound + start + i, bound);
        }
      }
    }
    __syncthreads();

    // 2. Other pixels that may have a larger value.
    if (thread < wanted && shared.bound[thread] > 0) {
      const int known = atomicMax(maxima + shared.list[thread], shared.found[thread]);
      shared.found[thread] = max(known, shared.found[thread]);
      if (shared.bound[thread] > shared.found[thread]) shared.again[atomicAdd(&shared.unsure, 1)] = thread;
    }
    __syncthreads();
    for (int i = 0; i < shared.unsure; ++i) {
      const int index = shared.again[i], known = shared.found[index];
      int found = 0;
      if (!empty) {
        const Samples s = cell.samples(maps, shared.list[index]);
        if (!(somewhat_more(largest_of(s)) <= value_of(known))) {
          for (int row = 0; row < cell.rows; ++row) {
            for (int column = 0; column < cell.columns; ++column) {
              found = max(found, order_of(cell.value(maps, s, column, row)));
            }
          }
        }
      }
      found = __reduce_max_sync(kAllLanes, found);
      if (threadIdx.x == 0 && found > known) atomicMax(maxima + shared.list[index], found);
    }
    __syncthreads();
  }
}

}  // namespace cawa_fast::cuda
