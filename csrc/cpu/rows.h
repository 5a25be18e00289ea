// Reads rows of low-resolution logits or maps as contiguous floats.
#pragma once

#include "../kernels.h"
#include "simd.h"

namespace cawa_fast {
namespace CAWA_FAST_ISA {

constexpr float kNoOffset = -0.0f;  // x + -0.0f is x, signed zeros included

// Converts n elements, `stride` apart, to floats and adds `offset`; `out` has room for n rounded up to whole vectors.
// Returns whether all values are moderate: below 1e37 in magnitude and not NaN, so that no difference of two of them
// overflows or is NaN.
template <class T>
CAWA_FAST_INLINE bool read_row(const T* in, int64_t stride, int64_t n, float offset, float* out) {
  Ints moderate = broadcast(int32_t{-1});
  int64_t i = 0;
  if (stride == 1) {
    for (; i + kLanes <= n; i += kLanes) {
      const Floats v = load(in + i) + offset;
      moderate &= absolute(v) < 1e37f;
      store(out + i, v);
    }
  }
  for (; i < n; i += kLanes) {
    T buffer[kLanes] = {};
    for (int64_t j = i; j < smaller(i + kLanes, n); ++j) buffer[j - i] = in[j * stride];
    const Floats v = load(buffer) + offset;
    moderate &= absolute(v) < 1e37f;
    store(out + i, v);
  }
  return bits(moderate) == kAllLanes;
}

// The same for row `y` of image `n`, class `c`.
CAWA_FAST_INLINE bool read_row(const Maps& maps, int64_t n, int64_t c, int64_t y, float* out,
                               float offset = kNoOffset) {
  const int64_t start = n * maps.stride_n + c * maps.stride_c + y * maps.stride_y;
  switch (maps.type) {
    case Float::kFloat32:
      return read_row(static_cast<const float*>(maps.data) + start, maps.stride_x, maps.width, offset, out);
    case Float::kBFloat16:
      return read_row(static_cast<const BFloat16*>(maps.data) + start, maps.stride_x, maps.width, offset, out);
    case Float::kFloat16:
      return read_row(static_cast<const Half*>(maps.data) + start, maps.stride_x, maps.width, offset, out);
  }
  return false;
}

}  // namespace CAWA_FAST_ISA
}  // namespace cawa_fast
