// Which instruction set runs.
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "flashint8/cpu.h"
#include "kernels.h"

namespace flashint8::cpu {
namespace {

// What this machine runs, widest last. The compiler's runtime asks cpuid and, through xgetbv,
// whether the operating system keeps the registers.
std::vector<const Kernels*> supported_kernels() {
  std::vector<const Kernels*> list = {&portable_kernels()};
#ifdef FLASHINT8_CPU_X86
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("f16c")) {
    return list;
  }
  list.push_back(&avx2_kernels());
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return list;
  }
  list.push_back(&avx512_kernels());
  if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) {
    list.push_back(&avx512_bf16_kernels());
  }
#endif
  return list;
}

const std::vector<const Kernels*>& supported() {
  static const std::vector<const Kernels*> list = supported_kernels();
  return list;
}

// The choice, and why there is none.
struct Selection {
  const Kernels* kernels = nullptr;
  std::string error;
};

Selection select() {
  const char* wanted = std::getenv("FLASHINT8_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return {supported().back(), ""};
  for (const Kernels* kernels : supported()) {
    if (std::string(wanted) == kernels->name) return {kernels, ""};
  }
  return {nullptr,
          std::string("FLASHINT8_CPU_ISA is ") + wanted + ", this machine runs " + isa_supported()};
}

}  // namespace

const Kernels& active_kernels() {
  static const Selection selection = select();
  if (selection.kernels == nullptr) throw std::invalid_argument(selection.error);
  return *selection.kernels;
}

const char* isa_name() { return active_kernels().name; }

const char* isa_supported() {
  static const std::string names = [] {
    std::string joined;
    for (const Kernels* kernels : supported()) {
      if (!joined.empty()) joined += ",";
      joined += kernels->name;
    }
    return joined;
  }();
  return names.c_str();
}

}  // namespace flashint8::cpu
