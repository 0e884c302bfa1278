// The end of the network: a row of sums becomes a row of a plane.
#pragma once
#include "../kernels.h"
#include "simd.h"

namespace pyunetsep::cpu::PYUNETSEP_SIMD {

// e^x to about an ulp: 2^n times e^r with r in +-ln(2) / 2, whose series ends at r^7. NaN stays NaN.
static inline Vec exp(Vec x) {
  x = x < -87.0f ? broadcast(-87.0f) : x;
  x = x > 88.0f ? broadcast(88.0f) : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the low bits
  const Vec shifted = x * 1.44269504088896341f + kRound;
  const Vec n = shifted - kRound;
  Vec r = x - n * 0.693145751953125f;  // ln(2) in two parts, so that n times the first is exact
  r = r - n * 1.42860682030941723e-6f;
  Vec series = broadcast(1.0f / 5040);
  for (const float inverse : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    series = series * r + inverse;
  }
  IntVec bits, exponent;
  std::memcpy(&bits, &series, sizeof bits);
  std::memcpy(&exponent, &shifted, sizeof exponent);
  bits += exponent << 23;
  Vec result;
  std::memcpy(&result, &bits, sizeof result);
  return x == x ? result : x;
}

static inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

// Ends the sums of one row of channel `channel`: `sums` holds whole vectors.
static inline void end_row(const OutputPlanes& to, const float* sums, int64_t image, int64_t channel, int64_t row,
                           int64_t columns, float bias, float scale, float shift) {
  float* output = to.output + image * to.batch_stride + channel * to.channel_stride + row * to.row_stride;
  const bool masked = to.ending == Ending::masked;
  const float* magnitude = nullptr;
  if (masked) {
    magnitude = to.magnitude + image * to.magnitude_batch_stride + channel * to.magnitude_channel_stride +
                row * to.magnitude_row_stride;
  }
  const auto end = [&](Vec sum) {
    sum += bias;
    if (to.ending == Ending::plain) return sum;
    return to.ending == Ending::activated ? max(Vec{}, sum) * scale + shift : sigmoid(sum);
  };
  int64_t column = 0;
  for (; column + kLanes <= columns; column += kLanes) {
    Vec value = end(load(sums + column));
    if (masked) value *= load(magnitude + column);
    store(output + column, value);
  }
  if (column == columns) return;
  float rest[kLanes];
  store(rest, end(load(sums + column)));
  for (int64_t i = 0; column + i < columns; ++i) {
    output[column + i] = masked ? rest[i] * magnitude[column + i] : rest[i];
  }
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
