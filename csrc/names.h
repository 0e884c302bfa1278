// What the ops call the kinds of convolutions.
#pragma once
#include <string>

#include "phases.h"

namespace pyunetsep {

Alignment alignment_of(const std::string& name);    // "pytorch" or "tensorflow"; throws c10::ValueError
Upsampling upsampling_of(const std::string& name);  // "transposed" or "nearest"

}  // namespace pyunetsep
