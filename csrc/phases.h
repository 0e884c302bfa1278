// How a filter of five taps and stride 2 falls apart into phases of three taps and stride 1, in one dimension.
#pragma once
#include <cstdint>
#include <optional>

namespace pyunetsep {

enum class Alignment { pytorch, tensorflow };   // a strided convolution's zeros before its input: 2 or 1
enum class Upsampling { transposed, nearest };  // nearest: repeat, then an ordinary convolution

constexpr int zeros_before(Alignment alignment) { return alignment == Alignment::pytorch ? 2 : 1; }

// Tap t of phase p is the sum of those taps of the filter whose bit is set in taps[p][t].
struct Phases {
  uint8_t taps[2][3];
};

// A strided convolution: y[o] = sum_k w[k] x[2 o + k - pad], where phase p holds x[2 i + p] and tap t reads
// i = o + t - 1. A transposed one: y[2 m + p] = sum_t x[m + t - 1] w[p + pad - 2 (t - 1)].
// Behind an upsampling by repetition: y[2 m + p] = sum_k w[k] x[floor((2 m + p + k - 2) / 2)].
constexpr Phases phases_of(Alignment alignment, std::optional<Upsampling> upsampling) {
  const int pad = zeros_before(alignment);
  Phases phases = {};
  for (int p = 0; p < 2; ++p) {
    for (int k = 0; k < 5; ++k) {
      int t = -1;
      if (!upsampling) {
        if ((k - pad + 2) % 2 == p) t = (k - pad - p + 2) / 2;
      } else if (*upsampling == Upsampling::nearest) {
        t = (p + k) / 2;
      } else if ((p + pad - k + 4) % 2 == 0) {
        t = (p + pad - k) / 2 + 1;
      }
      if (0 <= t && t < 3) phases.taps[p][t] = static_cast<uint8_t>(phases.taps[p][t] | 1 << k);
    }
  }
  return phases;
}

}  // namespace pyunetsep
