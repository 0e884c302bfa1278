#include "fft_tables.h"

#include <bit>
#include <cmath>
#include <mutex>
#include <numbers>
#include <vector>

namespace pyunetsep {
namespace {

struct Kept {
  std::once_flag once;
  std::vector<float> first, second, between_re, between_im, real_re, real_im;
  FftTables tables;
};

double angle(int64_t product, int64_t period) {
  return -2 * std::numbers::pi * static_cast<double>(product % period) / static_cast<double>(period);
}

// [B, A, 2] for a column of `points` = A B, A <= B.
std::vector<float> column_twiddles(int64_t points) {
  const int64_t columns = smaller_factor(points), rows = points / columns;
  std::vector<float> twiddles;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      twiddles.push_back(static_cast<float>(std::cos(angle(row * column, points))));
      twiddles.push_back(static_cast<float>(std::sin(angle(row * column, points))));
    }
  }
  return twiddles;
}

void make(Kept& kept, int64_t n_fft) {
  const int64_t points = n_fft / 2, rows = smaller_factor(points), columns = points / rows;
  kept.first = column_twiddles(rows);
  kept.second = column_twiddles(columns);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      kept.between_re.push_back(static_cast<float>(std::cos(angle(row * column, points)) / 2));
      kept.between_im.push_back(static_cast<float>(std::sin(angle(row * column, points)) / 2));
    }
  }
  for (int64_t k = 0; k < points / 2; ++k) {
    kept.real_re.push_back(static_cast<float>(std::cos(angle(k, n_fft))));
    kept.real_im.push_back(static_cast<float>(std::sin(angle(k, n_fft))));
  }
  kept.tables = {.points = points,
                 .first = kept.first.data(),
                 .second = kept.second.data(),
                 .between_re = kept.between_re.data(),
                 .between_im = kept.between_im.data(),
                 .real_re = kept.real_re.data(),
                 .real_im = kept.real_im.data()};
}

}  // namespace

const FftTables& fft_tables(int64_t n_fft) {
  static Kept kept[std::bit_width(static_cast<uint64_t>(kMaxFftPoints / kMinFftPoints))];
  Kept& one = kept[std::bit_width(static_cast<uint64_t>(n_fft / 2 / kMinFftPoints)) - 1];
  std::call_once(one.once, make, std::ref(one), n_fft);
  return one.tables;
}

}  // namespace pyunetsep
