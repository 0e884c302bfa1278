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

namespace cpu {

// The kernels are built for several SIMD levels; the widest that the processor runs is used.
std::string simd_level();                // the one in use
std::vector<std::string> simd_levels();  // those that run here, from the plainest to the widest
void set_simd_level(const std::string& name);  // one of them, or "auto"; throws std::invalid_argument

void ratio_mask(const RatioMask<float>& args);
void ratio_mask(const RatioMask<double>& args);

void overlap_add(const OverlapAdd<float>& args);
void overlap_add(const OverlapAdd<double>& args);

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
