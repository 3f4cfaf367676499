#include "cuda_device.h"

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "flashint8/build_info.h"
#include "flashint8/targets.h"

namespace flashint8::ops {
namespace {

constexpr int kMaxDevices = 64;
constexpr int kOldestCard = 80;  // mma.sync on 16-bit operands with k = 16, cp.async

void check_cuda(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(op) + ": CUDA error: " + cudaGetErrorString(error) + " (" +
                           cudaGetErrorName(error) + ")");
}

int attribute(const char* op, cudaDeviceAttr what, int device) {
  int value = 0;
  check_cuda(op, cudaDeviceGetAttribute(&value, what, device));
  return value;
}

[[noreturn]] void fail_architecture(const char* op, int compute_capability) {
  const std::string major = std::to_string(compute_capability / 10);
  const std::string minor = std::to_string(compute_capability % 10);
  const std::string built = std::string(op) + ": this GPU is sm_" + major + minor +
                            ", and flashint8's CUDA code was built for " + kCudaArchitectures;
  if (compute_capability < kOldestCard) {
    throw std::runtime_error(built + "; cards before sm_80 (Ampere) are not supported");
  }
  throw std::runtime_error(built + ". Rebuild for it: TORCH_CUDA_ARCH_LIST=" + major + "." + minor +
                           " pip install -e . --no-build-isolation");
}

// FLASHINT8_PLAN_CARD=86,30,101376 (compute capability, multiprocessors, bytes of shared memory a
// block): plans are made for that card, so that its kernels and tiles can be run and tested where
// it is not. Which code runs is still the real card's matter.
void apply_plan_card(const char* op, Card& card) {
  const char* text = std::getenv("FLASHINT8_PLAN_CARD");
  if (text == nullptr) return;
  int* const fields[] = {&card.compute_capability, &card.sm_count, &card.shared_memory_per_block};
  const char* const end = text + std::strlen(text);
  const char* position = text;
  for (int i = 0; i < 3; ++i) {
    const auto [next, error] = std::from_chars(position, end, *fields[i]);
    const bool last = i == 2;
    if (error != std::errc() || *fields[i] <= 0 || (last ? next != end : *next != ',')) {
      fail(op, ": FLASHINT8_PLAN_CARD must be compute_capability,sm_count,",
           "shared_memory_per_block as in 86,30,101376, got ", text);
    }
    position = next + 1;
  }
}

const Card& card_of(const char* op, int device) {
  static std::once_flag once[kMaxDevices];
  static Card cards[kMaxDevices];
  if (device < 0 || device >= kMaxDevices) fail(op, ": cuda:", device, " is past cuda:63");
  std::call_once(once[device], [&] {
    Card& card = cards[device];
    card.compute_capability = 10 * attribute(op, cudaDevAttrComputeCapabilityMajor, device) +
                              attribute(op, cudaDevAttrComputeCapabilityMinor, device);
    card.sm_count = attribute(op, cudaDevAttrMultiProcessorCount, device);
    card.shared_memory_per_block = attribute(op, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    card.code = code_version(kCudaArchitectures, card.compute_capability);
    card.own_code = has_own_code(kCudaArchitectures, card.compute_capability);
    apply_plan_card(op, card);
  });
  if (cards[device].code == 0) fail_architecture(op, cards[device].compute_capability);
  return cards[device];
}

}  // namespace

CudaCall::CudaCall(const char* op, const TensorView& tensor) : op_(op) {
  const int32_t device = tensor.device_index;
  if (torch::stable::accelerator::getCurrentDeviceIndex() != device) guard_.emplace(device);
  card_ = &card_of(op, device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  stream_ = static_cast<cudaStream_t>(stream);
}

void CudaCall::check(cudaError_t error) const { check_cuda(op_, error); }

}  // namespace flashint8::ops
