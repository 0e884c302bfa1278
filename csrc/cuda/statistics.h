// Statistics of a map's channels from those of its parts.
#pragma once
#include "unet.h"

namespace pyunetsep::cuda {

struct PartStatistics {
  const float* moments;  // [parts, channels, 2]: mean, and squared distances from it
  const float* counts;   // [parts]: of how many values
  int64_t parts, channels;
};
void join_statistics(const PartStatistics& from, const StatisticsRun& to, Queue queue);

}  // namespace pyunetsep::cuda
