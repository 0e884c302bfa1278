#include "../kernels.h"
#include "device.cuh"

// One block makes kTile neighbouring samples of a row; one thread kTile / kThreads of them, a block apart, so that a
// warp reads neighbours of each frame and writes neighbours of the wave. A sample is gathered from the frames that
// reach it, the latest first: no atomics, the same bits each time. Bytes: each frame read once, each sample written
// once, the window from the first cache level. Bound by memory.

namespace pyunetsep::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 1024;
constexpr int64_t kMaxTiles = int64_t{1} << 30;  // gridDim.x
constexpr int64_t kMaxRows = 65535;              // gridDim.y

template <typename T>
__device__ __forceinline__ void overlap_add_tile(const OverlapAdd<T>& a, int64_t row, int64_t begin) {
  // The tile's one 64-bit division; what its threads divide fits in 32 bits.
  const int64_t hops_before = begin / a.hop_length;
  const uint32_t hop = static_cast<uint32_t>(a.hop_length), n_fft = static_cast<uint32_t>(a.n_fft);
  const uint32_t phase = static_cast<uint32_t>(begin - hops_before * a.hop_length);
  for (uint32_t i = threadIdx.x; i < kTile && begin + i < a.length; i += blockDim.x) {
    const uint32_t hops = (phase + i) / hop;
    int64_t k = hops_before + hops;       // the latest frame that starts at or before the sample ...
    uint32_t n = phase + i - hops * hop;  // ... and the sample's place in it
    if (k >= a.frame_count) {             // past the last start, inside the last frame
      n += static_cast<uint32_t>(k - (a.frame_count - 1)) * hop;
      k = a.frame_count - 1;
    }
    const T* frame = a.frames + (row * a.frame_count + k) * a.n_fft;
    T sum = 0;
    for (; n < n_fft && k >= 0; n += hop, --k, frame -= a.n_fft) sum += a.window[n] * frame[n];
    a.wave[row * a.length + begin + i] = sum;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) overlap_add_kernel(const OverlapAdd<T> a) {
  for (int64_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
    for (int64_t begin = int64_t{blockIdx.x} * kTile; begin < a.length; begin += int64_t{gridDim.x} * kTile) {
      overlap_add_tile(a, row, begin);
    }
  }
}

template <typename T>
void overlap_add_any(const OverlapAdd<T>& a, Queue queue) {
  const dim3 grid(blocks_for(a.length, kTile, kMaxTiles), blocks_for(a.rows, 1, kMaxRows));
  CUDA_LAUNCH(overlap_add_kernel<T>, grid, kThreads, 0, queue, a);
}

}  // namespace

void overlap_add(const OverlapAdd<float>& args, Queue queue) { overlap_add_any(args, queue); }
void overlap_add(const OverlapAdd<double>& args, Queue queue) { overlap_add_any(args, queue); }

}  // namespace pyunetsep::cuda
