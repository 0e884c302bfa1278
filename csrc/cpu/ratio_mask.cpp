#include <cmath>

#include "../kernels.h"
#include "parallel.h"
#include "simd.h"

// One task makes the masks of all stems for a run of kChunk points, in two passes: sum the weights, then divide. The
// weights wait in the output and the sums on the stack, so that the second pass reads the first cache level only.
// Bytes: stems (+ 1 with a mixture) reads and stems writes a point, from memory once. Bound by memory for powers 1 and
// 2 (which need no pow), by pow otherwise.

namespace pyunetsep::cpu::PYUNETSEP_SIMD {
namespace {

constexpr int64_t kChunk = 1024;  // points
constexpr int64_t kGrain = 16;    // chunks a thread at least: about 10 us of work

template <typename T, typename Weight>
void ratio_mask_chunk(const RatioMask<T>& a, int64_t begin, int64_t count, Weight weight) {
  T total[kChunk] = {};      // of the weights
  T magnitude[kChunk] = {};  // of the stems together
  for (int64_t s = 0; s < a.stems; ++s) {
    const T* __restrict stem = a.magnitudes + s * a.points + begin;
    T* __restrict mask = a.masks + s * a.points + begin;
    for (int64_t i = 0; i < count; ++i) {
      mask[i] = weight(stem[i]);
      total[i] += mask[i];
      magnitude[i] += stem[i];
    }
  }
  if (a.mixture) {
    const T* __restrict mixture = a.mixture + begin;
    for (int64_t i = 0; i < count; ++i) {
      const T rest = mixture[i] - magnitude[i];
      total[i] += weight(rest < 0 ? T(0) : rest);
    }
  }
  const T share = a.epsilon / static_cast<T>(a.stems + (a.mixture ? 1 : 0));
  for (int64_t s = 0; s < a.stems; ++s) {
    T* __restrict mask = a.masks + s * a.points + begin;
    for (int64_t i = 0; i < count; ++i) mask[i] = (mask[i] + share) / (total[i] + a.epsilon);
  }
}

template <typename T, typename Weight>
void ratio_mask_with(const RatioMask<T>& a, Weight weight) {
  const int64_t chunks = (a.points + kChunk - 1) / kChunk;
  parallel_for(0, chunks, kGrain, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t begin = chunk * kChunk;
      ratio_mask_chunk(a, begin, min(kChunk, a.points - begin), weight);
    }
  });
}

template <typename T>
void ratio_mask_any(const RatioMask<T>& a) {
  if (a.power == 1) return ratio_mask_with(a, [](T x) { return x; });
  if (a.power == 2) return ratio_mask_with(a, [](T x) { return x * x; });
  ratio_mask_with(a, [power = a.power](T x) { return std::pow(x, power); });
}

}  // namespace

void ratio_mask(const RatioMask<float>& args) { ratio_mask_any(args); }
void ratio_mask(const RatioMask<double>& args) { ratio_mask_any(args); }

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
