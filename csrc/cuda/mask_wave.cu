#include "masked_waves.cuh"

// The spectrum that a mask is for comes from the wave once more: to transform it again costs less than to write the
// spectrum to memory and to read it back.

namespace pyunetsep::cuda {

void mask_wave(const MaskWave& args, Queue queue) { masked_waves<SpectrumOfWave>(args, args.inverse, queue); }

}  // namespace pyunetsep::cuda
