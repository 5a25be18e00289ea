// Selects the instruction set: the best that both the processor and the build support, or the one that the user names.
#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace cawa_fast {

std::vector<const Kernels*> supported_kernels() {
  std::vector<const Kernels*> sets;
#if defined(CAWA_FAST_PORTABLE)
  sets.push_back(&portable::kernels);
#endif
  sets.push_back(&baseline::kernels);
#if defined(CAWA_FAST_X86)
  // The features that -march=x86-64-v3 and x86-64-v4 allow the compiler to use. The checks include support by the
  // operating system.
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("lzcnt") &&
                  __builtin_cpu_supports("movbe") && __builtin_cpu_supports("popcnt");
  if (v3) sets.push_back(&avx2::kernels);
  if (v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    sets.push_back(&avx512::kernels);
  }
#endif
  return sets;
}

namespace {

const Kernels* find(const char* name, const char* what) {
  std::string names;
  for (const Kernels* set : supported_kernels()) {
    if (std::strcmp(set->name, name) == 0) return set;
    names += (names.empty() ? "" : ", ") + std::string(set->name);
  }
  throw std::invalid_argument(std::string(what) + name + ": this processor and this build have " + names);
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* set = chosen.load(std::memory_order_acquire);
  if (!set) {
    const char* wanted = std::getenv("CAWA_FAST_CPU");
    set = wanted && *wanted ? find(wanted, "CAWA_FAST_CPU=") : supported_kernels().back();
    chosen.store(set, std::memory_order_release);  // threads that race here store the same value
  }
  return *set;
}

void use_instruction_set(const std::string& name) { chosen.store(find(name.c_str(), ""), std::memory_order_release); }

}  // namespace cawa_fast
