#include "level.h"
#include "parallel.h"
#include "simd.h"

// Batch norm in training, with the activation and the dropout around it: the statistics of a map, what it becomes, and
// the way back. Each is one pass over the maps, the way back two. Bound by memory.
//
// A task takes a stretch of one block of channels of one image. Sums over the map are those of the stretches, added up
// in their order in double precision, so they do not depend on how the work is shared.

namespace pyunetsep::cpu::PYUNETSEP_SIMD {
namespace {

constexpr int kParts = kBlock / kLanes;  // vectors a block of channels
constexpr int64_t kStretch = 512;        // pixels: two maps of them lie in the first or second cache level

// Sums that are kept of one, and of how many pixels: shorter ones lose less to rounding, and the first need not wait
// for each other.
constexpr int kAtOnce = 4;
constexpr int64_t kRun = 128;
inline Vec sum(const Vec (&parts)[kAtOnce]) { return (parts[0] + parts[1]) + (parts[2] + parts[3]); }

// Adds up `Sums` vectors of each pixel, which add(pixel, sums) adds to an array of so many.
template <int Sums, typename Add>
void sum_up(int64_t pixels, Vec* sums, const Add& add) {
  for (int k = 0; k < Sums; ++k) sums[k] = Vec{};
  for (int64_t begin = 0; begin < pixels; begin += kRun) {
    Vec of_run[Sums][kAtOnce] = {};
    for (int64_t i = begin; i < min(pixels, begin + kRun); ++i) {
      Vec values[Sums];
      add(i, values);
      for (int k = 0; k < Sums; ++k) of_run[k][i % kAtOnce] += values[k];
    }
    for (int k = 0; k < Sums; ++k) sums[k] += sum(of_run[k]);
  }
}

// A stretch of a map, and where its block's channels begin among the map's parameters.
struct Stretch {
  int64_t image, block, pixel, pixels;
  int64_t at;  // in the map
};

struct Stretches {
  int64_t blocks, pixels, of_block, count;

  template <typename T>
  explicit Stretches(const Normalisation<T>& a)
      : blocks(ceil_div(a.channels, kBlock)),
        pixels(a.pixels),
        of_block(ceil_div(a.pixels, kStretch)),
        count(a.batch * blocks * of_block) {}

  Stretch operator[](int64_t task) const {
    const int64_t pixel = task % of_block * kStretch, block = task / of_block % blocks,
                  image = task / of_block / blocks;
    return {image, block, pixel, min(kStretch, pixels - pixel), ((image * blocks + block) * pixels + pixel) * kBlock};
  }
};

// max(slope x, x), as the inference's epilogue has it.
inline Vec activated(Vec x, Vec slope) { return max(slope * x, x); }

// 1 where the activation passes, else its slope.
inline Vec activation_gradient(Vec x, Vec slope) { return x > Vec{} ? broadcast(1.0f) : slope; }

inline Bits mixed(Bits number, int shift, uint32_t factor) { return (number ^ (number >> shift)) * factor; }

// The factors of dropout for a vector of channels. The hash is Wang and Ettinger's "triple32", of which the first round
// mixes the place alone; pyunetsep/dropout.py has the same.
class Dropping {
 public:
  template <typename T>
  Dropping(const Normalisation<T>& a, int64_t image, int64_t channel)
      : seed_(static_cast<uint32_t>(a.dropout.seeds ? a.dropout.seeds[image] : 0)),
        threshold_(a.dropout.threshold),
        factor_(broadcast(a.dropout.factor)) {
    for (int lane = 0; lane < kLanes; ++lane) first_[lane] = static_cast<uint32_t>((channel + lane) * a.pixels);
  }

  Vec operator()(int64_t pixel) const {
    Bits number = mixed(first_ + static_cast<uint32_t>(pixel), 17, 0xed5ad4bbU) + seed_;
    number = mixed(mixed(number, 11, 0xac4c1b51U), 15, 0x31848babU);
    return (IntVec)number >= threshold_ ? factor_ : Vec{};
  }

 private:
  uint32_t seed_;
  int32_t threshold_;
  Vec factor_;
  Bits first_;
};

// Calls body(stretch, part, to) for each vector of channels of each stretch, which leaves its `Sums` vectors at `to`.
template <int Sums, typename T, typename Body>
void for_each_stretch(const Normalisation<T>& a, double* sums, const Body& body) {
  const Stretches stretches(a);
  parallel_tasks(stretches.count, a.threads, [&](int64_t task, int64_t) {
    for (int part = 0; part < kParts; ++part) {
      Vec of_stretch[Sums];
      body(stretches[task], part, of_stretch);
      for (int i = 0; i < Sums; ++i) {
        for (int lane = 0; lane < kLanes; ++lane) {
          sums[(task * Sums + i) * kBlock + part * kLanes + lane] = of_stretch[i][lane];
        }
      }
    }
  });
}

// Calls body(channel, pixels, sums) for the stretches of each channel in their order; sums are kBlock apart.
template <int Sums, typename T, typename Body>
void for_each_sum(const Normalisation<T>& a, const double* sums, const Body& body) {
  const Stretches stretches(a);
  for (int64_t task = 0; task < stretches.count; ++task) {
    const Stretch stretch = stretches[task];
    for (int64_t lane = 0; lane < kBlock; ++lane) {
      body(stretch.block * kBlock + lane, static_cast<double>(stretch.pixels), sums + task * Sums * kBlock + lane);
    }
  }
}

// Gradients of z and of p, and p's distance from its mean in deviations.
template <bool Drops, typename T>
class Backward {
 public:
  Backward(const Normalisation<T>& a, const NormGradient<T>& to, const Stretch& stretch, int part)
      : channel_(stretch.block * kBlock + part * kLanes),
        x_(a.x + stretch.at + part * kLanes),
        gradient_(to.gradient + stretch.image * to.gradient_stride + part * kLanes +
                  (stretch.block * a.pixels + stretch.pixel) * kBlock),
        pixel_(stretch.pixel),
        inner_slope_(broadcast(a.inner_slope)),
        slope_(broadcast(a.slope)),
        mean_(load(a.mean + channel_)),
        scale_(load(a.scale + channel_)),
        bias_(load(a.bias + channel_)),
        inverse_deviation_(load(to.inverse_deviation + channel_)),
        dropping_(a, stretch.image, channel_) {}

  // Of pixel i of the stretch.
  void operator()(int64_t i, Vec& of_z, Vec& normal) const {
    const Vec distance = activated(load(x_ + i * kBlock), inner_slope_) - mean_;
    normal = distance * inverse_deviation_;
    of_z = load(gradient_ + i * kBlock) * activation_gradient(distance * scale_ + bias_, slope_);
    if constexpr (Drops) of_z *= dropping_(pixel_ + i);
  }

  int64_t channel() const { return channel_; }
  Vec scale() const { return scale_; }
  Vec inner_gradient(int64_t i) const { return activation_gradient(load(x_ + i * kBlock), inner_slope_); }

 private:
  int64_t channel_;
  const T *x_, *gradient_;
  int64_t pixel_;
  Vec inner_slope_, slope_, mean_, scale_, bias_, inverse_deviation_;
  Dropping dropping_;
};

template <bool Drops, typename T>
void apply(const Normalisation<T>& a, T* y) {
  const Stretches stretches(a);
  parallel_tasks(stretches.count, a.threads, [&](int64_t task, int64_t) {
    const Stretch stretch = stretches[task];
    const Vec inner_slope = broadcast(a.inner_slope), slope = broadcast(a.slope);
    for (int part = 0; part < kParts; ++part) {
      const int64_t channel = stretch.block * kBlock + part * kLanes, at = stretch.at + part * kLanes;
      const Vec mean = load(a.mean + channel), scale = load(a.scale + channel), bias = load(a.bias + channel);
      const Dropping dropping(a, stretch.image, channel);
      for (int64_t i = 0; i < stretch.pixels; ++i) {
        const Vec distance = activated(load(a.x + at + i * kBlock), inner_slope) - mean;
        Vec z = activated(distance * scale + bias, slope);
        if constexpr (Drops) z *= dropping(stretch.pixel + i);
        store(y + at + i * kBlock, z);
      }
    }
  });
}

template <bool Drops, typename T>
void sum_gradients(const Normalisation<T>& a, const NormGradient<T>& to) {
  for_each_stretch<2>(a, to.scratch, [&](const Stretch& stretch, int part, Vec* sums) {
    const Backward<Drops, T> backward(a, to, stretch, part);
    sum_up<2>(stretch.pixels, sums, [&](int64_t i, Vec* of_pixel) {
      Vec normal;
      backward(i, of_pixel[0], normal);
      of_pixel[1] = of_pixel[0] * normal;
    });
  });
  const int64_t channels = Stretches(a).blocks * kBlock;
  double* const bias = to.scratch + 2 * Stretches(a).count * kBlock;
  double* const weight = bias + channels;
  std::memset(bias, 0, 2 * channels * sizeof(double));
  for_each_sum<2>(a, to.scratch, [&](int64_t channel, double, const double* sums) {
    bias[channel] += sums[0];
    weight[channel] += sums[kBlock];
  });
  for (int64_t channel = 0; channel < channels; ++channel) {
    to.of_bias[channel] = static_cast<float>(bias[channel]);
    to.of_weight[channel] = static_cast<float>(weight[channel]);
  }
}

template <bool Drops, typename T>
void differentiate(const Normalisation<T>& a, const NormGradient<T>& to) {
  const float share = static_cast<float>(1 / (static_cast<double>(a.batch) * static_cast<double>(a.pixels)));
  const Stretches stretches(a);
  parallel_tasks(stretches.count, a.threads, [&](int64_t task, int64_t) {
    const Stretch stretch = stretches[task];
    for (int part = 0; part < kParts; ++part) {
      const Backward<Drops, T> backward(a, to, stretch, part);
      const Vec mean = share * load(to.of_bias + backward.channel());
      const Vec mean_by_normal = share * load(to.of_weight + backward.channel());
      T* of_x = to.of_x + stretch.at + part * kLanes;
      for (int64_t i = 0; i < stretch.pixels; ++i) {
        Vec of_z, normal;
        backward(i, of_z, normal);
        const Vec of_p = backward.scale() * (of_z - mean - normal * mean_by_normal);
        store(of_x + i * kBlock, of_p * backward.inner_gradient(i));
      }
    }
  });
}

template <typename T>
int64_t norm_scratch_size(const Normalisation<T>& a) {
  const Stretches stretches(a);
  return (2 * stretches.count + 3 * stretches.blocks) * kBlock;
}

template <typename T>
void norm_statistics(const Normalisation<T>& a, const NormStatistics& to) {
  const Vec inner_slope = broadcast(a.inner_slope);
  // Each stretch's mean, and the squares of the distances from it: no difference of large sums.
  for_each_stretch<2>(a, to.scratch, [&](const Stretch& stretch, int part, Vec* sums) {
    const T* x = a.x + stretch.at + part * kLanes;
    const auto value = [&](int64_t i) { return activated(load(x + i * kBlock), inner_slope); };
    sum_up<1>(stretch.pixels, sums, [&](int64_t i, Vec* of_pixel) { *of_pixel = value(i); });
    const Vec mean = sums[0] / static_cast<float>(stretch.pixels);
    sum_up<1>(stretch.pixels, sums + 1, [&](int64_t i, Vec* of_pixel) {
      const Vec distance = value(i) - mean;
      *of_pixel = distance * distance;
    });
    sums[0] = mean;
  });
  // Joined pair by pair, after Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
  // Sample Variances", 1979.
  const int64_t channels = Stretches(a).blocks * kBlock;
  double* const mean = to.scratch + 2 * Stretches(a).count * kBlock;
  double* const square = mean + channels;
  double* const count = square + channels;
  std::memset(mean, 0, 3 * channels * sizeof(double));
  for_each_sum<2>(a, to.scratch, [&](int64_t channel, double pixels, const double* sums) {
    const double distance = sums[0] - mean[channel], all = count[channel] + pixels;
    mean[channel] += distance * pixels / all;
    square[channel] += sums[kBlock] + distance * distance * count[channel] * pixels / all;
    count[channel] = all;
  });
  for (int64_t channel = 0; channel < channels; ++channel) {
    to.mean[channel] = static_cast<float>(mean[channel]);
    to.variance[channel] = static_cast<float>(square[channel] / count[channel]);
  }
}

// To [blocks, kBlock].
template <typename T>
void channel_sums(const Normalisation<T>& a, float* to, double* scratch) {
  for_each_stretch<1>(a, scratch, [&](const Stretch& stretch, int part, Vec* sums) {
    const T* x = a.x + stretch.at + part * kLanes;
    sum_up<1>(stretch.pixels, sums, [&](int64_t i, Vec* of_pixel) { *of_pixel = load(x + i * kBlock); });
  });
  const int64_t channels = Stretches(a).blocks * kBlock;
  double* const sums = scratch + Stretches(a).count * kBlock;
  std::memset(sums, 0, channels * sizeof(double));
  for_each_sum<1>(a, scratch, [&](int64_t channel, double, const double* sum) { sums[channel] += sum[0]; });
  for (int64_t channel = 0; channel < channels; ++channel) to[channel] = static_cast<float>(sums[channel]);
}

template <typename T>
void norm_apply(const Normalisation<T>& args, T* y) {
  args.dropout.seeds ? apply<true>(args, y) : apply<false>(args, y);
}

template <typename T>
void norm_sums(const Normalisation<T>& args, const NormGradient<T>& to) {
  args.dropout.seeds ? sum_gradients<true>(args, to) : sum_gradients<false>(args, to);
}

template <typename T>
void norm_gradient(const Normalisation<T>& args, const NormGradient<T>& to) {
  args.dropout.seeds ? differentiate<true>(args, to) : differentiate<false>(args, to);
}

}  // namespace

extern const NormKernels<float> kNorm;
extern const NormKernels<Bfloat16> kBfloat16Norm;
const NormKernels<float> kNorm{&norm_scratch_size, &norm_statistics, &norm_apply,
                               &norm_sums,         &norm_gradient,   &channel_sums};
const NormKernels<Bfloat16> kBfloat16Norm{&norm_scratch_size, &norm_statistics, &norm_apply,
                                          &norm_sums,         &norm_gradient,   &channel_sums};

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
