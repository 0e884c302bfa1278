#pragma once

namespace pyunetsep::cuda {

// What decides how work is cut into blocks.
struct DeviceFacts {
  int multiprocessors;
  int shared_bytes;         // that a block may have
  int shared_bytes_in_all;  // of a multiprocessor
};

}  // namespace pyunetsep::cuda
