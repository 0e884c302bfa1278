#include "../kernels.h"
#include "parallel.h"
#include "simd.h"

// One task gathers kChunk samples of a row from the frames that reach them, frame by frame in ascending order: the
// chunk stays in the first cache level, the inner loop runs over neighbours, and each sample is summed in the same
// order wherever the chunks are cut. Bytes: each frame read once, each sample written once. Bound by memory.

namespace pyunetsep::cpu::PYUNETSEP_SIMD {
namespace {

constexpr int64_t kChunk = 4096;        // samples
constexpr int64_t kGrain = 8 * kChunk;  // samples a thread at least: about 20 us of work

template <typename T>
void overlap_add_chunk(const OverlapAdd<T>& a, int64_t row, int64_t begin, int64_t end) {
  T* __restrict wave = a.wave + row * a.length;
  std::memset(wave + begin, 0, (end - begin) * sizeof(T));
  const int64_t first = begin < a.n_fft ? 0 : (begin - a.n_fft) / a.hop_length + 1;
  const int64_t last = min(a.frame_count - 1, (end - 1) / a.hop_length);
  for (int64_t k = first; k <= last; ++k) {
    const int64_t start = k * a.hop_length;
    const int64_t from = max(begin, start), to = min(end, start + a.n_fft);
    const T* __restrict frame = a.frames + (row * a.frame_count + k) * a.n_fft + (from - start);
    const T* __restrict window = a.window + (from - start);
    T* __restrict out = wave + from;
    for (int64_t i = 0; i < to - from; ++i) out[i] += window[i] * frame[i];
  }
}

template <typename T>
void overlap_add_any(const OverlapAdd<T>& a) {
  const int64_t chunks = (a.length + kChunk - 1) / kChunk;  // a row
  parallel_for(0, a.rows * chunks, kGrain / min(kChunk, a.length), [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t begin = task % chunks * kChunk;
      overlap_add_chunk(a, task / chunks, begin, min(begin + kChunk, a.length));
    }
  });
}

}  // namespace

void overlap_add(const OverlapAdd<float>& args) { overlap_add_any(args); }
void overlap_add(const OverlapAdd<double>& args) { overlap_add_any(args); }

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
