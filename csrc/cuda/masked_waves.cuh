// From the spectra of frames, through masks, to waves: the kernel behind masked_istft and mask_wave.
//
// A team of n_fft / 32 threads (fft.cuh) makes a run of hops of a row, for a few stems at once, from the frames that
// reach it. It goes from frame to frame; of each it has the spectrum in registers, and for each stem the masked frame,
// transformed back, whose points are added to the samples that came from the frames before. These wait in a ring in
// shared memory, and go to the wave when no later frame reaches them. The frames that reach over the left edge of the
// run are made by the neighbour too. So each sample is summed over frames in ascending order, the cuts leave no trace
// in the result, and nothing is added in global memory.
//
// Bytes: spectrum or wave and masks read once (the frames at a run's edge twice), waves written once; windows and roots
// from the first cache level. Bound by shared memory and arithmetic: of n_fft = 4096 about 1200 clocks of a
// multiprocessor for each transform, by count, not measured.
#pragma once
#include "../kernels.h"
#include "fft.cuh"

namespace pyunetsep::cuda {

constexpr int64_t kLeastRun = 2;                // times the frames that reach a sample: so many hops has a run at least
constexpr int64_t kBlocksAtOnce = 512;          // on a large device; where there would be more, runs are longer
constexpr int kManyStemsBytes = 72 * 1024;      // of shared memory, at most, where several stems are made at once
constexpr int64_t kMaxRuns = int64_t{1} << 30;  // gridDim.x
constexpr int64_t kMaxHeight = 65535;           // gridDim.y

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Runs {
  int64_t hops;   // of a run
  int64_t reach;  // frames that a sample can lie in
  int count;      // of runs in a row
  int frames;     // that reach a run, at most
  int stems;      // made at once
  int groups;     // of stems
};

// What a frame's bins are multiplied with.
struct Factors {
  const float* mask;  // [bins]
  float below, above, scale;
  uint32_t first_bin, bins;

  __device__ __forceinline__ float operator()(int k) const {
    const uint32_t in_band = static_cast<uint32_t>(k) - first_bin;
    float factor = k < static_cast<int>(first_bin) ? below : above;
    if (in_band < bins) factor = mask[in_band];
    return factor * scale;
  }
};

template <int kPoints>
__device__ __forceinline__ Factors factors_of(const MaskedIstft& a, int64_t made, int64_t frame) {
  const float* mask = a.mask + made * a.mask_row_stride + frame * a.mask_frame_stride;
  const bool one_above = a.first_bin + a.bins == kPoints;
  return {.mask = mask,
          .below = mask[0],
          .above = one_above ? mask[a.bins - 1] : a.gain[made * a.frame_count + frame],
          .scale = 1.0f / (2 * kPoints),
          .first_bin = static_cast<uint32_t>(a.first_bin),
          .bins = static_cast<uint32_t>(a.bins)};
}

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
    if (transform.thread() == 0) {
      x.low[0].im = spectrum[kPoints];
      x.high[0].im = spectrum[kPoints + 1];
    }
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

  // Adds sample i, or samples i and i + 1.
  template <typename Sample>
  __device__ __forceinline__ void add(int i, Sample sample, int mask) const {
    auto& place = *reinterpret_cast<Sample*>(ring + ((start + i) & mask));
    if (i < fresh) sample = place + sample;
    if (i >= done) {
      place = sample;
    } else if (begin <= i && i < end) {
      *reinterpret_cast<Sample*>(wave + i) = sample;
    }
  }
};

template <int kPoints>
__device__ __forceinline__ void add_frame(const FrameTarget& to, Complex (&z)[16], const float* window, int thread) {
  constexpr int kMask = 2 * kPoints - 1;
  const auto place = [&](int s) { return 2 * (thread + kPoints / 16 * s); };
#pragma unroll
  for (int s = 0; s < 16; ++s) {
    const Complex w = load_complex(window + place(s));
    z[s] = {w.re * z[s].im, w.im * z[s].re};  // they come exchanged
  }
  // A pair of samples may be parted if a hop is odd.
  const bool in_pairs =
      ((to.start | to.begin | to.end | to.fresh | to.done) & 1) == 0 && reinterpret_cast<uintptr_t>(to.wave) % 8 == 0;
  if (in_pairs) {
#pragma unroll
    for (int s = 0; s < 16; ++s) to.add(place(s), z[s], kMask);
  } else {
#pragma unroll
    for (int s = 0; s < 16; ++s) {
      to.add(place(s), z[s].re, kMask);
      to.add(place(s) + 1, z[s].im, kMask);
    }
  }
}

// One run of a row.
struct Run {
  int64_t begin;  // its first sample
  int64_t first;  // the first frame that reaches it
  int early;      // frames that begin before it
  int frames;     // that reach it
  int samples;

  __device__ __forceinline__ Run(const MaskedIstft& a, const Runs& runs, int number) {
    const int64_t hop = number * runs.hops, left = a.length - hop * a.hop_length;
    begin = hop * a.hop_length;
    early = static_cast<int>(hop < runs.reach ? hop : runs.reach - 1);
    first = hop - early;
    const int64_t frames_left = a.frame_count - first;
    frames = left <= 0 ? 0 : static_cast<int>(frames_left < early + runs.hops ? frames_left : early + runs.hops);
    samples = static_cast<int>(left < runs.hops * a.hop_length ? left : runs.hops * a.hop_length);
  }
};

// The runs from first_run on of row `row`, one a team, and of them the stems of `group`.
//
// What comes cheaply of a thread's index is made of it anew where it is used: it would else take registers that the
// spectrum needs.
template <int kPoints, template <int> typename Source>
__device__ __forceinline__ void make_runs(const typename Source<kPoints>::Args& args, const Runs& runs,
                                          unsigned char* shared, int64_t row, int first_run, int group) {
  using Transform = FrameTransform<kPoints>;
  constexpr int kSamples = 2 * kPoints;
  const MaskedIstft& a = Source<kPoints>::inverse(args);
  const auto thread_of_block = [] { return unknown(static_cast<int>(threadIdx.x)); };
  const auto run_of = [&](int thread) { return Run(a, runs, first_run + thread / Transform::kThreads); };
  const auto team_of = [&](int thread) { return Transform(shared, a.tables.roots, thread); };

  for (int k = 0; k < runs.frames; ++k) {
    // A run with fewer frames keeps the others company at their barriers.
    const bool active = k < run_of(thread_of_block()).frames;
    typename Transform::Bins x;
    {
      const int thread = thread_of_block();
      Source<kPoints>::load(args, team_of(thread), row, run_of(thread).first + k, active, x);
    }
    for (int stem = 0; stem < runs.stems && group * runs.stems + stem < a.stems; ++stem) {
      const int64_t made = (group * runs.stems + stem) * a.rows + row;
      Complex z[16];
      {
        const int thread = thread_of_block();
        const Transform transform = team_of(thread);
        Factors factor = {};
        if (active) factor = factors_of<kPoints>(a, made, run_of(thread).first + k);
        typename Transform::Bins y;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          y.low[i] = x.low[i] * factor(transform.bin(i));
          y.high[i] = x.high[i] * factor(kPoints - transform.bin(i));
        }
        if (transform.thread() == 0) {
          const float middle = factor(kPoints / 2);
          y.low[0].im = x.low[0].im * middle;
          y.high[0].im = x.high[0].im * middle;
        }
        transform.backward(y, z);
      }
      if (!active) continue;
      const int thread = thread_of_block(), team = thread / Transform::kThreads;
      const Run run = run_of(thread);
      const int hop = static_cast<int>(a.hop_length), start = (k - run.early) * hop;  // after the run's first sample
      const FrameTarget to{
          .ring = reinterpret_cast<float*>(shared + Transform::kSharedBytes) + (team * runs.stems + stem) * kSamples,
          .wave = a.wave + made * a.length + run.begin + start,
          .start = static_cast<int>((run.begin + start) & (kSamples - 1)),
          .begin = start < 0 ? -start : 0,
          .end = run.samples - start < kSamples ? run.samples - start : kSamples,
          .fresh = k == 0 ? 0 : kSamples - hop,
          .done = k == run.frames - 1 ? kSamples : hop};
      add_frame<kPoints>(to, z, a.window, thread % Transform::kThreads);
    }
  }
}

template <int kPoints, template <int> typename Source>
__global__ void __launch_bounds__(FrameTransform<kPoints>::kBlock, 512 / FrameTransform<kPoints>::kBlock)
    masked_waves_kernel(const typename Source<kPoints>::Args args, const Runs runs) {
  SHARED_MEMORY(shared);
  constexpr int kTeams = FrameTransform<kPoints>::kTeams;
  const int64_t rows = Source<kPoints>::inverse(args).rows;
  for (int64_t i = blockIdx.y; i < rows * runs.groups; i += gridDim.y) {
    const int group = static_cast<int>(i / rows);
    for (int run = static_cast<int>(blockIdx.x) * kTeams; run < runs.count;
         run += static_cast<int>(gridDim.x) * kTeams) {
      make_runs<kPoints, Source>(args, runs, shared, i - group * rows, run, group);
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
  const int64_t reach = ceil_div(kSamples, a.hop_length), hops = ceil_div(a.length, a.hop_length);
  const int64_t groups = ceil_div(a.stems, kMostStems);
  const int64_t share = ceil_div(hops * a.rows * groups, kBlocksAtOnce * Transform::kTeams);
  const int64_t hops_a_run = share < kLeastRun * reach ? kLeastRun * reach : share;
  return {.hops = hops_a_run,
          .reach = reach,
          .count = static_cast<int>(ceil_div(hops, hops_a_run)),
          .frames = static_cast<int>(hops_a_run + reach - 1),
          .stems = static_cast<int>(ceil_div(a.stems, groups)),
          .groups = static_cast<int>(groups)};
}

template <template <int> typename Source, typename Args>
void masked_waves(const Args& args, const MaskedIstft& inverse, Queue queue) {
  with_points(inverse.tables.points, [&]<int kPoints>() {
    using Transform = FrameTransform<kPoints>;
    const Runs runs = runs_of<kPoints>(inverse);
    const dim3 grid(blocks_for(runs.count, Transform::kTeams, kMaxRuns),
                    blocks_for(inverse.rows * runs.groups, 1, kMaxHeight));
    const int ring_bytes = runs.stems * Transform::kTeams * 2 * kPoints * 4;
    CUDA_LAUNCH((masked_waves_kernel<kPoints, Source>), grid, Transform::kBlock, Transform::kSharedBytes + ring_bytes,
                queue, args, runs);
  });
}

}  // namespace pyunetsep::cuda
