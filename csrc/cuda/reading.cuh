// Batch norm, with the activations around it and dropout, of maps as they are read: what a kernel does to some
// neighbouring channels of a pixel. A map that is read so need not be written.
#pragma once
#include "channels.cuh"

namespace pyunetsep::cuda {

__device__ __forceinline__ float activated(float x, float slope) { return x > 0.0f ? x : slope * x; }

__device__ __forceinline__ uint32_t mixed(uint32_t number, int shift, uint32_t factor) {
  return (number ^ number >> shift) * factor;
}

// What dropout multiplies an element by; pyunetsep/dropout.py has the same hash. `place` is its place in the image,
// channels apart.
__device__ __forceinline__ float dropping(const cpu::Dropout& dropout, int image, uint32_t place) {
  uint32_t number = mixed(place, 17, 0xed5ad4bbu) + static_cast<uint32_t>(dropout.seeds[image]);
  number = mixed(mixed(number, 11, 0xac4c1b51u), 15, 0x31848babu);
  return static_cast<int32_t>(number) >= dropout.threshold ? dropout.factor : 0.0f;
}

// Where a pixel is: in which image, and where in that, of so many pixels.
struct PixelPlace {
  int image;
  uint32_t pixel, pixels;
};

// What `kCount` channels from one on, a multiple of 4, are read through.
template <int kCount>
class Reader {
 public:
  Reader() = default;  // of nothing, to be assigned
  // `first`: of the parameters, which may be those of the second network or later.
  __device__ __forceinline__ Reader(const Reading& reading, int channel, int first = 0) : channel_(channel) {
    const int at = first + channel;
    load_floats(reading.weight + at, scale_);
    load_floats(reading.bias + at, bias_);
    if (reading.mean) {
      load_floats(reading.mean + at, mean_);
      load_floats(reading.variance + at, inverse_deviation_);
#pragma unroll
      for (int c = 0; c < kCount; ++c) {
        inverse_deviation_[c] = 1.0f / sqrtf(inverse_deviation_[c] + reading.epsilon);
        scale_[c] *= inverse_deviation_[c];
      }
    }
  }

  // x becomes what is read in its place.
  __device__ __forceinline__ void operator()(const Reading& reading, const PixelPlace& at, float (&x)[kCount]) const {
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      x[c] = activated(normalised(distance(reading, x[c], c), c), reading.slope);
      if (reading.dropout.seeds) x[c] *= kept(reading, at, c);
    }
  }

  // The same of x in memory.
  template <typename T>
  __device__ __forceinline__ void read_in_place(const Reading& reading, const PixelPlace& at, T* memory,
                                                float largest = INFINITY) const {
    float x[kCount];
    load_channels<T>(memory, x);
    (*this)(reading, at, x);
    store_channels(memory, x, largest);
  }

  __device__ __forceinline__ float distance(const Reading& reading, float x, int c) const {
    return activated(x, reading.inner_slope) - mean_[c];
  }
  __device__ __forceinline__ float normalised(float distance, int c) const { return distance * scale_[c] + bias_[c]; }
  __device__ __forceinline__ float kept(const Reading& reading, const PixelPlace& at, int c) const {
    return dropping(reading.dropout, at.image, static_cast<uint32_t>(channel_ + c) * at.pixels + at.pixel);
  }
  __device__ __forceinline__ float scale(int c) const { return scale_[c]; }
  __device__ __forceinline__ float inverse_deviation(int c) const { return inverse_deviation_[c]; }

 private:
  int channel_ = 0;
  float mean_[kCount] = {}, inverse_deviation_[kCount] = {}, scale_[kCount] = {}, bias_[kCount] = {};
};

// Of 16 bytes of a map.
template <typename T>
using PieceReader = Reader<static_cast<int>(16 / sizeof(T))>;

}  // namespace pyunetsep::cuda
