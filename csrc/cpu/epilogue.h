// What happens to a convolution's sums on their way out, in registers: bias, batch norm, activation.
#pragma once
#include "../kernels.h"
#include "simd.h"

namespace pyunetsep::cpu::PYUNETSEP_SIMD {

// `Raw`: the sums are stored too; `Before`, `After`: there is a scale and a shift before, or after, the activation.
template <bool Raw, bool Before, bool After>
class Epilogue {
 public:
  // For the vector of channels that begins at `channel`.
  Epilogue(const Activation& activation, int64_t channel)
      : raw_(activation.raw),
        activated_(activation.activated),
        slope_(broadcast(activation.slope)),
        stream_(activation.stream) {
    bias_ = load(activation.bias + channel);
    if constexpr (Before) {
      before_scale_ = load(activation.before_scale + channel);
      before_shift_ = load(activation.before_shift + channel);
    }
    if constexpr (After) {
      after_scale_ = load(activation.after_scale + channel);
      after_shift_ = load(activation.after_shift + channel);
    }
  }

  void operator()(Vec sum, int64_t to) const {
    sum += bias_;
    if constexpr (Raw) {
      put(raw_ + to, sum);
      if (!activated_) return;
    }
    if constexpr (Before) sum = sum * before_scale_ + before_shift_;
    sum = max(slope_ * sum, sum);  // in this order NaN stays NaN
    if constexpr (After) sum = sum * after_scale_ + after_shift_;
    put(activated_ + to, sum);
  }

 private:
  void put(float* to, Vec vec) const { stream_ ? stream(to, vec) : store(to, vec); }

  float* raw_;
  float* activated_;
  Vec slope_, bias_, before_scale_, before_shift_, after_scale_, after_shift_;
  bool stream_;
};

// Calls body.operator()<Raw, Before, After>() for what the activation has.
template <typename Body>
static inline void with_epilogue(const Activation& activation, Body body) {
  const auto with_raw = [&]<bool Raw>() {
    if (activation.before_scale) return body.template operator()<Raw, true, false>();
    if (activation.after_scale) return body.template operator()<Raw, false, true>();
    return body.template operator()<Raw, false, false>();
  };
  activation.raw ? with_raw.template operator()<true>() : with_raw.template operator()<false>();
}

}  // namespace pyunetsep::cpu::PYUNETSEP_SIMD
