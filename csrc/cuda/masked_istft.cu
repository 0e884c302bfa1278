#include "masked_waves.cuh"

namespace pyunetsep::cuda {

void masked_istft(const MaskedIstft& args, Queue queue) { masked_waves<StoredSpectrum>(args, args, queue); }

}  // namespace pyunetsep::cuda
