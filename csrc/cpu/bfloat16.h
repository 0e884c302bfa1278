// Numbers of 16 bits, and vectors of 16 pairs of them: what matrix products of bfloat16 are made of, whose units
// (see tiles.h) take two neighbours of a sum at a time.
#pragma once
#include "../kernels.h"
#include "simd.h"

namespace pyunetsep::cpu::PYUNETSEP_SIMD {

constexpr int kPairs = 16;  // in a vector of pairs

typedef uint32_t Pairs __attribute__((vector_size(4 * kPairs)));
typedef float Floats __attribute__((vector_size(4 * kPairs)));
typedef uint16_t Halves __attribute__((vector_size(2 * kPairs)));

// From and to any address.
template <typename T>
static inline void read(T& to, const void* from) {
  std::memcpy(&to, from, sizeof to);
}
template <typename T>
static inline void write(void* to, const T& from) {
  std::memcpy(to, &from, sizeof from);
}

// First and second element side by side.
static inline void pair_up(Pairs& to, const Floats& first, const Floats& second) {
  Pairs low, high;
  round_to_bfloat16(low, first);
  round_to_bfloat16(high, second);
  to = low | high << 16;
}

static inline void pair_up(Pairs& to, const Halves& first, const Halves& second) {
  to = __builtin_convertvector(first, Pairs) | __builtin_convertvector(second, Pairs) << 16;
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
