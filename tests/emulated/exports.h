// The CUDA launchers with C linkage, for ctypes: what each file of exports needs.
#pragma once
#include <cstdint>
#include <exception>
#include <string>

#include "kernels.h"

namespace exports {

constexpr pyunetsep::cuda::Queue kQueue{0, nullptr};

// Null, or the message of the exception that body threw.
template <typename Body>
const char* message_of(Body body) {
  static std::string message;
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace exports
