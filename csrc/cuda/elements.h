// The elements of maps and weights on a GPU. Sixteen-bit floats are bits alone here, so that no CUDA header is needed;
// device.cuh converts them on the device, and the functions below on the host.
#pragma once
#include <bit>
#include <cstdint>

namespace pyunetsep::cuda {

struct Half {  // IEEE 754 binary16: 10 bits of mantissa, up to 65504
  uint16_t bits;
};
struct Bfloat16 {  // the upper half of a float: 7 bits of mantissa, a float's range
  uint16_t bits;
};

constexpr float kLargestHalf = 65504.0f;

// To the nearest, ties to even; beyond the range to infinity.
inline Half half_of(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00)};   // NaN
  if (magnitude >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // 65520 and more: infinity
  if (magnitude < 0x38800000) {  // below 2^-14 the spacing is fixed, 2^-24: adding 1/2 rounds to it
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000))};
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000) >> 13))};
}

inline float float_of(Half x) {
  const uint32_t sign = uint32_t{x.bits} << 16 & 0x80000000, magnitude = x.bits & 0x7fff;
  if (magnitude < 0x400) {  // 0 or subnormal: units of 2^-24
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
  }
  const uint32_t exponent = magnitude >= 0x7c00 ? 0x70000000 : 0x38000000;  // infinity and NaN have the largest
  return std::bit_cast<float>(sign | ((magnitude << 13) + exponent));
}

inline Bfloat16 bfloat16_of(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline float float_of(Bfloat16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }

}  // namespace pyunetsep::cuda
