// Which instruction set runs.
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "flashint8/cpu.h"
#include "kernels.h"

#ifdef FLASHINT8_CPU_X86
#include <cpuid.h>
#endif

namespace flashint8::cpu {
namespace {

#ifdef FLASHINT8_CPU_X86
// What the processor has and the operating system keeps across context switches. Asked by hand:
// compilers differ in the names that __builtin_cpu_supports knows.
struct Features {
  bool avx2 = false;  // with FMA and F16C
  bool avx512 = false;
  bool avx512_bf16 = false;  // with VNNI

  Features() {
    const auto bit = [](unsigned word, int i) { return ((word >> i) & 1u) != 0; };
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    const bool fma = bit(c, 12), osxsave = bit(c, 27), avx = bit(c, 28), f16c = bit(c, 29);
    if (!osxsave || !avx || !fma || !f16c) return;
    unsigned kept = 0, kept_high = 0;
    __asm__("xgetbv" : "=a"(kept), "=d"(kept_high) : "c"(0));
    constexpr unsigned kYmm = 0x06, kZmm = 0xe0;
    if ((kept & kYmm) != kYmm || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    avx2 = bit(b, 5);
    avx512 = avx2 && (kept & kZmm) == kZmm && bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);
    const bool vnni = bit(c, 11);
    if (!avx512 || !vnni || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return;
    avx512_bf16 = bit(a, 5);
  }
};
#endif

// What this machine runs, widest last.
std::vector<const Kernels*> supported_kernels() {
  std::vector<const Kernels*> list = {&portable_kernels()};
#ifdef FLASHINT8_CPU_X86
  const Features features;
  if (features.avx2) list.push_back(&avx2_kernels());
  if (features.avx512) list.push_back(&avx512_kernels());
  if (features.avx512_bf16) list.push_back(&avx512_bf16_kernels());
#endif
  return list;
}

const std::vector<const Kernels*>& supported() {
  static const std::vector<const Kernels*> list = supported_kernels();
  return list;
}

std::string isa_names(const char* separator) {
  std::string joined;
  for (const Kernels* kernels : supported()) {
    if (!joined.empty()) joined += separator;
    joined += kernels->name;
  }
  return joined;
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
          std::string("FLASHINT8_CPU_ISA is ") + wanted + ", this machine runs " + isa_names(", ")};
}

}  // namespace

const Kernels& active_kernels() {
  static const Selection selection = select();
  if (selection.kernels == nullptr) throw std::invalid_argument(selection.error);
  return *selection.kernels;
}

const char* isa_name() { return active_kernels().name; }

const char* isa_supported() {
  static const std::string names = isa_names(",");
  return names.c_str();
}

}  // namespace flashint8::cpu
