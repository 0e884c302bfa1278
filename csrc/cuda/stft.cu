#include "../kernels.h"
#include "fft.cuh"

// A team of n_fft / 32 threads makes a frame, of which each thread has 16 complex points in registers all the way from
// the wave to spectrum and magnitudes; see fft.cuh. A block is one team, or as many as make 128 threads.
//
// Bytes: each sample from memory once and n_fft / hop_length times from the caches, window and roots from the first
// cache level, spectrum (if wanted) and magnitudes written once. Bound by memory with the spectrum; without it by
// shared memory and arithmetic: of n_fft = 4096 about 1000 clocks of a multiprocessor a frame, by count, not measured.

namespace pyunetsep::cuda {
namespace {

constexpr int64_t kMaxBlocks = int64_t{1} << 30;  // gridDim.x
constexpr int64_t kMaxRows = 65535;               // gridDim.y

// The bins of one frame, of which `spectrum` and `magnitude` are the first.
struct BinWriter {
  float* spectrum;  // or null
  float* magnitude;
  uint32_t first_bin, bins;

  __device__ __forceinline__ void operator()(int k, Complex x) const {
    if (spectrum) store_complex(spectrum + 2 * k, x);
    const uint32_t in_band = static_cast<uint32_t>(k) - first_bin;
    if (in_band < bins) magnitude[in_band] = sqrtf(x.re * x.re + x.im * x.im);
  }
};

template <int kPoints>
__global__ void __launch_bounds__(FrameTransform<kPoints>::kBlock, 640 / FrameTransform<kPoints>::kBlock)
    stft_kernel(const Stft a) {
  using Transform = FrameTransform<kPoints>;
  SHARED_MEMORY(shared);
  const Transform transform(shared, a.tables.roots, static_cast<int>(threadIdx.x));
  for (int64_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
    for (int64_t first = int64_t{blockIdx.x} * Transform::kTeams; first < a.frame_count;
         first += int64_t{gridDim.x} * Transform::kTeams) {
      const int64_t frame = first + threadIdx.x / Transform::kThreads;
      const bool active = frame < a.frame_count;  // the others keep the team company at its barriers
      Complex z[16] = {};
      if (active) {
        load_points<kPoints>(a.wave + row * a.wave_stride + frame * a.hop_length, a.window, transform.thread(), z);
      }
      typename Transform::Bins x;
      transform.forward(z, x);
      if (!active) continue;
      const int64_t at = row * a.frame_count + frame;
      const BinWriter write{a.spectrum ? a.spectrum + at * 2 * (kPoints + 1) : nullptr, a.magnitude + at * a.bins,
                            static_cast<uint32_t>(a.first_bin), static_cast<uint32_t>(a.bins)};
      if (transform.thread() == 0) {
        write(kPoints / 2, {x.low[0].im, x.high[0].im});
        x.low[0].im = x.high[0].im = 0;
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        write(transform.bin(i), x.low[i]);
        write(kPoints - transform.bin(i), x.high[i]);
      }
    }
  }
}

}  // namespace

void stft(const Stft& args, Queue queue) {
  with_points(args.tables.points, [&]<int kPoints>() {
    using Transform = FrameTransform<kPoints>;
    const dim3 grid(blocks_for(args.frame_count, Transform::kTeams, kMaxBlocks), blocks_for(args.rows, 1, kMaxRows));
    CUDA_LAUNCH(stft_kernel<kPoints>, grid, Transform::kBlock, Transform::kSharedBytes, queue, args);
  });
}

}  // namespace pyunetsep::cuda
