#include "tiles.h"

#include "level.h"

#if defined(__x86_64__) && defined(__AVX512F__)
#define PYUNETSEP_AMX
#include <immintrin.h>
#endif

namespace pyunetsep::cpu::PYUNETSEP_SIMD {
namespace {

template <int kRows, int kColumns>
void multiply_in_vectors(const TileProduct& p) {
  for (int m = 0; m < kRows; ++m) {
    for (int n = 0; n < kColumns; ++n) {
      for (int row = 0; row < kTileRows; ++row) {
        Floats sum = {};
        if (p.add) read(sum, p.to[m][n] + row * kTileRows);
        for (int64_t k = 0; k < p.run_count * p.run; ++k) {
          const uint16_t* a = p.a[m] + (p.runs[k / p.run] * p.run + k % p.run) * kTileSize + row * kTileDepth;
          const uint16_t* b = p.b[n] + k * kTileSize;
          Floats of_tile = {};  // one long sum would round as often at its full size
          for (int i = 0; i < kTileDepth; i += 2) {
            Pairs columns;
            read(columns, b + i * kTileRows);
            const uint32_t bits[2] = {static_cast<uint32_t>(a[i]) << 16, static_cast<uint32_t>(a[i + 1]) << 16};
            float factors[2];
            std::memcpy(factors, bits, sizeof factors);
            of_tile += factors[0] * (Floats)(columns << 16) + factors[1] * (Floats)(columns & 0xffff0000U);
          }
          sum += of_tile;
        }
        write(p.to[m][n] + row * kTileRows, sum);
      }
    }
  }
}

#ifdef PYUNETSEP_AMX
#define WITH_AMX __attribute__((target("amx-tile,amx-bf16")))

// Eight tiles of 16 rows of 64 bytes: four of sums, two of a, two of b.
struct alignas(64) TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Not on the stack: compilers see of these intrinsics that they have an address, not what they read there.
constexpr TileConfiguration kConfiguration;

WITH_AMX void begin_tiles() { _tile_loadconfig(&kConfiguration); }

WITH_AMX void end_tiles() { _tile_release(); }

template <int kRows, int kColumns>
WITH_AMX void multiply_in_hardware(const TileProduct& p) {
  constexpr int64_t kRow = kTileRows * sizeof(float);
  if (p.add) {
    _tile_loadd(0, p.to[0][0], kRow);
    if constexpr (kColumns > 1) _tile_loadd(1, p.to[0][1], kRow);
    if constexpr (kRows > 1) _tile_loadd(2, p.to[1][0], kRow);
    if constexpr (kRows > 1 && kColumns > 1) _tile_loadd(3, p.to[1][1], kRow);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  int64_t b = 0;
  for (int64_t run = 0; run < p.run_count; ++run) {
    const int64_t first = p.runs[run] * p.run * kTileSize;
    for (int64_t a = first; a < first + p.run * kTileSize; a += kTileSize, b += kTileSize) {
      _tile_loadd(4, p.a[0] + a, 64);
      _tile_loadd(6, p.b[0] + b, 64);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kColumns > 1) {
        _tile_loadd(7, p.b[1] + b, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (kRows > 1) {
        _tile_loadd(5, p.a[1] + a, 64);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (kColumns > 1) _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  _tile_stored(0, p.to[0][0], kRow);
  if constexpr (kColumns > 1) _tile_stored(1, p.to[0][1], kRow);
  if constexpr (kRows > 1) _tile_stored(2, p.to[1][0], kRow);
  if constexpr (kRows > 1 && kColumns > 1) _tile_stored(3, p.to[1][1], kRow);
}
#else
void begin_tiles() {}
void end_tiles() {}
template <int kRows, int kColumns>
void multiply_in_hardware(const TileProduct&) {}
#endif

template <int kRows, int kColumns>
void multiply(const TileProduct& product, bool in_hardware) {
  in_hardware ? multiply_in_hardware<kRows, kColumns>(product) : multiply_in_vectors<kRows, kColumns>(product);
}

}  // namespace

#ifdef PYUNETSEP_AMX
bool has_matrix_products() { return has_matrix_unit(); }
#else
bool has_matrix_products() { return false; }
#endif

Tiles::Tiles() noexcept : in_hardware_(has_matrix_products()) {
  if (in_hardware_) begin_tiles();
}

Tiles::~Tiles() {
  if (in_hardware_) end_tiles();
}

void Tiles::multiply(const TileProduct& product, int rows, int columns) const noexcept {
  if (rows > 1) {
    columns > 1 ? PYUNETSEP_SIMD::multiply<2, 2>(product, in_hardware_)
                : PYUNETSEP_SIMD::multiply<2, 1>(product, in_hardware_);
  } else {
    columns > 1 ? PYUNETSEP_SIMD::multiply<1, 2>(product, in_hardware_)
                : PYUNETSEP_SIMD::multiply<1, 1>(product, in_hardware_);
  }
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
