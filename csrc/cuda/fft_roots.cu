#include <cmath>
#include <numbers>

#include "../kernels.h"
#include "fft.cuh"

// On the host: each root rounded once, from double.

namespace pyunetsep::cuda {

std::vector<float> fft_roots(int64_t n_fft) {
  const int points = static_cast<int>(n_fft / 2);
  std::vector<float> roots;
  roots.reserve(2 * root_count(points));
  const auto append = [&](int64_t turns, int64_t period, double scale) {
    const double angle = -2 * std::numbers::pi * static_cast<double>(turns % period) / static_cast<double>(period);
    roots.push_back(static_cast<float>(scale * std::cos(angle)));
    roots.push_back(static_cast<float>(scale * std::sin(angle)));
  };
  for (int length = fft_radix(points, 1), radix; length < points; length *= radix) {
    radix = fft_radix(points, length);
    const int columns = length * radix == points ? length / 2 + 1 : length;
    for (int r = 1; r < radix; ++r) {
      for (int j = 0; j < columns; ++j) append(int64_t{r} * j, int64_t{length} * radix, 1);
    }
  }
  for (int k = 0; k < points / 2; ++k) append(k, n_fft, 0.5);
  return roots;
}

}  // namespace pyunetsep::cuda
