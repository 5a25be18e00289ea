// Label maps for the operators that count: conversion to classes, and a report of bad labels.
#pragma once

#include "pixel.h"

namespace cawa_fast::cuda {

// A label has 2^type bytes.
static_assert(static_cast<int>(Label::kUInt8) == 0 && static_cast<int>(Label::kInt64) == 3);

// A contiguous label map (N, H, W) or (N, ...).
struct LabelMap {
  const void* data;
  Label type;
  int classes;
  int64_t ignore_index;
  int64_t* report;  // (3): number, minimum and maximum of bad labels, to be added to; may be null
};

// The bad labels of a thread block, in shared memory.
struct BadLabelsOfBlock {
  unsigned long long count;
  long long least, largest;
};

// Called by one thread. The caller must synchronise the block afterwards.
__device__ inline void clear_bad_labels(BadLabelsOfBlock& bad) { bad = {0, INT64_MAX, INT64_MIN}; }

// Called by one thread, after the block has synchronised.
__device__ inline void report_bad_labels(const LabelMap& map, const BadLabelsOfBlock& bad) {
  if (bad.count == 0) return;
  atomicAdd(reinterpret_cast<unsigned long long*>(map.report), bad.count);
  atomicMin(reinterpret_cast<long long*>(map.report + 1), bad.least);
  atomicMax(reinterpret_cast<long long*>(map.report + 2), bad.largest);
}

// The class in [0, classes) of a label, or kIgnored.
__device__ inline int class_of(const LabelMap& map, int64_t label) {
  const bool is_class = static_cast<uint64_t>(label) < static_cast<uint64_t>(map.classes);
  return is_class && label != map.ignore_index ? static_cast<int>(label) : kIgnored;
}

// The same. A bad label is added to `bad`, as the label of `pixels` pixels.
__device__ inline int checked_class_of(const LabelMap& map, int64_t label, int pixels, BadLabelsOfBlock& bad) {
  const int result = class_of(map, label);
  if (result == kIgnored && map.report && label != map.ignore_index) {
    atomicAdd(&bad.count, static_cast<unsigned long long>(pixels));
    atomicMin(&bad.least, static_cast<long long>(label));
    atomicMax(&bad.largest, static_cast<long long>(label));
  }
  return result;
}

// Calls body(pointer) with the labels as const uint8_t*, int16_t*, int32_t* or int64_t*.
template <class Body>
__device__ auto with_labels(const LabelMap& map, const Body& body) {
  switch (map.type) {
    case Label::kUInt8:
      return body(static_cast<const uint8_t*>(map.data));
    case Label::kInt16:
      return body(static_cast<const int16_t*>(map.data));
    case Label::kInt32:
      return body(static_cast<const int32_t*>(map.data));
    default:
      return body(static_cast<const int64_t*>(map.data));
  }
}

__device__ inline int64_t label_at(const LabelMap& map, int64_t i) {
  return with_labels(map, [i](const auto* labels) { return static_cast<int64_t>(labels[i]); });
}

// The first label of a rectangle of pixels, and whether all its labels are equal. The rectangle has at least one pixel,
// begins at label `first`, and its rows are `pitch` labels apart.
struct LabelsOfCell {
  int64_t label;
  bool alike;
};

__device__ inline LabelsOfCell labels_of_cell(const LabelMap& map, int64_t first, int columns, int rows,
                                              int64_t pitch) {
  return with_labels(map, [&](const auto* labels) {
    const auto* row = labels + first;
    const auto label = *row;
    auto differences = label;
    differences = 0;
    for (int y = 0; y < rows; ++y, row += pitch) {
#pragma unroll 4
      for (int x = 0; x < columns; ++x) differences |= row[x] ^ label;
    }
    return LabelsOfCell{static_cast<int64_t>(label), differences == 0};
  });
}

// Prefetches the first label of each row of such a rectangle.
__device__ inline void prefetch_labels(const LabelMap& map, int64_t first, int rows, int64_t pitch) {
  const int shift = static_cast<int>(map.type);  // a label has 2^shift bytes
  const auto* row = static_cast<const unsigned char*>(map.data) + (first << shift);
#pragma unroll 1
  for (int y = 0; y < rows; ++y, row += pitch << shift) prefetch(row);
}

}  // namespace cawa_fast::cuda
