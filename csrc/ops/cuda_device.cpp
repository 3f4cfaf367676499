#include "cuda_device.h"

#include <mutex>
#include <string_view>

#include "flashint8/build_info.h"

namespace flashint8::ops {
namespace {

constexpr int kMaxDevices = 64;
constexpr int kOldestCard = 80;  // mma.sync on 16-bit operands with k = 16, cp.async

// Whether code built for `target` ("80", "90a", "80-virtual") runs on a card: machine code within
// one major version, from its minor version up; architecture-specific code ("a") on that exact
// card; PTX on any newer one.
bool runs_on(std::string_view target, int compute_capability) {
  int built = 0;
  size_t i = 0;
  for (; i < target.size() && target[i] >= '0' && target[i] <= '9'; ++i) {
    built = built * 10 + (target[i] - '0');
  }
  const std::string_view suffix = target.substr(i);
  if (suffix == "a" || suffix == "a-real") return built == compute_capability;
  if (suffix == "-virtual") return built <= compute_capability;
  if (suffix == "a-virtual") return built == compute_capability;
  return built / 10 == compute_capability / 10 && built <= compute_capability;
}

bool anything_runs_on(int compute_capability) {
  std::string_view targets = kCudaArchitectures;  // separated by spaces
  while (!targets.empty()) {
    const size_t end = targets.find(' ');
    if (runs_on(targets.substr(0, end), compute_capability)) return true;
    if (end == std::string_view::npos) break;
    targets.remove_prefix(end + 1);
  }
  return false;
}

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

const Card& card_of(const char* op, int device) {
  static std::once_flag once[kMaxDevices];
  static Card cards[kMaxDevices];
  static bool runnable[kMaxDevices];
  if (device < 0 || device >= kMaxDevices) fail(op, ": cuda:", device, " is past cuda:63");
  std::call_once(once[device], [&] {
    Card& card = cards[device];
    card.compute_capability = 10 * attribute(op, cudaDevAttrComputeCapabilityMajor, device) +
                              attribute(op, cudaDevAttrComputeCapabilityMinor, device);
    card.sm_count = attribute(op, cudaDevAttrMultiProcessorCount, device);
    card.shared_memory_per_block = attribute(op, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    runnable[device] = anything_runs_on(card.compute_capability);
  });
  if (!runnable[device]) fail_architecture(op, cards[device].compute_capability);
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
