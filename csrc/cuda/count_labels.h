// Label maps as the operators that count read them: classes, and a report of labels that should not be there.
#pragma once

#include "pixel.h"

namespace cawa_fast::cuda {

static_assert(static_cast<int>(Label::kUInt8) == 0 && static_cast<int>(Label::kInt64) == 3);  // logarithms of sizes

// Contiguous (N, H, W).
struct LabelMap {
  const void* data;
  Label type;
  int classes;
  int64_t ignore_index;
  int64_t* report;  // (3) count, least and largest of bad labels, to be added to; may be null
};

// Of a block, in shared memory.
struct BadLabelsOfBlock {
  unsigned long long count;
  long long least, largest;
};

// By one thread; a barrier has to follow.
__device__ inline void clear_bad_labels(BadLabelsOfBlock& bad) { bad = {0, INT64_MAX, INT64_MIN}; }

// By one thread, after a barrier.
__device__ inline void report_bad_labels(const LabelMap& map, const BadLabelsOfBlock& bad) {
  if (bad.count == 0) return;
  atomicAdd(reinterpret_cast<unsigned long long*>(map.report), bad.count);
  atomicMin(reinterpret_cast<long long*>(map.report + 1), bad.least);
  atomicMax(reinterpret_cast<long long*>(map.report + 2), bad.largest);
}

// The class that a label is, or kIgnored.
__device__ inline int class_of(const LabelMap& map, int64_t label) {
  const bool is_class = static_cast<uint64_t>(label) < static_cast<uint64_t>(map.classes);
  return is_class && label != map.ignore_index ? static_cast<int>(label) : kIgnored;
}

// The same; notes it as the label of so many pixels if it is a bad one.
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

// The first label of a rectangle, and whether all others are the same. The rectangle: at least one pixel, rows `pitch`
// labels apart, the first one at `first`.
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

// Starts to bring the rows of such a rectangle into the cache.
__device__ inline void prefetch_labels(const LabelMap& map, int64_t first, int rows, int64_t pitch) {
  const int shift = static_cast<int>(map.type);  // 2^shift bytes
  const auto* row = static_cast<const unsigned char*>(map.data) + (first << shift);
#pragma unroll 1
  for (int y = 0; y < rows; ++y, row += pitch << shift) prefetch(row);
}

}  // namespace cawa_fast::cuda
