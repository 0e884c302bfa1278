// What one SIMD level offers: table.cpp fills it in once a level, dispatch.cpp chooses among them.
#pragma once
#include "../kernels.h"

namespace pyunetsep::cpu {

struct Level {
  const char* name;
  void (*ratio_mask_float)(const RatioMask<float>&);
  void (*ratio_mask_double)(const RatioMask<double>&);
  void (*overlap_add_float)(const OverlapAdd<float>&);
  void (*overlap_add_double)(const OverlapAdd<double>&);
  void (*stft)(const Stft&);
  void (*masked_istft)(const MaskedIstft&);
};

}  // namespace pyunetsep::cpu
