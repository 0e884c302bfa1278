// What a CPU kernel file needs to be compiled once for each SIMD level. CMakeLists.txt names the levels and gives each
// its flags and PYUNETSEP_SIMD, the level's name, which is also the namespace that its kernels live in: one source, no
// intrinsics (but tiles.cpp's, which have no vector that could stand for them), and no two levels with a symbol in
// common.
//
// The linker keeps one copy of an inline function or template, whichever it meets first; a copy made for AVX-512 would
// then crash an older machine. So whatever these files define is in PYUNETSEP_SIMD's namespace or has internal linkage,
// and of the standard library they use nothing that is more than a declaration (tests/test_build.py looks).
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

#include "../kernels.h"

#ifndef PYUNETSEP_SIMD
#error "PYUNETSEP_SIMD: CMakeLists.txt sets it for each level"
#endif

namespace pyunetsep::cpu::PYUNETSEP_SIMD {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 32;  // floats a vector, vectors that the processor can name
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRegisters = 32;
#else
constexpr int kLanes = 4, kRegisters = 16;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));

// From and to any address.
static inline Vec load(const float* from) {
  Vec vec;
  std::memcpy(&vec, from, sizeof vec);
  return vec;
}
static inline void store(float* to, Vec vec) { std::memcpy(to, &vec, sizeof vec); }

// The first elements of a vector, where there may be no more; zeros behind them.
static inline Vec load_some(const float* from, int64_t lanes) {
  if (lanes >= kLanes) return load(from);
  float some[kLanes] = {};
  for (int64_t i = 0; i < lanes; ++i) some[i] = from[i];
  return load(some);
}

// The upper halves of floats' bits, rounded to nearest, ties to even; NaN stays one.
template <typename Bits, typename Floats>
static inline void round_to_bfloat16(Bits& to, const Floats& x) {
  const auto bits = (Bits)x;
  to = x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : bits >> 16 | 0x40;
}

// From and to bfloat16, at any address.
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));
typedef uint16_t HalfBits __attribute__((vector_size(2 * kLanes)));

static inline Vec load(const Bfloat16* from) {
  HalfBits bits;
  std::memcpy(&bits, from, sizeof bits);
  return (Vec)(__builtin_convertvector(bits, Bits) << 16);
}
static inline void store(Bfloat16* to, Vec vec) {
  Bits rounded;
  round_to_bfloat16(rounded, vec);
  const HalfBits halves = __builtin_convertvector(rounded, HalfBits);
  std::memcpy(to, &halves, sizeof halves);
}

// To an address that is a multiple of the vector's size, past the caches where the processor can: without reading the
// line first, for what is so large that the next reader would not find it there. Ends with a finish_streaming().
static inline void stream(float* to, Vec vec) {
#if defined(__clang__)
  __builtin_nontemporal_store(vec, reinterpret_cast<Vec*>(to));
#elif defined(__AVX512F__)
  __builtin_ia32_movntps512(to, vec);
#elif defined(__AVX2__)
  __builtin_ia32_movntps256(to, vec);
#elif defined(__SSE2__)
  __builtin_ia32_movntps(to, vec);
#else
  store(to, vec);
#endif
}

// Makes streamed values visible to other threads, as ordinary stores are by themselves.
static inline void finish_streaming() {
#if defined(__SSE2__)
  __builtin_ia32_sfence();
#elif defined(__clang__) && defined(__aarch64__)
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}
static inline Vec broadcast(float value) { return value - Vec{}; }  // 0 + value would not keep -0, and take an addition

// One step of `transpose`: rows kStep apart exchange every other kStep of their elements.
template <int kStep, typename V, int... kElements>
static inline void exchange(V& first, V& second, std::integer_sequence<int, kElements...>) {
  constexpr int kCount = sizeof...(kElements);
  const V even =
      __builtin_shufflevector(first, second, (kElements / kStep % 2 == 0 ? kElements : kCount + kElements - kStep)...);
  second =
      __builtin_shufflevector(first, second, (kElements / kStep % 2 == 0 ? kElements + kStep : kCount + kElements)...);
  first = even;
}

// Rows become columns.
template <int kStep, typename V, int kCount>
static inline void transpose_in_steps(V (&rows)[kCount]) {
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) {
    if (i / kStep % 2 == 0) exchange<kStep>(rows[i], rows[i + kStep], std::make_integer_sequence<int, kCount>{});
  }
  if constexpr (kStep > 1) transpose_in_steps<kStep / 2>(rows);
}
template <typename V, int kCount>
static inline void transpose(V (&rows)[kCount]) {
  transpose_in_steps<kCount / 2>(rows);
}

static inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

template <typename T>
static constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
static constexpr T max(T a, T b) {
  return a < b ? b : a;
}

static constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
