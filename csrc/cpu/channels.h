// Blocks of channels: maps are padded to whole ones, each of two that lie the one behind the other.
#pragma once
#include "../kernels.h"
#include "simd.h"

namespace pyunetsep::cpu::PYUNETSEP_SIMD {

static inline int64_t blocks_of(int64_t channels) { return ceil_div(channels, kBlock); }
static inline int64_t blocks_of(const int64_t (&channels)[2]) {
  return blocks_of(channels[0]) + blocks_of(channels[1]);
}

// The channel at a place in the blocks of both maps; -1: none.
static inline int64_t channel_at(const int64_t (&channels)[2], int64_t place) {
  const int64_t first_places = blocks_of(channels[0]) * kBlock;
  if (place < first_places) return place < channels[0] ? place : -1;
  return place - first_places < channels[1] ? channels[0] + place - first_places : -1;
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
