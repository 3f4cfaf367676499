#include "workers.h"

#include <memory>
#include <new>

namespace flashint8::cpu {
namespace {

constexpr std::align_val_t kAlignment{64};

constexpr int64_t kKeptFloats = 8 << 20;  // more is given back by the next call that needs less

struct Release {
  void operator()(float* p) const { ::operator delete(p, kAlignment); }
};

}  // namespace

float* thread_scratch(int64_t floats) {
  // Kept between calls: fresh pages cost more than a small operator.
  thread_local std::unique_ptr<float, Release> memory;
  thread_local int64_t capacity = 0;
  if (floats > capacity || (capacity > kKeptFloats && floats <= kKeptFloats)) {
    memory.reset();
    capacity = 0;
    const size_t bytes = static_cast<size_t>(floats) * sizeof(float);
    memory.reset(static_cast<float*>(::operator new(bytes, kAlignment)));
    capacity = floats;
  }
  return memory.get();
}

}  // namespace flashint8::cpu
