// Neighbouring values to and from memory: channels of a map, and columns of the planes that a network ends in.
#pragma once
#include <type_traits>

#include "device.cuh"
#include "tiling.h"

namespace pyunetsep::cuda {

// Calls body with the element's type, as std::type_identity.
template <typename Body>
void with_element(Element element, Body body) {
  switch (element) {
    case Element::half:
      return body(std::type_identity<Half>{});
    case Element::bfloat16:
      return body(std::type_identity<Bfloat16>{});
    case Element::single:
      return body(std::type_identity<float>{});
  }
}

// Where the 16 bytes of a pixel's first or second half lie in a patch. Halves are exchanged every four pixels, so that
// eight neighbours' halves lie in different banks.
__device__ __forceinline__ int piece_offset(int pixel, int half) {
  return pixel * kPixelBytes + ((half ^ (pixel >> 2 & 1)) << 4);
}

template <int kCount>
__device__ __forceinline__ void load_floats(const float* from, float (&x)[kCount]) {
  static_assert(kCount == 2 || kCount % 4 == 0);
  if constexpr (kCount == 2) {
    const uint2 two = load8(from);
    x[0] = __uint_as_float(two.x), x[1] = __uint_as_float(two.y);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const uint4 four = load16(from + i);
      x[i] = __uint_as_float(four.x), x[i + 1] = __uint_as_float(four.y);
      x[i + 2] = __uint_as_float(four.z), x[i + 3] = __uint_as_float(four.w);
    }
  }
}

// The elements of 8 or 16 bytes.
template <typename T, int kCount>
__device__ __forceinline__ void load_channels(const void* from, float (&x)[kCount]) {
  static_assert(kCount * sizeof(T) == 8 || kCount * sizeof(T) == 16);
  if constexpr (sizeof(T) == 4) {
    load_floats(static_cast<const float*>(from), x);
  } else {
    uint32_t pairs[kCount / 2];
    if constexpr (kCount == 4) {
      const uint2 two = load8(from);
      pairs[0] = two.x, pairs[1] = two.y;
    } else {
      const uint4 four = load16(from);
      pairs[0] = four.x, pairs[1] = four.y, pairs[2] = four.z, pairs[3] = four.w;
    }
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      x[2 * i] = widen(T{static_cast<uint16_t>(pairs[i])});
      x[2 * i + 1] = widen(T{static_cast<uint16_t>(pairs[i] >> 16)});
    }
  }
}

template <typename T>
__device__ __forceinline__ float in_range(float x, float) {
  return x;
}
template <>
__device__ __forceinline__ float in_range<Half>(float x, float largest) {
  return fminf(fmaxf(x, -largest), largest);
}

// What is left of x in a map.
template <typename T>
__device__ __forceinline__ float rounded(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else {
    return widen(T{static_cast<uint16_t>(narrow_pair<T>(x, x))});
  }
}

// A half holds at most `largest` rather than infinity, of which a mask would make NaN. In training that is infinity:
// whoever scales losses finds out by it that the scale is too large.
template <typename T, int kCount>
__device__ __forceinline__ void store_channels(T* target, const float (&x)[kCount], float largest = kLargestHalf) {
  static_assert(kCount == 4 || kCount % 8 == 0);
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      store16(target + i, make_uint4(__float_as_uint(x[i]), __float_as_uint(x[i + 1]), __float_as_uint(x[i + 2]),
                                     __float_as_uint(x[i + 3])));
    }
  } else {
    uint32_t pairs[kCount / 2];
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      pairs[i] = narrow_pair<T>(in_range<T>(x[2 * i], largest), in_range<T>(x[2 * i + 1], largest));
    }
    if constexpr (kCount == 4) {
      store8(target, make_uint2(pairs[0], pairs[1]));
    } else {
#pragma unroll
      for (int i = 0; i < kCount / 2; i += 4) {
        store16(target + 2 * i, make_uint4(pairs[i], pairs[i + 1], pairs[i + 2], pairs[i + 3]));
      }
    }
  }
}

__device__ __forceinline__ float* place_in(const Planes& planes, int network, int image, int channel, int row,
                                           int column) {
  return planes.data + network * planes.network_stride + image * planes.batch_stride + channel * planes.channel_stride +
         row * planes.row_stride + column;
}

// Ends the network in neighbouring columns.
template <int kCount>
__device__ __forceinline__ void store_outputs(const Output& output, int network, int image, int channel, int row,
                                              int column, const float (&x)[kCount]) {
  float* const to = place_in(output.to, network, image, channel, row, column);
  const float* const magnitude = place_in(output.magnitude, network, image, channel, row, column);
  float y[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const bool mask = output.ending == cpu::Ending::sigmoid || output.ending == cpu::Ending::masked;
    y[i] = mask ? 1.0f / (1.0f + expf(-x[i])) : x[i];
    if (output.ending == cpu::Ending::masked) y[i] *= magnitude[i];
  }
  if (kCount == 2 && reinterpret_cast<uintptr_t>(to) % 8 == 0) {
    store8(to, make_uint2(__float_as_uint(y[0]), __float_as_uint(y[kCount - 1])));
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = y[i];
}

}  // namespace pyunetsep::cuda
