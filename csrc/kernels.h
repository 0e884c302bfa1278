// What the tensor layer may ask of the kernels: raw pointers and sizes, no torch and no CUDA header.
// All arrays are contiguous in the order of their comment, none is empty, and the caller has checked the sizes.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace pyunetsep {

// weight[s] = magnitudes[s]^power, rest = max(mixture - sum_s magnitudes[s], 0)^power,
// masks[s] = (weight[s] + epsilon / parts) / (sum_s weight[s] + rest + epsilon) at each point,
// where parts = stems, or stems + 1 if there is a mixture.
template <typename T>
struct RatioMask {
  const T* magnitudes;  // [stems, points]
  const T* mixture;     // [points]; null: the stems are the whole mixture
  T* masks;             // [stems, points]
  int64_t stems;
  int64_t points;
  T power;
  T epsilon;
};

// wave[t] = sum_k window[t - k hop_length] frames[k, t - k hop_length] in each row.
template <typename T>
struct OverlapAdd {
  const T* frames;  // [rows, frame_count, n_fft]
  const T* window;  // [n_fft]
  T* wave;          // [rows, length]
  int64_t rows;
  int64_t frame_count;
  int64_t n_fft;       // below 2^31
  int64_t hop_length;  // 1 ... n_fft
  int64_t length;      // (frame_count - 1) hop_length + n_fft
};

// Fourier transforms on the CPU. A real transform of n_fft samples runs as a complex one of points = n_fft / 2, which is
// cut into two factors, the smaller first, and each of these again.
constexpr int64_t kMinFftPoints = 16, kMaxFftPoints = 4096;

static constexpr int64_t smaller_factor(int64_t power_of_two) {
  int64_t factor = 1;
  while (4 * factor * factor <= power_of_two) factor *= 2;
  return factor;
}

// Roots of unity, rounded once; csrc/fft_tables.cpp makes them and keeps them.
struct FftTables {
  int64_t points;
  const float *first, *second;           // for each factor F = A B, A <= B: [B, A, 2], re and im of exp(-2 pi i b a / F)
  const float *between_re, *between_im;  // [first factor, second factor] of exp(-2 pi i a b / points) / 2
  const float *real_re, *real_im;        // [points / 2] of exp(-2 pi i k / n_fft)
};

// spectrum[k] = Fourier transform of window * wave[k hop_length ... + n_fft] for each frame k; magnitude = |spectrum| in
// a band of it.
struct Stft {
  const float* wave;    // [rows, ...], rows wave_stride apart
  const float* window;  // [n_fft]
  float* spectrum;      // [rows, frame_count, n_fft / 2 + 1, 2], re and im
  float* magnitude;     // [rows, frame_count, bins]
  int64_t rows;
  int64_t frame_count;
  int64_t wave_stride;
  int64_t hop_length;
  int64_t first_bin;
  int64_t bins;
  FftTables tables;  // of n_fft / 2 points
};

// The frames of spectrum times mask, transformed back, weighted and added up. The bins below the mask's band take its
// first value; those above take the frame's gain, but where there is one alone it takes the mask's last value.
struct MaskedIstft {
  const float* spectrum;  // [rows, frame_count, n_fft / 2 + 1, 2], re and im; rows and frames with strides
  const float* mask;      // [stems * rows, frame_count, bins]; rows and frames with strides
  const float* gain;      // [stems * rows, frame_count]
  const float* window;    // [n_fft]
  float* wave;            // [stems * rows, length]
  int64_t stems;
  int64_t rows;
  int64_t frame_count;
  int64_t spectrum_row_stride;  // all strides in floats
  int64_t spectrum_frame_stride;
  int64_t mask_row_stride;
  int64_t mask_frame_stride;
  int64_t hop_length;
  int64_t first_bin;
  int64_t bins;
  int64_t length;    // (frame_count - 1) hop_length + n_fft
  FftTables tables;  // of n_fft / 2 points
};

namespace cpu {

// The kernels are built for several SIMD levels; the widest that the processor runs is used.
std::string simd_level();                // the one in use
std::vector<std::string> simd_levels();  // those that run here, from the plainest to the widest
void set_simd_level(const std::string& name);  // one of them, or "auto"; throws std::invalid_argument

void ratio_mask(const RatioMask<float>& args);
void ratio_mask(const RatioMask<double>& args);

void overlap_add(const OverlapAdd<float>& args);
void overlap_add(const OverlapAdd<double>& args);

void stft(const Stft& args);
void masked_istft(const MaskedIstft& args);

}  // namespace cpu

// Either csrc/cuda/*.cu or csrc/cuda/unavailable.cpp, as CMakeLists.txt decides. The pointers are device memory, the
// work is queued and not waited for, and trouble is a std::runtime_error.
namespace cuda {

struct Queue {
  int device;    // index of the device that holds the memory
  void* stream;  // a cudaStream_t of that device
};

void ratio_mask(const RatioMask<float>& args, Queue queue);
void ratio_mask(const RatioMask<double>& args, Queue queue);

void overlap_add(const OverlapAdd<float>& args, Queue queue);
void overlap_add(const OverlapAdd<double>& args, Queue queue);

}  // namespace cuda
}  // namespace pyunetsep
