#include "device.cuh"
#include "unet.h"

namespace pyunetsep::cuda {

int multiprocessors(int device) { return multiprocessor_count(device); }

}  // namespace pyunetsep::cuda
