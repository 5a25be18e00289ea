// Vectors of floats as wide as the instruction set that this file is compiled for.
//
// The files of csrc/cpu/ are compiled once per instruction set, each time into its own namespace (CAWA_FAST_ISA), and
// dispatch.cpp picks one at run time. They include neither torch nor the standard library's containers: if such a
// header has an inline function, the linker could use its AVX-512 version in files that must run everywhere. This
// header uses the compiler's generic vectors (GCC and Clang, any architecture), and intrinsics for instructions that
// generic vectors cannot express.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#define CAWA_FAST_INLINE static inline __attribute__((always_inline))

namespace cawa_fast {
namespace CAWA_FAST_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Shorts __attribute__((vector_size(2 * kLanes)));
typedef double Doubles __attribute__((vector_size(8 * kLanes)));

// 16-bit floats in memory.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

constexpr float kInfinity = __builtin_inff();

CAWA_FAST_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
CAWA_FAST_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

template <class To, class From>
CAWA_FAST_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same number of bits");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <class Vector, class T>
CAWA_FAST_INLINE Vector load_as(const T* from) {
  static_assert(sizeof(Vector) == kLanes * sizeof(T), "one element per lane");
  Vector v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

CAWA_FAST_INLINE Floats broadcast(float value) { return value - Floats{}; }
CAWA_FAST_INLINE Ints broadcast(int32_t value) { return value - Ints{}; }

CAWA_FAST_INLINE Floats load(const float* from) { return load_as<Floats>(from); }
CAWA_FAST_INLINE Ints load(const int32_t* from) { return load_as<Ints>(from); }
CAWA_FAST_INLINE void store(float* to, Floats v) { std::memcpy(to, &v, sizeof(v)); }
CAWA_FAST_INLINE void store(int32_t* to, Ints v) { std::memcpy(to, &v, sizeof(v)); }

// Non-temporal store: bypasses the cache and does not read the cache lines that it fills. `to` is aligned to the
// vector.
CAWA_FAST_INLINE void stream(float* to, Floats v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, bit_cast<__m512>(v));
#elif defined(__AVX2__)
  _mm256_stream_ps(to, bit_cast<__m256>(v));
#elif defined(__SSE2__)
  _mm_stream_ps(to, bit_cast<__m128>(v));
#else
  store(to, v);
#endif
}

// The same for 16-bit floats; `to` is aligned to half a vector.
CAWA_FAST_INLINE void stream(uint16_t* to, Shorts v) {
#if defined(__AVX512F__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), bit_cast<__m256i>(v));
#elif defined(__AVX2__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), bit_cast<__m128i>(v));
#else
  std::memcpy(to, &v, sizeof(v));
#endif
}

// A fence: orders stream() before later stores, which may tell other threads that the data is there.
CAWA_FAST_INLINE void finish_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// The larger of a and b; b where either is NaN.
CAWA_FAST_INLINE Floats maximum(Floats a, Floats b) {
#if defined(__AVX512F__)
  return bit_cast<Floats>(_mm512_max_ps(bit_cast<__m512>(a), bit_cast<__m512>(b)));
#elif defined(__AVX2__)
  return bit_cast<Floats>(_mm256_max_ps(bit_cast<__m256>(a), bit_cast<__m256>(b)));
#elif defined(__SSE2__)
  return bit_cast<Floats>(_mm_max_ps(bit_cast<__m128>(a), bit_cast<__m128>(b)));
#else
  return a > b ? a : b;
#endif
}

// The smaller of a and b; b where either is NaN.
CAWA_FAST_INLINE Floats minimum(Floats a, Floats b) {
#if defined(__AVX512F__)
  return bit_cast<Floats>(_mm512_min_ps(bit_cast<__m512>(a), bit_cast<__m512>(b)));
#elif defined(__AVX2__)
  return bit_cast<Floats>(_mm256_min_ps(bit_cast<__m256>(a), bit_cast<__m256>(b)));
#elif defined(__SSE2__)
  return bit_cast<Floats>(_mm_min_ps(bit_cast<__m128>(a), bit_cast<__m128>(b)));
#else
  return a < b ? a : b;
#endif
}

CAWA_FAST_INLINE Floats absolute(Floats a) { return bit_cast<Floats>(bit_cast<Ints>(a) & 0x7fffffff); }

// Bit i of the result is the sign bit of lane i: for the mask of a comparison, whether it holds there.
CAWA_FAST_INLINE uint32_t bits(Ints mask) {
#if defined(__AVX512DQ__)
  return _mm512_movepi32_mask(bit_cast<__m512i>(mask));
#elif defined(__AVX2__)
  return _mm256_movemask_ps(bit_cast<__m256>(mask));
#elif defined(__SSE2__)
  return _mm_movemask_ps(bit_cast<__m128>(mask));
#else
  uint32_t result = 0;
  for (int lane = 0; lane < kLanes; ++lane) result |= (static_cast<uint32_t>(mask[lane]) >> 31) << lane;
  return result;
#endif
}

// bits(a > b) and bits(a >= b). AVX-512 comparisons give these bits directly.
CAWA_FAST_INLINE uint32_t greater(Floats a, Floats b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(bit_cast<__m512>(a), bit_cast<__m512>(b), _CMP_GT_OQ);
#else
  return bits(a > b);
#endif
}
CAWA_FAST_INLINE uint32_t greater_equal(Floats a, Floats b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(bit_cast<__m512>(a), bit_cast<__m512>(b), _CMP_GE_OQ);
#else
  return bits(a >= b);
#endif
}

constexpr uint32_t kAllLanes = (1u << kLanes) - 1;

// Lane i of the result is table[index[i]], with index in [0, kLanes).
CAWA_FAST_INLINE Floats permute(Floats table, Ints index) {
#if defined(__AVX512F__)
  return bit_cast<Floats>(_mm512_permutexvar_ps(bit_cast<__m512i>(index), bit_cast<__m512>(table)));
#elif defined(__AVX2__)
  return bit_cast<Floats>(_mm256_permutevar8x32_ps(bit_cast<__m256>(table), bit_cast<__m256i>(index)));
#else
  Floats result;
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = table[index[lane]];
  return result;
#endif
}

// Lane i of the result is table[index[i]], with index >= 0. The table has room for one more entry than it has.
CAWA_FAST_INLINE Ints gather(const uint16_t* table, Ints index) {
#if defined(__AVX512F__)
  return bit_cast<Ints>(_mm512_i32gather_epi32(bit_cast<__m512i>(index), table, 2)) & 0xffff;
#elif defined(__AVX2__)
  return bit_cast<Ints>(_mm256_i32gather_epi32(reinterpret_cast<const int*>(table), bit_cast<__m256i>(index), 2)) &
         0xffff;
#else
  Ints result;
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = table[index[lane]];
  return result;
#endif
}

// ------------------------------------------------------------------------------------------------- 16-bit floats

CAWA_FAST_INLINE Words widen(const uint16_t* from) { return __builtin_convertvector(load_as<Shorts>(from), Words); }

CAWA_FAST_INLINE void narrow(uint16_t* to, Words v) {
  const Shorts shorts = __builtin_convertvector(v, Shorts);
  std::memcpy(to, &shorts, sizeof(shorts));
}

CAWA_FAST_INLINE Floats load(const BFloat16* from) { return bit_cast<Floats>(widen(&from->bits) << 16); }

// Rounds to the nearest, ties to even; NaN stays NaN.
CAWA_FAST_INLINE void store(BFloat16* to, Floats v) {
  const Words word = bit_cast<Words>(v);
  const Words rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
  narrow(&to->bits, v == v ? rounded : (word >> 16) | 0x40);
}

CAWA_FAST_INLINE Floats load(const Half* from) {
#if defined(__AVX512F__)
  return bit_cast<Floats>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(__F16C__)
  return bit_cast<Floats>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
  // Move exponent and mantissa to their places and add 112 to the bias. Exponent 31 (infinity, NaN) needs that twice.
  // Exponent 0 means m * 2^-24: with the exponent of 2^-14 the value is 2^-14 + m * 2^-24, and subtracting 2^-14
  // leaves m * 2^-24.
  const Words half = widen(&from->bits);
  const Words magnitude = (half & 0x7fff) << 13;
  const Words bias = (half & 0x7c00) == 0x7c00 ? Words{} + (224u << 23) : Words{} + (112u << 23);
  const Floats normal = bit_cast<Floats>(magnitude + bias);
  const Floats subnormal = bit_cast<Floats>(magnitude + (113u << 23)) - 0x1p-14f;
  const Floats result = (half & 0x7c00) == 0 ? subnormal : normal;
  return bit_cast<Floats>(bit_cast<Words>(result) | ((half & 0x8000) << 16));
#endif
}

// Rounds to the nearest, ties to even. Values beyond the range become infinite; NaN stays NaN.
CAWA_FAST_INLINE void store(Half* to, Floats v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(bit_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
#else
  const Words word = bit_cast<Words>(v);
  const Words magnitude = word & 0x7fffffff;
  // From 2^-14 on: change the bias and round off 13 bits. A carry into the exponent gives the right result.
  const Words normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Below 2^-14: after adding 1/2, the lowest bits hold the number of units of 2^-24, rounded.
  const Words subnormal = bit_cast<Words>(bit_cast<Floats>(magnitude) + 0.5f) - 0x3f000000u;
  Words result = magnitude < (113u << 23) ? subnormal : normal;
  result = magnitude >= (143u << 23) ? Words{} + 0x7c00u : result;
  result = magnitude > (255u << 23) ? Words{} + 0x7e00u : result;
  narrow(&to->bits, result | ((word >> 16) & 0x8000));
#endif
}

}  // namespace CAWA_FAST_ISA
}  // namespace cawa_fast
