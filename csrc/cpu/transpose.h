// Transposes squares of kLanes pixels by kLanes classes, for logits whose classes are contiguous (channels_last).
#pragma once

#include "simd.h"

namespace cawa_fast {
namespace CAWA_FAST_ISA {

// Interleaves two vectors: `first` and `second` become the halves of a0 b0 a1 b1 ...
CAWA_FAST_INLINE void interleave(Floats a, Floats b, Floats& first, Floats& second) {
#if defined(__AVX512F__)
  const auto zip = [&](__m512i index) {
    return bit_cast<Floats>(_mm512_permutex2var_ps(bit_cast<__m512>(a), index, bit_cast<__m512>(b)));
  };
  first = zip(_mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
  second = zip(_mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
#elif defined(__AVX2__)
  const __m256 low = _mm256_unpacklo_ps(bit_cast<__m256>(a), bit_cast<__m256>(b));
  const __m256 high = _mm256_unpackhi_ps(bit_cast<__m256>(a), bit_cast<__m256>(b));
  first = bit_cast<Floats>(_mm256_permute2f128_ps(low, high, 0x20));
  second = bit_cast<Floats>(_mm256_permute2f128_ps(low, high, 0x31));
#elif defined(__SSE2__)
  first = bit_cast<Floats>(_mm_unpacklo_ps(bit_cast<__m128>(a), bit_cast<__m128>(b)));
  second = bit_cast<Floats>(_mm_unpackhi_ps(bit_cast<__m128>(a), bit_cast<__m128>(b)));
#else
  first = Floats{a[0], b[0], a[1], b[1]};
  second = Floats{a[2], b[2], a[3], b[3]};
#endif
}

// Transposes kLanes rows in place. Write an element's index (row, column) as one binary number. Interleaving row i with
// row i + kLanes / 2, for all i, rotates that number by one bit; log2(kLanes) rotations exchange row and column.
CAWA_FAST_INLINE void transpose(Floats* rows) {
  for (int turn = 1; turn < kLanes; turn *= 2) {
    Floats turned[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) interleave(rows[i], rows[i + kLanes / 2], turned[2 * i], turned[2 * i + 1]);
    for (int i = 0; i < kLanes; ++i) rows[i] = turned[i];
  }
}

}  // namespace CAWA_FAST_ISA
}  // namespace cawa_fast
