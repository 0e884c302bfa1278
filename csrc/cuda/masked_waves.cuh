// From the spectra of frames, through masks, to waves: the kernel behind masked_istft and mask_wave.
//
// A team of n_fft / 32 threads (fft.cuh) makes a run of hops of a row, for a few stems at once, from the frames that
// reach it. It goes from frame to frame; of each it has the spectrum in registers, and for each stem the masked frame,
// transformed back, whose points are added to the samples that came from the frames before. These wait in a ring in
// shared memory, and go to the wave when no later frame reaches them. The frames that reach over the left edge of the
// run are made by the neighbour too. So each sample is summed over frames in ascending order, the cuts leave no trace in
// the result, and nothing is added in global memory.
//
// Bytes: spectrum or wave and masks read once, waves written once (and a few frames a run more); window and roots from
// the first cache level. Bound by shared memory and arithmetic: of n_fft = 4096 about 1200 clocks of a multiprocessor
// for each transform.
#pragma once
#include "../kernels.h"
#include "fft.cuh"

namespace pyunetsep::cuda {

constexpr int64_t kLeastRun = 2;         // times the frames that reach a sample: so many hops has a run at least
constexpr int64_t kBlocksAtOnce = 512;   // on a large device; where there would be more, runs are longer
constexpr int kManyStemsBytes = 72 * 1024;  // of shared memory, at most, where several stems are made at once
constexpr int64_t kMaxRuns = int64_t{1} << 30;  // gridDim.x
constexpr int64_t kMaxHeight = 65535;           // gridDim.y

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Runs {
  int64_t hops;    // of a run
  int64_t count;   // of runs in a row
  int64_t stems;   // made at once
  int64_t groups;  // of stems
  int frames;      // that reach a run, at most
};

// What the frame's bins are multiplied with.
struct Factors {
  const float* mask;  // [bins]
  float gain, scale;
  int first_bin, last;  // place of the mask's last value
  int end;              // bins from here on take the gain

  __device__ __forceinline__ float operator()(int k) const {
    if (k >= end) return gain * scale;
    const int place = k - first_bin;
    return mask[place < 0 ? 0 : place < last ? place : last] * scale;
  }
};

// A frame's bins, from memory.
template <int kPoints>
struct StoredSpectrum {
  using Args = MaskedIstft;
  using Transform = FrameTransform<kPoints>;

  static __device__ __forceinline__ const MaskedIstft& inverse(const Args& a) { return a; }
  static __device__ __forceinline__ void load(const Args& a, const Transform& transform, int64_t row, int64_t frame,
                                              bool active, typename Transform::Bins& x) {
    x = {};
    if (!active) return;
    const float* spectrum = a.spectrum + row * a.spectrum_row_stride + frame * a.spectrum_frame_stride;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      x.low[i] = load_complex(spectrum + 2 * transform.bin(i));
      x.high[i] = load_complex(spectrum + 2 * (kPoints - transform.bin(i)));
    }
    if (transform.thread() == 0) x.middle = load_complex(spectrum + kPoints);
  }
};

// A frame's bins, made of the wave.
template <int kPoints>
struct SpectrumOfWave {
  using Args = MaskWave;
  using Transform = FrameTransform<kPoints>;

  static __device__ __forceinline__ const MaskedIstft& inverse(const Args& a) { return a.inverse; }
  static __device__ __forceinline__ void load(const Args& a, const Transform& transform, int64_t row, int64_t frame,
                                              bool active, typename Transform::Bins& x) {
    Complex z[16] = {};
    if (active) {
      load_points<kPoints>(a.wave + row * a.wave_stride + frame * a.inverse.hop_length, a.window, transform.thread(),
                           z);
    }
    transform.forward(z, x);
  }
};

// Where the samples of a frame go.
struct FrameTarget {
  float* ring;     // [n_fft], where the frame's sample i has its place at (start + i) % n_fft
  float* wave;     // where the frame's first sample is, or would be
  int start;       // modulo n_fft
  int begin, end;  // of the samples that are the run's
  int fresh;       // from here on no frame came before
  int done;        // up to here none comes after
};

template <int kPoints>
__device__ __forceinline__ void add_frame(const FrameTarget& to, const Complex (&z)[16], const float* window,
                                          int thread) {
  constexpr int kMask = 2 * kPoints - 1;
  // Samples go in pairs, unless a hop is odd, when a pair may be parted.
  const bool in_pairs = ((to.start | to.begin | to.end | to.fresh | to.done) & 1) == 0 &&
                        reinterpret_cast<uintptr_t>(to.wave) % 8 == 0;
#pragma unroll
  for (int s = 0; s < 16; ++s) {
    const int i = 2 * (thread + kPoints / 16 * s);
    const Complex w = load_complex(window + i);
    const Complex sample = {w.re * z[s].im, w.im * z[s].re};  // they come exchanged
    if (in_pairs) {
      auto& place = *reinterpret_cast<Complex*>(to.ring + ((to.start + i) & kMask));
      Complex sum = sample;
      if (i < to.fresh) sum = place + sample;
      if (i >= to.done) {
        place = sum;
      } else if (to.begin <= i && i < to.end) {
        store_complex(to.wave + i, sum);
      }
    } else {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float& place = to.ring[(to.start + i + j) & kMask];
        float sum = j ? sample.im : sample.re;
        if (i + j < to.fresh) sum = place + sum;
        if (i + j >= to.done) {
          place = sum;
        } else if (to.begin <= i + j && i + j < to.end) {
          to.wave[i + j] = sum;
        }
      }
    }
  }
}

// Run `run` of row `row`, and of it the stems from first_stem on.
template <int kPoints, template <int> typename Source>
__device__ __forceinline__ void make_run(const typename Source<kPoints>::Args& args, const Runs& runs,
                                         const FrameTransform<kPoints>& team, float* rings, int64_t row,
                                         int64_t run, int64_t first_stem) {
  using Transform = FrameTransform<kPoints>;
  constexpr bool kAlone = Transform::kTeams == 1 || Transform::kThreads == 32;
  constexpr int kSamples = 2 * kPoints;
  const MaskedIstft& a = Source<kPoints>::inverse(args);
  const int hop = static_cast<int>(a.hop_length);
  const int64_t begin = run * runs.hops * hop;
  const int64_t first = begin < kSamples ? 0 : (begin - kSamples) / hop + 1;
  // Counted from `begin`, all is small.
  const int64_t left = a.length - begin, frames_left = a.frame_count - first;
  const int samples = static_cast<int>(left < runs.hops * hop ? left : runs.hops * hop);
  int start = static_cast<int>(first * hop - begin);  // of the frame
  const int reached = (samples - 1 - start) / hop + 1;
  const int frames = run >= runs.count ? 0 : reached < frames_left ? reached : static_cast<int>(frames_left);
  const int64_t stems = a.stems - first_stem < runs.stems ? a.stems - first_stem : runs.stems;
  const int band_end = static_cast<int>(a.first_bin + a.bins);

  for (int k = 0; k < runs.frames; ++k, start += hop) {
    const bool active = k < frames;
    if (kAlone && !active) break;  // else these threads keep the others company at their barriers
    typename Transform::Bins x;
    Source<kPoints>::load(args, team.anew(), row, first + k, active, x);
    FrameTarget to{.ring = rings,
                   .start = static_cast<int>((begin + start) & (kSamples - 1)),
                   .begin = start < 0 ? -start : 0,
                   .end = samples - start < kSamples ? samples - start : kSamples,
                   .fresh = k == 0 ? 0 : kSamples - hop,
                   .done = k == frames - 1 ? kSamples : hop};
    for (int64_t stem = 0; stem < stems; ++stem, to.ring += kSamples) {
      const int64_t made = (first_stem + stem) * a.rows + row;
      const Factors factor{.mask = a.mask + made * a.mask_row_stride + (first + k) * a.mask_frame_stride,
                           .gain = active ? a.gain[made * a.frame_count + first + k] : 0,
                           .scale = 1.0f / kSamples,
                           .first_bin = static_cast<int>(a.first_bin),
                           .last = static_cast<int>(a.bins) - 1,
                           .end = !active ? 0 : band_end == kPoints ? kPoints + 1 : band_end};
      const Transform transform = team.anew();
      typename Transform::Bins y;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        y.low[i] = x.low[i] * factor(transform.bin(i));
        y.high[i] = x.high[i] * factor(kPoints - transform.bin(i));
      }
      if (transform.thread() == 0) y.middle = x.middle * factor(kPoints / 2);
      Complex z[16];
      transform.backward(y, z);
      to.wave = a.wave + made * a.length + begin + start;
      if (active) add_frame<kPoints>(to, z, a.window, transform.thread());
    }
  }
}

template <int kPoints, template <int> typename Source>
__global__ void __launch_bounds__(FrameTransform<kPoints>::kBlock, 512 / FrameTransform<kPoints>::kBlock)
    masked_waves_kernel(const typename Source<kPoints>::Args args, const Runs runs) {
  using Transform = FrameTransform<kPoints>;
  SHARED_MEMORY(shared);
  const MaskedIstft& a = Source<kPoints>::inverse(args);
  const Transform transform(shared, a.tables.roots);
  const int64_t team = threadIdx.x / Transform::kThreads;
  float* const rings = reinterpret_cast<float*>(shared + Transform::kSharedBytes) + team * runs.stems * 2 * kPoints;
  for (int64_t i = blockIdx.y; i < a.rows * runs.groups; i += gridDim.y) {
    const int64_t group = i / a.rows, row = i - group * a.rows;
    for (int64_t run = int64_t{blockIdx.x} * Transform::kTeams; run < runs.count;
         run += int64_t{gridDim.x} * Transform::kTeams) {
      make_run<kPoints, Source>(args, runs, transform, rings, row, run + team, group * runs.stems);
    }
  }
}

// How many stems are made at once, and how the hops are shared out.
template <int kPoints>
Runs runs_of(const MaskedIstft& a) {
  using Transform = FrameTransform<kPoints>;
  constexpr int64_t kSamples = 2 * kPoints;
  constexpr int64_t kRoom = (kManyStemsBytes - Transform::kSharedBytes) / (Transform::kTeams * kSamples * 4);
  constexpr int64_t kMostStems = kRoom < 1 ? 1 : kRoom;
  Runs runs = {};
  runs.groups = ceil_div(a.stems, kMostStems);
  runs.stems = ceil_div(a.stems, runs.groups);
  const int64_t reach = ceil_div(kSamples, a.hop_length), hops = ceil_div(a.length, a.hop_length);
  const int64_t share = ceil_div(hops * a.rows * runs.groups, kBlocksAtOnce * Transform::kTeams);
  runs.hops = share < kLeastRun * reach ? kLeastRun * reach : share;
  runs.frames = static_cast<int>(runs.hops + reach - 1);
  runs.count = ceil_div(hops, runs.hops);
  return runs;
}

template <template <int> typename Source, typename Args>
void masked_waves(const Args& args, const MaskedIstft& inverse, Queue queue) {
  with_points(inverse.tables.points, [&]<int kPoints>() {
    using Transform = FrameTransform<kPoints>;
    const Runs runs = runs_of<kPoints>(inverse);
    const dim3 grid(blocks_for(runs.count, Transform::kTeams, kMaxRuns),
                    blocks_for(inverse.rows * runs.groups, 1, kMaxHeight));
    const int ring_bytes = static_cast<int>(runs.stems) * Transform::kTeams * 2 * kPoints * 4;
    CUDA_LAUNCH((masked_waves_kernel<kPoints, Source>), grid, Transform::kBlock, Transform::kSharedBytes + ring_bytes,
                queue, args, runs);
  });
}

}  // namespace pyunetsep::cuda
