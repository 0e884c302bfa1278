// Products of tiles of bfloat16, summed up in floats: by the processor's matrix unit (AMX) where there is one,
// otherwise by vectors.
//
// A tile of a is 16 rows of 32 neighbours of a sum, [16][32]; one of b has these sums' columns, two neighbours of the
// sum side by side, [16 pairs][16 columns][2]. Each is 1 KiB in one piece.
#pragma once
#include "bfloat16.h"

namespace pyunetsep::cpu::PYUNETSEP_SIMD {

constexpr int kTileRows = 16, kTileDepth = 32;
constexpr int64_t kTileSize = kTileRows * kTileDepth;  // numbers

// Up to two tiles of rows times up to two of columns.
struct TileProduct {
  const uint16_t* a[2];  // tiles, one after another
  const uint16_t* b[2];
  const int* runs;  // [run_count]: b's tiles, in their order, meet a's of these runs
  int64_t run_count;
  int64_t run;      // tiles
  float* to[2][2];  // [16][16]
  bool add;         // to what is there
};

bool has_matrix_products();  // here and at this level

class Tiles {
 public:
  Tiles() noexcept;  // of this thread, while this object lives
  ~Tiles();
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  // `rows` and `columns`: how many tiles of them, 1 or 2.
  void multiply(const TileProduct& product, int rows, int columns) const noexcept;

 private:
  bool in_hardware_;
};

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
