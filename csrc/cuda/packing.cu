#include "channels.cuh"

// Training's weights, from the floats that the optimiser keeps to what the convolutions read. A thread makes one word
// of each tap, so that writes are neighbours for neighbouring threads, and the filter that it reads, 25 neighbours,
// stays in the first cache level between its taps. Bound by memory.

namespace pyunetsep::cuda {
namespace {

constexpr int kPackThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kPackThreads) pack_kernel(const Packing a) {
  constexpr int kFactors = 4 / sizeof(T);  // of a word, neighbours in the input's channels
  constexpr int kChunkChannels = kPixelBytes / sizeof(T);
  const int words = kPixelBytes / 4 * a.shape.channels(), taps = a.shape.taps();
  const int chunks = a.source_chunks[0] + a.source_chunks[1];
  for (int64_t i = first_item(); i < int64_t{a.blocks} * chunks * words; i += item_stride()) {
    const int word = static_cast<int>(i % words), chunk = static_cast<int>(i / words % chunks);
    const int block = static_cast<int>(i / words / chunks);
    const Slot slot = slot_at(a.shape, a.element, word * 4);
    const int channel = block * a.shape.channels() + slot.channel;
    const int out = a.planes ? channel / 4 : channel, phase = a.planes ? channel % 4 : 0;
    const int second = chunk >= a.source_chunks[0] ? 1 : 0;
    const int in = (chunk - (second ? a.source_chunks[0] : 0)) * kChunkChannels + slot.k;
    const float* const filter = a.weight + out * a.out_stride + (in + (second ? a.in_channels[0] : 0)) * a.in_stride;
    auto* const to = static_cast<uint32_t*>(a.packed) + (int64_t{block} * chunks + chunk) * taps * words + word;
    for (int tap = 0; tap < taps; ++tap) {
      const int of_filter = a.of_filter[tap][phase];
      float factors[2] = {};
#pragma unroll
      for (int k = 0; k < kFactors; ++k) {
        const bool there = out < a.out_channels && in + k < a.in_channels[second] && of_filter >= 0;
        if (there) factors[k] = filter[k * a.in_stride + of_filter];
      }
      if constexpr (sizeof(T) == 4) {
        to[int64_t{tap} * words] = __float_as_uint(factors[0]);
      } else {
        to[int64_t{tap} * words] = narrow_pair<T>(factors[0], factors[1]);
      }
    }
  }
}

__global__ void pack_input_kernel(int64_t channels, int64_t out_channels, int64_t floats, const float* weight,
                                  float* packed) {
  for (int64_t i = first_item(); i < floats; i += item_stride()) {
    const int64_t tap = i / kChannelUnit % 25, in = i / kChannelUnit / 25 % channels;
    const int64_t out = i / kChannelUnit / 25 / channels * kChannelUnit + i % kChannelUnit;
    packed[i] = out < out_channels ? weight[(out * channels + in) * 25 + tap] : 0.0f;
  }
}

}  // namespace

void launch_packing(const Packing& packing, Queue queue) {
  const int64_t words = int64_t{packing.blocks} * (packing.source_chunks[0] + packing.source_chunks[1]) * kPixelBytes /
                        4 * packing.shape.channels();
  with_element(packing.element, [&]<typename T>(std::type_identity<T>) {
    CUDA_LAUNCH(pack_kernel<T>, blocks_for(words, kPackThreads, 1 << 16), kPackThreads, 0, queue, packing);
  });
}

void pack_input_on_device(int64_t channels, int64_t out_channels, const float* weight, float* packed, Queue queue) {
  const int64_t floats = packed_input_floats(channels, out_channels);
  CUDA_LAUNCH(pack_input_kernel, blocks_for(floats, kPackThreads, 4096), kPackThreads, 0, queue, channels, out_channels,
              floats, weight, packed);
}

}  // namespace pyunetsep::cuda
