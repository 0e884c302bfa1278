// Chooses the SIMD level, once, for the whole process; compiled for the baseline.
#include <atomic>
#include <stdexcept>

#include "level.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pyunetsep::cpu {

// PYUNETSEP_LEVELS is what CMakeLists.txt compiled, from the plainest to the widest: LEVEL(baseline) LEVEL(avx2) ...
#define LEVEL(name)          \
  namespace name {           \
  extern const Level kLevel; \
  }
PYUNETSEP_LEVELS
#undef LEVEL

namespace {

const Level* const kLevels[] = {
#define LEVEL(name) &name::kLevel,
    PYUNETSEP_LEVELS
#undef LEVEL
};

bool runs_here(const Level& level) {
  const std::string name = level.name;
#if defined(__x86_64__) || defined(__i386__)
  if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (name == "avx512") {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  }
#endif
  return name == "baseline";
}

const Level* widest() {
  const Level* best = kLevels[0];
  for (const Level* level : kLevels) {
    if (runs_here(*level)) best = level;
  }
  return best;
}

std::atomic<const Level*> chosen{nullptr};

}  // namespace

const Level& level() {
  const Level* current = chosen.load(std::memory_order_relaxed);
  if (!current) chosen.store(current = widest(), std::memory_order_relaxed);
  return *current;
}

#if defined(__x86_64__) && defined(__linux__)
bool has_matrix_unit() noexcept {
  static const bool has = [] {
    constexpr unsigned kTile = 1u << 24, kBfloat16 = 1u << 22;  // in edx of leaf 7
    constexpr long kRequest = 0x1023, kTileData = 18;           // ARCH_REQ_XCOMP_PERM, which Linux wants asked for
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
    if (!(edx & kTile) || !(edx & kBfloat16)) return false;
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  }();
  return has;
}
#else
bool has_matrix_unit() noexcept { return false; }
#endif

bool has_matrix_products() { return level().has_matrix_products(); }

void set_simd_level(const std::string& name) {
  std::string known, usable;
  for (const Level* level : kLevels) {
    known += std::string(known.empty() ? "" : ", ") + level->name;
    if (!runs_here(*level)) continue;
    usable += std::string(usable.empty() ? "" : ", ") + level->name;
    if (name == level->name) return chosen.store(level, std::memory_order_relaxed);
  }
  if (name == "auto") return chosen.store(widest(), std::memory_order_relaxed);
  throw std::invalid_argument("got '" + name + "', wants auto or, on this processor, one of " + usable +
                              " (built: " + known + ")");
}

std::string simd_level() { return level().name; }

std::vector<std::string> simd_levels() {
  std::vector<std::string> names;
  for (const Level* level : kLevels) {
    if (runs_here(*level)) names.emplace_back(level->name);
  }
  return names;
}

void ratio_mask(const RatioMask<float>& args) { level().ratio_mask_float(args); }
void ratio_mask(const RatioMask<double>& args) { level().ratio_mask_double(args); }
void overlap_add(const OverlapAdd<float>& args) { level().overlap_add_float(args); }
void overlap_add(const OverlapAdd<double>& args) { level().overlap_add_double(args); }
void stft(const Stft& args) { level().stft(args); }
void masked_istft(const MaskedIstft& args) { level().masked_istft(args); }
int64_t multiply_adds(int64_t threads, int64_t rounds) { return level().multiply_adds(threads, rounds); }

}  // namespace pyunetsep::cpu
