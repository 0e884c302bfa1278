#include "level.h"
#include "simd.h"

#define STRINGIFY_VALUE(x) #x
#define STRINGIFY(x) STRINGIFY_VALUE(x)

namespace pyunetsep::cpu::PYUNETSEP_SIMD {

void ratio_mask(const RatioMask<float>& args);
void ratio_mask(const RatioMask<double>& args);
void overlap_add(const OverlapAdd<float>& args);
void overlap_add(const OverlapAdd<double>& args);
void stft(const Stft& args);
void masked_istft(const MaskedIstft& args);

extern const Level kLevel;
const Level kLevel{
    .name = STRINGIFY(PYUNETSEP_SIMD),
    .ratio_mask_float = &ratio_mask,
    .ratio_mask_double = &ratio_mask,
    .overlap_add_float = &overlap_add,
    .overlap_add_double = &overlap_add,
    .stft = &stft,
    .masked_istft = &masked_istft,
};

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
