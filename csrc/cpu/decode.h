// Decoding of labels of any dtype to 16 bits.
#pragma once

#include "../kernels.h"
#include "simd.h"

namespace cawa_fast {
namespace CAWA_FAST_ISA {

template <class T>
CAWA_FAST_INLINE void decode_as(const Labels& labels, int64_t start, int64_t n, uint16_t* __restrict out) {
  const T* __restrict in = static_cast<const T*>(labels.data) + start;
  const auto ignore = static_cast<T>(labels.ignore_index);
  const bool can_ignore = ignore == labels.ignore_index;  // false for -100 and uint8, where it would mean 156
  // Unsigned, a negative label is a large one, so that one comparison checks the range.
  using Wide = unsigned long long;
  const auto count = static_cast<Wide>(labels.num_classes);
  for (int64_t i = 0; i < n; ++i) {
    const bool valid = (static_cast<Wide>(in[i]) < count) & !(can_ignore & (in[i] == ignore));
    out[i] = valid ? static_cast<uint16_t>(in[i]) : kInvalid;
  }
}

template <>
void decode_as<uint8_t>(const Labels& labels, int64_t start, int64_t n, uint16_t* __restrict out) {
  const uint8_t* __restrict in = static_cast<const uint8_t*>(labels.data) + start;
  // 16 bits are enough here, and a vector holds twice as many labels as with 32.
  const auto count = static_cast<uint16_t>(smaller(labels.num_classes, 256));
  const auto ignore =
      static_cast<uint16_t>(labels.ignore_index >= 0 && labels.ignore_index < 256 ? labels.ignore_index : kInvalid);
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t label = in[i];
    out[i] = (label < count) & (label != ignore) ? label : kInvalid;
  }
}

// out[i] = label start + i as its class, or kInvalid if it is invalid, for i in [0, n).
CAWA_FAST_INLINE void decode(const Labels& labels, int64_t start, int64_t n, uint16_t* out) {
  switch (labels.type) {
    case Label::kUInt8:
      return decode_as<uint8_t>(labels, start, n, out);
    case Label::kInt16:
      return decode_as<int16_t>(labels, start, n, out);
    case Label::kInt32:
      return decode_as<int32_t>(labels, start, n, out);
    case Label::kInt64:
      return decode_as<int64_t>(labels, start, n, out);
  }
}

}  // namespace CAWA_FAST_ISA
}  // namespace cawa_fast
