#include "names.h"

#include <c10/util/Exception.h>

namespace pyunetsep {

Alignment alignment_of(const std::string& name) {
  if (name == "pytorch") return Alignment::pytorch;
  TORCH_CHECK_VALUE(name == "tensorflow", "alignment: got '", name, "', wants pytorch or tensorflow");
  return Alignment::tensorflow;
}

Upsampling upsampling_of(const std::string& name) {
  if (name == "transposed") return Upsampling::transposed;
  TORCH_CHECK_VALUE(name == "nearest", "upsampling: got '", name, "', wants transposed or nearest");
  return Upsampling::nearest;
}

}  // namespace pyunetsep
