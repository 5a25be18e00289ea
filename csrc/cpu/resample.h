// Values of resized maps, rounded as the specification does: every product and every sum on its own, columns first.
// This file is compiled without fused multiply-adds.
//
// With this rounding the resize is monotone in its four inputs: where one map is larger than another at all four, its
// value between them is larger or equal. Two effects of rounding remain: values that differ exactly may become equal,
// and the weights of a pixel may add up to 1 plus or minus an ulp or two. A margin (kMargin) covers both. A comparison
// that holds beyond it for the corners of a patch holds for all its pixels.
#pragma once

#include "rows.h"

namespace cawa_fast {
namespace CAWA_FAST_ISA {

// A resized value lies in [smallest, largest] of its four inputs, widened by kMargin * |v| + kTiny at each end v. Two
// products and a sum, twice, round by less than 6 half ulps, and the weights add another 2; kTiny covers products that
// underflow.
constexpr float kMargin = 0x1p-20f;
constexpr float kTiny = 1e-37f;

CAWA_FAST_INLINE Floats somewhat_less(Floats v) { return v - (absolute(v) * kMargin + kTiny); }
CAWA_FAST_INLINE float somewhat_less(float v) { return v - (__builtin_fabsf(v) * kMargin + kTiny); }
CAWA_FAST_INLINE float somewhat_more(float v) { return v + (__builtin_fabsf(v) * kMargin + kTiny); }

// Floats per row in scratch memory: the row, its last value again for the column beyond it, and room for whole vectors.
CAWA_FAST_INLINE int64_t row_stride(int64_t width) { return (width + 1 + 2 * kBlock) / kBlock * kBlock; }

// Repeats the last value of a row from read_row to the end of its memory.
CAWA_FAST_INLINE void extend_row(float* row, int64_t width) {
  const float last = row[width - 1];
  for (int64_t x = width; x < row_stride(width); ++x) row[x] = last;
}

// Output columns x .. x + kLanes - 1 and the input columns that they read.
struct Patch {
  Floats low_weight, high_weight;  // in [0, 1]
  Ints index;                      // left input column of each output column, relative to `base`
  int64_t base, last;              // the first and the last left input column
  bool close;                      // all left input columns fit into one vector
  bool copy;                       // sizes are equal: nothing to interpolate
};

// The input columns first .. last that output columns x .. x + kLanes - 1 read.
struct Inputs {
  int64_t first, last;
};

CAWA_FAST_INLINE Inputs inputs_of(const Resize& resize, int64_t x) {
  const int64_t last = resize.columns.low[x + kLanes - 1];
  return {resize.columns.low[x], smaller(last + !resize.same_size, resize.maps.width - 1)};
}

CAWA_FAST_INLINE Patch patch_at(const Resize& resize, int64_t x) {
  const Columns& columns = resize.columns;
  Patch patch;
  patch.low_weight = load(columns.low_weight + x);
  patch.high_weight = load(columns.high_weight + x);
  patch.base = columns.low[x];
  patch.last = columns.low[x + kLanes - 1];
  patch.index = load(columns.low + x) - static_cast<int32_t>(patch.base);
  patch.close = patch.last - patch.base < kLanes;
  patch.copy = resize.same_size;
  return patch;
}

// An input row (row_stride), interpolated at the output columns of a patch.
CAWA_FAST_INLINE Floats columns_of(const Patch& patch, const float* row) {
  if (patch.copy) return load(row + patch.base);
  Floats low, high;
  if (patch.close) {
    low = permute(load(row + patch.base), patch.index);
    high = permute(load(row + patch.base + 1), patch.index);
  } else {
    float values[2][kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      values[0][lane] = row[patch.base + patch.index[lane]];
      values[1][lane] = row[patch.base + patch.index[lane] + 1];
    }
    low = load(values[0]);
    high = load(values[1]);
  }
  return low * patch.low_weight + high * patch.high_weight;
}

// The value between two rows from columns_of; high_weight in [0, 1] is the weight of the lower row.
CAWA_FAST_INLINE Floats between(const Patch& patch, Floats above, Floats below, float high_weight) {
  return patch.copy ? above : above * (1 - high_weight) + below * high_weight;
}

// A set of small non-negative integers.
struct BitSet {
  uint64_t* words;

  static int64_t words_for(int64_t n) { return (n + 63) / 64; }

  // Sets the membership of elements first .. first + kLanes - 1 from the bits of `lanes`. `first` is a multiple of
  // kLanes, and calls for one word come in ascending order, since the first call overwrites the word.
  void put(int64_t first, uint32_t lanes) const {
    const uint64_t shifted = static_cast<uint64_t>(lanes) << (first % 64);
    words[first / 64] = first % 64 == 0 ? shifted : words[first / 64] | shifted;
  }

  // Whether any, or all, of elements first .. last are in the set.
  bool any(int64_t first, int64_t last) const {
    if (first / 64 == last / 64) return words[first / 64] & part(first, last);  // the usual case
    bool found = false;
    each_word(first, last, [&](uint64_t word, uint64_t mask) { found |= (word & mask) != 0; });
    return found;
  }
  bool all(int64_t first, int64_t last) const {
    if (first / 64 == last / 64) return !(~words[first / 64] & part(first, last));
    bool found = true;
    each_word(first, last, [&](uint64_t word, uint64_t mask) { found &= (word & mask) == mask; });
    return found;
  }

 private:
  static uint64_t part(int64_t first, int64_t last) { return ~uint64_t{0} >> (63 - (last - first)) << (first % 64); }

  template <class Visit>
  void each_word(int64_t first, int64_t last, const Visit& visit) const {
    for (int64_t w = first / 64; w <= last / 64; ++w) {
      uint64_t mask = ~uint64_t{0};
      if (w == first / 64) mask &= ~uint64_t{0} << (first % 64);
      if (w == last / 64) mask &= ~uint64_t{0} >> (63 - last % 64);
      visit(words[w], mask);
    }
  }
};

}  // namespace CAWA_FAST_ISA
}  // namespace cawa_fast
