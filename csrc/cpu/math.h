// Exponential and logarithm of vectors.
#pragma once

#include "simd.h"

namespace cawa_fast {
namespace CAWA_FAST_ISA {

// 2^t for t < 127, and any value beyond; relative error up to 2e-7, exactly 1 at 0, 0 below 2^-126.
//
// t = n + f with n an integer and |f| <= 1/2. 2^f is the polynomial of degree 5 that is 1 at 0 and minimises the
// largest relative error; n is added to the exponent. With kNan, NaN gives NaN and -inf gives 0; without it, t must be
// finite.
template <bool kNan>
CAWA_FAST_INLINE Floats exp2(Floats t) {
#if defined(__AVX512F__)
  const Floats n = bit_cast<Floats>(_mm512_roundscale_ps(bit_cast<__m512>(t), _MM_FROUND_TO_NEAREST_INT));
  const Floats f = t - n;
#else
  const Floats clamped = maximum(broadcast(-127.0f), t);
  const Floats shifted = clamped + 0x1.8p23f;  // t, rounded to the nearest integer, is in the lowest bits
  const Floats f = clamped - (shifted - 0x1.8p23f);
#endif
  Floats p = f * 0x1.5bba14p-10f + 0x1.3cea88p-7f;
  p = p * f + 0x1.c6b752p-5f;
  p = p * f + 0x1.ebf9bcp-3f;
  p = p * f + 0x1.62e42ap-1f;
  p = p * f + 1.0f;
#if defined(__AVX512F__)
  return bit_cast<Floats>(_mm512_scalef_ps(bit_cast<__m512>(p), bit_cast<__m512>(n)));  // x * 2^-inf is 0, even for NaN
#else
  // unsigned, since t beyond its range may overflow; such a result is not used
  const Floats scaled = bit_cast<Floats>(bit_cast<Words>(p) + (bit_cast<Words>(shifted) << 23));
  const Floats result = t < -126.0f ? Floats{} : scaled;
  return kNan ? (t == t ? result : t) : result;
#endif
}

constexpr float kLog2E = 1.44269504f;

// log x for normal x > 0, within about one unit in the last place; NaN for NaN.
//
// x = 2^n m with m in [sqrt(1/2), sqrt(2)). With r = m - 1, log m = log(1 + r) is r - r^2/2 + r^3 P(r).
CAWA_FAST_INLINE Floats log_of_positive(Floats x) {
  const Ints word = bit_cast<Ints>(x);
  const Ints n = (word - 0x3f3504f3) >> 23;  // the exponent, one more where the mantissa exceeds sqrt(2)
  const Floats r = bit_cast<Floats>(word - (n << 23)) - 1.0f;
  Floats p = r * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * r + 1.1676998740e-1f;
  p = p * r - 1.2420140846e-1f;
  p = p * r + 1.4249322787e-1f;
  p = p * r - 1.6668057665e-1f;
  p = p * r + 2.0000714765e-1f;
  p = p * r - 2.4999993993e-1f;
  p = p * r + 3.3333331174e-1f;
  const Floats square = r * r;
  const Floats exponent = __builtin_convertvector(n, Floats);
  Floats tail = p * r * square + exponent * -2.12194440e-4f - 0.5f * square;
  const Floats result = (r + tail) + exponent * 0.693359375f;
  return x == x ? result : x;
}

}  // namespace CAWA_FAST_ISA
}  // namespace cawa_fast
