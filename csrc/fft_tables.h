// The roots of unity that the Fourier transforms look up.
#pragma once
#include "kernels.h"

namespace pyunetsep {

// For n_fft = 2 kMinFftPoints ... 2 kMaxFftPoints, a power of two: made at the first call, and kept. Thread-safe.
const FftTables& fft_tables(int64_t n_fft);

}  // namespace pyunetsep
