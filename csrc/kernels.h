// What the tensor layer may ask of the kernels: raw pointers and sizes, no torch and no CUDA header.
// All arrays are contiguous in the order of their comment, none is empty, and the caller has checked the sizes.
#pragma once
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "phases.h"

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

// A real Fourier transform of n_fft samples runs as a complex one of points = n_fft / 2. On the CPU this is cut into
// two factors, the smaller first, and each of these again.
constexpr int64_t kMinFftPoints = 16, kMaxFftPoints = 4096;

static constexpr int64_t smaller_factor(int64_t power_of_two) {
  int64_t factor = 1;
  while (4 * factor * factor <= power_of_two) factor *= 2;
  return factor;
}

// Roots of unity, rounded once; csrc/fft_tables.cpp makes them and keeps them.
struct FftTables {
  int64_t points;
  const float *first, *second;           // for factor F = A B, A <= B: [B, A, 2], re and im of exp(-2 pi i b a / F)
  const float *between_re, *between_im;  // [first factor, second factor] of exp(-2 pi i a b / points) / 2
  const float *real_re, *real_im;        // [points / 2] of exp(-2 pi i k / n_fft)
};

// spectrum[k] = Fourier transform of window * wave[k hop_length ... + n_fft] for each frame k, and in a band of it
// magnitude = |spectrum|.
template <typename Tables>  // FftTables, or cuda::FftRoots
struct StftWith {
  const float* wave;    // [rows, ...], rows wave_stride apart
  const float* window;  // [n_fft]
  float* spectrum;      // [rows, frame_count, n_fft / 2 + 1, 2], re and im; on CUDA null: not wanted
  float* magnitude;     // [rows, frame_count, bins]
  int64_t rows;
  int64_t frame_count;
  int64_t wave_stride;
  int64_t hop_length;
  int64_t first_bin;
  int64_t bins;
  Tables tables;  // of n_fft / 2 points
};
using Stft = StftWith<FftTables>;

// The frames of spectrum times mask, transformed back, weighted and added up. The bins below the mask's band take its
// first value; those above take the frame's gain, but where there is one alone it takes the mask's last value.
template <typename Tables>
struct MaskedIstftWith {
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
  int64_t length;  // (frame_count - 1) hop_length + n_fft
  Tables tables;   // of n_fft / 2 points
};
using MaskedIstft = MaskedIstftWith<FftTables>;

namespace cpu {

// ---- The U-Net's layers on the CPU. Between them, maps lie in blocks of channels:
// [batch, channels / kBlock rounded up, rows, columns, kBlock], the channels that fill up the last block being 0.
// Parameters of channels are padded with zeros in the same way.
constexpr int64_t kBlock = 16;

// y = max(z, slope z) after_scale + after_shift of z = before_scale x + before_shift, where x is a convolution and its
// bias. Scales and shifts are a channel's, or null: 1 and 0.
struct Activation {
  const float* bias;
  const float* before_scale;
  const float* before_shift;
  const float* after_scale;
  const float* after_shift;
  float slope;       // 0 ... 1
  float* raw;        // x, or null
  float* activated;  // y, or null
  bool stream;       // the maps are too large for the caches
};

// What a map is read through: max(z, slope z) of z = scale x + shift, with the channels' scales and shifts, or null.
struct Reading {
  const float* scale;
  const float* shift;
  float slope;
};

// A 5x5 convolution of stride 2, or an upsampling one: what is fixed when its weights are packed.
struct Convolution {
  Phases phases;
  bool upsampling;         // the phases are the output's, else the input's
  bool weight_by_input;    // weights are [in, out, 5, 5], else [out, in, 5, 5]
  int64_t in_channels[2];  // of two maps, the one behind the other; the second may have none
  int64_t out_channels;
  int tile_rows, tile_columns;  // outputs (of a phase) that are computed together: 4 or 2 each, or 1 both
  int64_t blocks_a_task;        // blocks of output channels
  bool packs_late;              // each task packs its weights itself; good for large ones that serve few tiles, once
};

struct ConvolutionRun {
  const Convolution* conv;
  const float* packed;     // or, where tasks pack late, null and ...
  const float* weight;     // ... these
  const float* source[2];  // [batch, blocks, in_rows, in_columns, kBlock]
  int64_t batch, in_rows, in_columns;
  int64_t grid_rows, grid_columns;  // of the output, or of one of its phases
  Reading reading;                  // of source[0], in a convolution that does not upsample
  Activation activation;            // to [batch, blocks, rows, columns, kBlock]
  int64_t tiles_a_task;             // at most; all where tasks pack late
  float* scratch;                   // [threads, scratch_stride]; convolution_scratch_size; shared where tasks pack late
  int64_t scratch_stride, threads;
};

// The network's first convolution, 5x5 of stride 2: output o reads inputs 2 o - pad ... 2 o - pad + 4.
struct InputConvolution {
  const float* source;  // [batch, channels, rows, columns], columns contiguous
  int64_t batch_stride, channel_stride, row_stride;
  int64_t batch, channels, rows, columns;
  const float* packed;  // [out blocks, channels, 5, 5, kBlock]
  int64_t out_channels, out_rows, out_columns, pad;
  Activation activation;  // to [batch, out blocks, out_rows, out_columns, kBlock]
  float* scratch;         // [threads, scratch_stride]; input_convolution_scratch_size
  int64_t scratch_stride, threads;
};

// What becomes of the last layer's sums.
enum class Ending {
  sigmoid,    // a mask
  masked,     // a mask times the network's input
  activated,  // relu and a scale and a shift: input of the head
  plain,      // nothing
};

// A plane that is written, and for Ending::masked one that is read.
struct OutputPlanes {
  Ending ending;
  float* output;  // [batch, channels, rows, columns], columns contiguous
  int64_t batch_stride, channel_stride, row_stride;
  const float* magnitude;  // the network's input, likewise
  int64_t magnitude_batch_stride, magnitude_channel_stride, magnitude_row_stride;
};

// The network's last upsampling convolution, to few channels.
struct OutputConvolution {
  Phases phases;
  const float* source[2];  // [batch, blocks, rows, columns, kBlock]
  int64_t blocks[2];
  int64_t batch, rows, columns;
  const float* packed;  // [out_channels, in blocks, 4 phases, 3, 3, kBlock]
  int64_t out_channels;
  const float* bias;         // [out_channels]
  const float* after_scale;  // [out_channels], for Ending::activated
  const float* after_shift;
  OutputPlanes to;  // 2 rows, 2 columns
  float* scratch;   // [threads, scratch_stride]; output_convolution_scratch_size
  int64_t scratch_stride, threads;
};

// 4x4 convolution with dilation 2 of planes, of one to masks: output o reads inputs o - 3, o - 1, o + 1, o + 3.
struct DilatedHead {
  const float* source;  // [batch, channels, rows, kHeadMargin + columns + kHeadMargin], the margins being 0
  int64_t batch, channels, rows, columns;
  const float* weight;  // [out_channels, channels, 4, 4]
  const float* bias;    // [out_channels]; may be null
  int64_t out_channels;
  OutputPlanes to;
  float* scratch;  // [threads, scratch_stride]; dilated_head_scratch_size
  int64_t scratch_stride, threads;
};
constexpr int64_t kHeadMargin = 32;

// The gradient of its weight.
struct DilatedHeadGradient {
  const float* source;  // as above
  int64_t batch, channels, rows, columns;
  const float* gradient;  // of the output, [batch, out_channels, rows, columns]
  int64_t out_channels;
  float* of_weight;  // [out_channels, channels, 4, 4]
  double* scratch;   // dilated_head_gradient_scratch_size
  int64_t threads;
};

// ---- Training. The gradients of a convolution's inputs are convolutions themselves, with the roles of the channels
// exchanged: an upsampling one for a strided one, and the reverse.

// The gradient of a filter between a coarse map and a fine one of twice its size: the strided convolution's output (its
// gradient) and input, or the upsampling one's input and output (its gradient).
struct WeightGradient {
  Phases phases;                 // of the fine map
  int tile_rows, tile_columns;   // coarse pixels that are computed together, as in Convolution
  const float* coarse[2];        // [batch, coarse blocks, rows, columns, kBlock], the one behind the other
  const float* fine;             // [batch, fine blocks, fine_rows, fine_columns, kBlock]
  int64_t batch, rows, columns;  // of the coarse maps
  int64_t fine_rows, fine_columns;
  int64_t coarse_channels[2];  // the second may have none
  int64_t fine_channels;
  float* gradient;  // [all coarse channels, fine_channels, 5, 5]
  float* scratch;   // weight_gradient_scratch_size
  int64_t threads;
};

// The same where the fine map is a few planes: the network's input, or the gradient of its output.
struct PlaneWeightGradient {
  const float* coarse;  // [batch, coarse blocks, rows, columns, kBlock]
  const float* fine;    // [batch, fine_channels, fine_rows, fine_columns]
  int64_t batch, rows, columns, fine_rows, fine_columns, coarse_channels, fine_channels;
  int64_t pad;      // fine zeros before a filter's first output
  float* gradient;  // [coarse_channels, fine_channels, 5, 5]
  float* scratch;   // plane_weight_gradient_scratch_size
  int64_t threads;
};

// ---- Training in bfloat16: the same convolutions of maps of such numbers, as matrix products summed up in floats.

struct Bfloat16 {
  uint16_t bits;  // the upper half of a float's
};

// Two maps that a filter of stride 2 lies between, [batch, blocks, rows, columns, kBlock]. The fine one has twice the
// rows and columns, or is a few float planes [batch, fine_channels, 2 rows, 2 columns].
struct CoarseAndFine {
  int64_t batch, rows, columns;  // of the coarse map
  int64_t coarse_channels[2];    // of two maps, the one behind the other; the second may have none
  int64_t fine_channels;
  Phases phases;  // of an upsampling convolution
  int64_t pad;    // fine zeros before a filter's first output
};

// Strided, from the fine map, or the planes, to the first coarse one.
struct Bfloat16Convolution {
  CoarseAndFine maps;
  const Bfloat16* fine;  // null: planes
  const float* planes;
  const float* weight;  // [coarse channels, fine_channels, 5, 5]
  const float* bias;    // [coarse channels]; may be null
  Bfloat16* coarse;
  void* scratch;  // bfloat16_convolution_scratch_size
  int64_t threads;
};

// Transposed, from the coarse maps to the fine one, or to planes.
struct Bfloat16Upconvolution {
  CoarseAndFine maps;
  const Bfloat16* coarse[2];
  const float* weight;  // [all coarse channels, fine_channels, 5, 5]
  const float* bias;    // [fine_channels]; may be null
  Bfloat16* fine;       // null: planes
  float* planes;
  void* scratch;  // bfloat16_upconvolution_scratch_size
  int64_t threads;
};

// The sum over all coarse pixels of their products with the fine pixels that their filter reaches.
struct Bfloat16WeightGradient {
  CoarseAndFine maps;
  const Bfloat16* coarse[2];
  const Bfloat16* fine;  // null: planes
  const float* planes;
  float* gradient;  // [all coarse channels, fine_channels, 5, 5]
  void* scratch;    // bfloat16_weight_gradient_scratch_size
  int64_t threads;
};

// The loss: the mean of |mask magnitude - target|.
struct MaskedL1 {
  const float *mask, *magnitude, *target;  // [size]
  int64_t size;
  double* scratch;  // masked_l1_scratch_size; the gradient needs none
  int64_t threads;
};

// Which elements of a map are dropped: by a hash of their example's seed and their place in it.
struct Dropout {
  const int32_t* seeds;  // [batch]; null: nothing is dropped
  int32_t threshold;     // hashes below it drop their element
  float factor;          // of those that stay
};

inline Dropout dropout_of(const int32_t* seeds, double probability) {
  return {seeds, static_cast<int32_t>(std::llrint(probability * 4294967296.0) - 2147483648LL),
          static_cast<float>(1 / (1 - probability))};
}

// What follows a convolution x in training: p = max(x, inner_slope x), z = scale (p - mean) + bias, y = max(z, slope
// z), and what dropout leaves of that. Slopes of 1 change nothing: ReLU stands before the norm (inner) or behind it.
template <typename T>  // float or Bfloat16
struct Normalisation {
  const T* x;  // [batch, blocks, pixels, kBlock]
  int64_t batch, channels, pixels;
  float inner_slope, slope;
  const float* mean;  // [blocks, kBlock], as what follows
  const float* scale;
  const float* bias;
  Dropout dropout;
  int64_t threads;
};

// Mean and variance (of all, not of a sample) of p in each channel.
struct NormStatistics {
  float* mean;      // [blocks, kBlock]
  float* variance;  // likewise
  double* scratch;  // norm_scratch_size
};

// Gradients of weight and bias (norm_sums, which writes them), and then that of x (norm_gradient, which reads them),
// where mean and scale follow from the statistics: scale = weight / deviation.
template <typename T>
struct NormGradient {
  const T* gradient;  // of y: [batch, blocks, pixels, kBlock], images gradient_stride apart
  int64_t gradient_stride;
  const float* inverse_deviation;  // [blocks, kBlock]
  float* of_weight;                // likewise
  float* of_bias;                  // likewise
  T* of_x;                         // as x
  double* scratch;                 // norm_scratch_size, of norm_sums
};

// The kernels are built for several SIMD levels; the widest that the processor runs is used.
std::string simd_level();                      // the one in use
std::vector<std::string> simd_levels();        // those that run here, from the plainest to the widest
bool has_matrix_products();                    // of bfloat16, in hardware: whether training in it is fast
void set_simd_level(const std::string& name);  // one of them, or "auto"; throws std::invalid_argument

void ratio_mask(const RatioMask<float>& args);
void ratio_mask(const RatioMask<double>& args);

void overlap_add(const OverlapAdd<float>& args);
void overlap_add(const OverlapAdd<double>& args);

void stft(const Stft& args);
void masked_istft(const MaskedIstft& args);

// Keeps `threads` threads busy with multiply-adds in registers; returns the floating-point operations that were done.
int64_t multiply_adds(int64_t threads, int64_t rounds);

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

// What a Fourier transform of n_fft samples looks up, for the caller to put on the device.
std::vector<float> fft_roots(int64_t n_fft);

struct FftRoots {
  int64_t points;
  const float* roots;
};
using Stft = StftWith<FftRoots>;
using MaskedIstft = MaskedIstftWith<FftRoots>;

// masked_istft of the first frames of a wave's spectrum, which is made on the way and never stored.
struct MaskWave {
  const float* wave;    // [rows, ...], rows wave_stride apart
  const float* window;  // [n_fft], for the way to the spectrum; that of `inverse` is for the way back
  int64_t wave_stride;
  MaskedIstft inverse;  // whose spectrum is null
};

// Windows and spectra lie at multiples of 8 bytes.
void stft(const Stft& args, Queue queue);
void masked_istft(const MaskedIstft& args, Queue queue);
void mask_wave(const MaskWave& args, Queue queue);

}  // namespace cuda
}  // namespace pyunetsep
