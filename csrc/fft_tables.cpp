#include "fft_tables.h"

#include <bit>
#include <cmath>
#include <mutex>
#include <numbers>
#include <vector>

namespace pyunetsep {
namespace {

struct alignas(64) CacheLine {
  float values[16];
};
using Table = std::vector<CacheLine>;  // of floats, none of whose vectors straddles two cache lines

float* make_room(Table& table, int64_t floats) {
  table.resize((floats + 15) / 16);
  return table.front().values;
}

struct Kept {
  std::once_flag once;
  Table first, second, between_re, between_im, real_re, real_im;
  FftTables tables;
};

double angle(int64_t product, int64_t period) {
  return -2 * std::numbers::pi * static_cast<double>(product % period) / static_cast<double>(period);
}

// [B, A, 2] for columns of `points` = A B, A <= B.
const float* column_twiddles(Table& table, int64_t points) {
  const int64_t columns = smaller_factor(points);
  float* const twiddles = make_room(table, 2 * points);
  for (int64_t i = 0; i < points; ++i) {
    const double turn = angle(i / columns * (i % columns), points);
    twiddles[2 * i] = static_cast<float>(std::cos(turn));
    twiddles[2 * i + 1] = static_cast<float>(std::sin(turn));
  }
  return twiddles;
}

void make(Kept& kept, int64_t n_fft) {
  const int64_t points = n_fft / 2, rows = smaller_factor(points), columns = points / rows;
  float* const between_re = make_room(kept.between_re, points);
  float* const between_im = make_room(kept.between_im, points);
  for (int64_t i = 0; i < points; ++i) {
    const double turn = angle(i / columns * (i % columns), points);
    between_re[i] = static_cast<float>(std::cos(turn) / 2);
    between_im[i] = static_cast<float>(std::sin(turn) / 2);
  }
  float* const real_re = make_room(kept.real_re, points / 2);
  float* const real_im = make_room(kept.real_im, points / 2);
  for (int64_t k = 0; k < points / 2; ++k) {
    real_re[k] = static_cast<float>(std::cos(angle(k, n_fft)));
    real_im[k] = static_cast<float>(std::sin(angle(k, n_fft)));
  }
  kept.tables = {.points = points,
                 .first = column_twiddles(kept.first, rows),
                 .second = column_twiddles(kept.second, columns),
                 .between_re = between_re,
                 .between_im = between_im,
                 .real_re = real_re,
                 .real_im = real_im};
}

}  // namespace

const FftTables& fft_tables(int64_t n_fft) {
  static Kept kept[std::bit_width(static_cast<uint64_t>(kMaxFftPoints / kMinFftPoints))];
  Kept& one = kept[std::bit_width(static_cast<uint64_t>(n_fft / 2 / kMinFftPoints)) - 1];
  std::call_once(one.once, make, std::ref(one), n_fft);
  return one.tables;
}

}  // namespace pyunetsep
