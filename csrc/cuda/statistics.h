// Statistics of a map's channels from those of its parts.
#pragma once
#include <algorithm>

#include "unet.h"

namespace pyunetsep::cuda {

// Parts are joined in stretches first where they are many.
struct Stretches {
  static constexpr int64_t kFewParts = 512, kMost = 64;
  int64_t count;
  explicit Stretches(int64_t parts) : count(parts <= kFewParts ? 0 : std::min(kMost, parts / (kFewParts / 4))) {}
};

struct PartStatistics {
  float* moments;  // [parts and stretches, channels, 2]: mean, and squared distances from it
  float* counts;   // [parts and stretches]: of how many values
  int64_t parts, channels;

  PartStatistics(float* memory, int64_t parts, int64_t channels)
      : moments(memory),
        counts(memory + (parts + Stretches(parts).count) * channels * 2),
        parts(parts),
        channels(channels) {}
  static int64_t floats(int64_t parts, int64_t channels) {
    return (parts + Stretches(parts).count) * (channels * 2 + 1);
  }
};
void join_statistics(const PartStatistics& from, const StatisticsRun& to, Queue queue);

}  // namespace pyunetsep::cuda
