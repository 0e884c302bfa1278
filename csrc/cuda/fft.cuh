// The Fourier transform of a real frame, and its inverse, by a team of threads with 16 complex points each.
//
// A frame of n_fft samples is taken as kPoints = n_fft / 2 complex points z[m] = x[2 m] + i x[2 m + 1]. These are
// transformed in passes of small transforms ("columns") in registers, between which the points change hands through
// shared memory. What comes out, Z, is taken apart into the transforms of the even and the odd samples,
//     E[k] = (Z[k] + conj Z[-k]) / 2,  O[k] = -i (Z[k] - conj Z[-k]) / 2,
// from which X[k] = E[k] + w^k O[k] and X[kPoints - k] = conj(E[k] - w^k O[k]) are made, w = exp(-2 pi i / n_fft).
//
// In the last pass column c of T = kPoints / 8 gives Z[c + T i], so that columns c and T - c hold each other's mirror
// images. A thread has both, and no more of the spectrum than it can make by itself: bins in registers. (Columns 0 and
// T / 2 are their own mirror images; thread 0 has them.) The inverse is the same way back, pass by pass.
//
// Between passes 16 KB go to and fro for n_fft = 4096. Points are padded by one in 16: no access of 16 neighbouring
// threads is to one bank twice, from n_fft = 512 on.
#pragma once
#include "device.cuh"

namespace pyunetsep::cuda {

constexpr int kLastRadix = 8;  // a thread's 16 points are two columns of the last pass

// The transform runs in passes; this is the radix of the one that follows those whose radices multiply to `length`. The
// first is 16 where there is room for it: the later passes then write 16 neighbours each, in different banks of shared
// memory.
__host__ __device__ constexpr int fft_radix(int points, int length) {
  const int rest = points / (length * kLastRadix);  // for all passes but the last
  if (rest == 1) return kLastRadix;
  if (rest == 32 && length > 1) return 4;  // 4 * 8 is less work than 16 * 2
  return rest < 16 ? rest : 16;
}

// The table of roots: for each pass after length L > 1, of radix R, [R - 1, L] of exp(-2 pi i r j / (L R)) with r from
// 1; of the last pass the lower half alone, [7, L / 2 + 1]; then [points / 2] of exp(-2 pi i k / (2 points)) / 2.
// Where in it the part of the pass after `length` begins, or the part behind the passes if that is `points`:
__host__ __device__ constexpr int first_root(int points, int length) {
  int roots = 0, radix = 0;
  for (int done = 1; done < length; done *= radix) {
    radix = fft_radix(points, done);
    if (done > 1) roots += (radix - 1) * (done * radix == points ? done / 2 + 1 : done);
  }
  return roots;
}

__host__ __device__ constexpr int root_count(int points) { return first_root(points, points) + points / 2; }

struct alignas(8) Complex {
  float re, im;
};

__device__ __forceinline__ Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
__device__ __forceinline__ Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
__device__ __forceinline__ Complex operator*(Complex a, Complex b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
__device__ __forceinline__ Complex operator*(Complex a, float b) { return {a.re * b, a.im * b}; }
__device__ __forceinline__ Complex conj(Complex a) { return {a.re, -a.im}; }
__device__ __forceinline__ Complex times_minus_i(Complex a) { return {a.im, -a.re}; }

// At an address that is a multiple of 8.
__device__ __forceinline__ Complex load_complex(const void* p) {
  const uint2 bits = load8(p);
  return {__uint_as_float(bits.x), __uint_as_float(bits.y)};
}
__device__ __forceinline__ void store_complex(void* p, Complex a) {
  store8(p, make_uint2(__float_as_uint(a.re), __float_as_uint(a.im)));
}

// x[k] = sum_n exp(-2 pi i n k / kRadix) x[n] of numbers kStride apart.
template <int kRadix, int kStride>
__device__ __forceinline__ void transform_column(Complex* x) {
  if constexpr (kRadix == 2) {
    const Complex difference = x[0] - x[kStride];
    x[0] = x[0] + x[kStride];
    x[kStride] = difference;
  } else {
    constexpr int kHalf = kRadix / 2;
    Complex even[kHalf], odd[kHalf];
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      even[i] = x[2 * i * kStride];
      odd[i] = x[(2 * i + 1) * kStride];
    }
    transform_column<kHalf, 1>(even);
    transform_column<kHalf, 1>(odd);
    if constexpr (kRadix == 4) {
      odd[1] = times_minus_i(odd[1]);
    } else {
      constexpr float kRoot = 0.70710678118654752f;  // of 1/2
      constexpr int kEighth = kRadix / 8;
      const Complex first = odd[kEighth], third = odd[3 * kEighth];
      odd[kEighth] = Complex{first.re + first.im, first.im - first.re} * kRoot;
      odd[2 * kEighth] = times_minus_i(odd[2 * kEighth]);
      odd[3 * kEighth] = Complex{third.im - third.re, -third.re - third.im} * kRoot;
      if constexpr (kRadix == 16) {
        constexpr float kCos = 0.92387953251128676f, kSin = 0.38268343236508977f;  // of pi / 8
        odd[1] = odd[1] * Complex{kCos, -kSin};
        odd[3] = odd[3] * Complex{kSin, -kCos};
        odd[5] = odd[5] * Complex{-kSin, -kCos};
        odd[7] = odd[7] * Complex{-kCos, -kSin};
      }
    }
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      x[i * kStride] = even[i] + odd[i];
      x[(kHalf + i) * kStride] = even[i] - odd[i];
    }
  }
}

template <int kPoints>
class FrameTransform {
 public:
  static constexpr int kThreads = kPoints / 16;                       // of a team
  static constexpr int kTeams = kThreads < 128 ? 128 / kThreads : 1;  // of a block
  static constexpr int kBlock = kTeams * kThreads;                    // threads
  static constexpr bool kInWarps = kThreads <= 32;                    // a team waits for its own warp alone
  static constexpr int kSharedPoints = kPoints + (kPoints >= 128 ? kPoints / 16 : 0);              // of a team
  static constexpr int kSharedBytes = kTeams * kSharedPoints * static_cast<int>(sizeof(Complex));  // of a block

  // What a thread has of a spectrum: bin(i), and its mirror image kPoints - bin(i). The first and the last bin, which
  // are thread 0's number 0, are real; their imaginary parts hold real and imaginary part of bin kPoints / 2 instead.
  struct Bins {
    Complex low[8], high[8];
  };

  // `shared` has kSharedBytes, for all teams; all threads of the block call the same functions together.
  __device__ __forceinline__ FrameTransform(void* shared, const float* roots, int thread_of_block)
      : shared_(static_cast<Complex*>(shared) + thread_of_block / kThreads * kSharedPoints),
        roots_(roots),
        thread_(thread_of_block % kThreads),
        partner_(kColumns - (thread_ == 0 ? kColumns / 2 : thread_)) {}

  __device__ __forceinline__ int thread() const { return thread_; }
  __device__ __forceinline__ int bin(int i) const {  // below kPoints / 2
    return i < 4 ? thread_ + kColumns * i : partner_ + kColumns * (i - 4);
  }

  // z[s] = point thread + kThreads s -> its spectrum. Destroys z.
  __device__ __forceinline__ void forward(Complex (&z)[16], Bins& x) const {
    forward_passes<1>(z);
    Complex points[8], mirrors[8];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      points[i] = z[i];
      mirrors[i] = thread_ > 0 ? z[8 + (8 - i) % 8] : z[(8 - i) % 8];
      points[4 + i] = z[8 + i + 1];
      mirrors[4 + i] = thread_ > 0 ? z[7 - i] : z[8 + (8 - i) % 8];
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const Complex even = points[i] + conj(mirrors[i]);
      const Complex odd = times_minus_i(points[i] - conj(mirrors[i])) * halved_root(bin(i));
      x.low[i] = {0.5f * even.re + odd.re, 0.5f * even.im + odd.im};
      x.high[i] = {0.5f * even.re - odd.re, odd.im - 0.5f * even.im};
    }
    if (thread_ == 0) {
      x.low[0].im = z[4].re;
      x.high[0].im = -z[4].im;
    }
  }

  // A spectrum -> z[s] = n_fft times point thread + kThreads s, with real and imaginary part exchanged: so the inverse
  // is made of forward transforms.
  __device__ __forceinline__ void backward(const Bins& x, Complex (&z)[16]) const {
    Complex points[8], mirrors[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      Complex low = x.low[i], high = conj(x.high[i]);
      if (i == 0 && thread_ == 0) low.im = high.im = 0;
      const Complex even = low + high, odd = (low - high) * conj(halved_root(bin(i)));
      points[i] = {even.im + 2 * odd.re, even.re - 2 * odd.im};
      mirrors[i] = {2 * odd.re - even.im, even.re + 2 * odd.im};
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      z[i] = points[i];
      z[8 + i + 1] = points[4 + i];
      z[7 - i] = thread_ > 0 ? mirrors[4 + i] : mirrors[(i + 1) % 4];
      z[8 + (8 - i) % 8] = thread_ > 0 ? mirrors[i] : mirrors[4 + i];
    }
    if (thread_ == 0) z[4] = {-2 * x.high[0].im, 2 * x.low[0].im};
    backward_passes<1>(z);
  }

 private:
  static constexpr int kColumns = kPoints / kLastRadix;  // of the last pass

  // Where a point lies: linear, as long as multiples of 16, or less than 16 to them, are added.
  static constexpr __device__ __forceinline__ int padded(int point) {
    return kPoints >= 128 ? point + point / 16 : point;
  }

  __device__ __forceinline__ Complex root(int at) const { return load_complex(roots_ + 2 * at); }
  __device__ __forceinline__ Complex halved_root(int k) const { return root(first_root(kPoints, kPoints) + k); }

  // Other threads of the team write what this one reads next, or the reverse.
  static __device__ __forceinline__ void meet() {
    if constexpr (kInWarps) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }

  // Calls act(register, point) for the 16 points, in the order in which ...
  template <typename Act>  // ... a pass but the last reads them
  __device__ __forceinline__ void for_spread(Act act) const {
    const int first = padded(thread_);
#pragma unroll
    for (int s = 0; s < 16; ++s) act(s, first + padded(kThreads * s));
  }
  template <int kLength, typename Act>  // ... the pass after kLength writes them
  __device__ __forceinline__ void for_written(Act act) const {
    constexpr int kRadix = fft_radix(kPoints, kLength), kCount = 16 / kRadix;
    const int first = padded(thread_ / kLength * kLength * kRadix + thread_ % kLength);
#pragma unroll
    for (int s = 0; s < 16; ++s) act(s, first + padded(kThreads * kRadix * (s % kCount) + kLength * (s / kCount)));
  }
  template <typename Act>  // ... the last pass reads them
  __device__ __forceinline__ void for_columns(Act act) const {
    const int first = padded(thread_), second = padded(partner_);
#pragma unroll
    for (int s = 0; s < 8; ++s) act(s, first + padded(kColumns * s));
#pragma unroll
    for (int s = 0; s < 8; ++s) act(8 + s, second + padded(kColumns * s));
  }

  // Multiplies by the roots between the passes before kLength and the next.
  template <int kLength>
  __device__ __forceinline__ void turn(Complex (&z)[16]) const {
    constexpr int kRadix = fft_radix(kPoints, kLength), kCount = 16 / kRadix;
#pragma unroll
    for (int r = 1; r < kRadix; ++r) {
      const Complex w = root(first_root(kPoints, kLength) + (r - 1) * kLength + thread_ % kLength);
#pragma unroll
      for (int i = 0; i < kCount; ++i) z[i + kCount * r] = z[i + kCount * r] * w;
    }
  }
  // Before the last pass column T - c has w^(r (T - c)) = exp(-2 pi i r / 8) conj(w^(r c)). Without the first factor,
  // as here, its result i comes out as number i + 1: see `forward`.
  __device__ __forceinline__ void turn_columns(Complex (&z)[16]) const {
    constexpr int kFirst = first_root(kPoints, kColumns), kWidth = kColumns / 2 + 1;
#pragma unroll
    for (int r = 1; r < 8; ++r) {
      const Complex w = root(kFirst + (r - 1) * kWidth + thread_);
      Complex of_partner = w;
      if (thread_ == 0) of_partner = root(kFirst + (r - 1) * kWidth + kColumns / 2);
      z[r] = z[r] * w;
      z[8 + r] = z[8 + r] * conj(of_partner);
    }
  }

  template <int kLength>
  static __device__ __forceinline__ void transform_columns(Complex (&z)[16]) {
    constexpr int kRadix = fft_radix(kPoints, kLength), kCount = 16 / kRadix;
#pragma unroll
    for (int i = 0; i < kCount; ++i) transform_column<kRadix, kCount>(z + i);
  }

  // The pass after kLength, and all behind it.
  template <int kLength>
  __device__ __forceinline__ void forward_passes(Complex (&z)[16]) const {
    if constexpr (kLength == kColumns) {
      turn_columns(z);
      transform_column<8, 1>(z);
      transform_column<8, 1>(z + 8);
    } else {
      constexpr int kNext = kLength * fft_radix(kPoints, kLength);
      if constexpr (kLength > 1) turn<kLength>(z);
      transform_columns<kLength>(z);
      meet();
      for_written<kLength>([&](int s, int at) { shared_[at] = z[s]; });
      meet();
      const auto read = [&](int s, int at) { z[s] = shared_[at]; };
      if constexpr (kNext == kColumns) {
        for_columns(read);
      } else {
        for_spread(read);
      }
      forward_passes<kNext>(z);
    }
  }

  // The way back: all passes behind the one after kLength, from the last on, and then that one.
  template <int kLength>
  __device__ __forceinline__ void backward_passes(Complex (&z)[16]) const {
    if constexpr (kLength == kColumns) {
      transform_column<8, 1>(z);
      transform_column<8, 1>(z + 8);
      turn_columns(z);
    } else {
      constexpr int kNext = kLength * fft_radix(kPoints, kLength);
      backward_passes<kNext>(z);
      meet();
      const auto write = [&](int s, int at) { shared_[at] = z[s]; };
      if constexpr (kNext == kColumns) {
        for_columns(write);
      } else {
        for_spread(write);
      }
      meet();
      for_written<kLength>([&](int s, int at) { z[s] = shared_[at]; });
      transform_columns<kLength>(z);
      if constexpr (kLength > 1) turn<kLength>(z);
    }
  }

  Complex* shared_;     // [kSharedPoints], the team's
  const float* roots_;  // see first_root
  int thread_;          // of the team
  int partner_;         // the column that goes with column `thread_`
};

// Points of a wave's frame, weighted: z[s] = point thread + kThreads s.
template <int kPoints>
__device__ __forceinline__ void load_points(const float* wave, const float* window, int thread, Complex (&z)[16]) {
  const bool in_pairs = reinterpret_cast<uintptr_t>(wave) % 8 == 0;
#pragma unroll
  for (int s = 0; s < 16; ++s) {
    const int at = 2 * (thread + kPoints / 16 * s);
    const Complex x = in_pairs ? load_complex(wave + at) : Complex{wave[at], wave[at + 1]};
    const Complex w = load_complex(window + at);
    z[s] = {x.re * w.re, x.im * w.im};
  }
}

// Calls body.template operator()<kPoints>() for the number of points.
template <typename Body>
void with_points(int64_t points, Body body) {
  switch (points) {
    case 16:
      return body.template operator()<16>();
    case 32:
      return body.template operator()<32>();
    case 64:
      return body.template operator()<64>();
    case 128:
      return body.template operator()<128>();
    case 256:
      return body.template operator()<256>();
    case 512:
      return body.template operator()<512>();
    case 1024:
      return body.template operator()<1024>();
    case 2048:
      return body.template operator()<2048>();
    case 4096:
      return body.template operator()<4096>();
  }
}

}  // namespace pyunetsep::cuda
