#include "device.cuh"
#include "unet.h"

namespace pyunetsep::cuda {

DeviceFacts device_facts(int device) { return facts_of(device); }

}  // namespace pyunetsep::cuda
