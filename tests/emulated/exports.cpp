#include "exports.h"

using exports::kQueue, exports::message_of;

extern "C" {

#define EXPORT(T, NAME)                                                                                          \
  const char* ratio_mask_##NAME(const T* magnitudes, const T* mixture, T* masks, int64_t stems, int64_t points,  \
                                double power, double epsilon) {                                                  \
    return message_of([=] {                                                                                      \
      pyunetsep::cuda::ratio_mask(                                                                               \
          pyunetsep::RatioMask<T>{magnitudes, mixture, masks, stems, points, T(power), T(epsilon)}, kQueue);     \
    });                                                                                                          \
  }                                                                                                              \
  const char* overlap_add_##NAME(const T* frames, const T* window, T* wave, int64_t rows, int64_t frame_count,   \
                                 int64_t n_fft, int64_t hop_length, int64_t length) {                            \
    return message_of([=] {                                                                                      \
      pyunetsep::cuda::overlap_add(                                                                              \
          pyunetsep::OverlapAdd<T>{frames, window, wave, rows, frame_count, n_fft, hop_length, length}, kQueue); \
    });                                                                                                          \
  }

EXPORT(float, float32)
EXPORT(double, float64)

}  // extern "C"
