// What mma.sync can reach on a card: a loop of independent m16n8k16 products of fp16 with fp32 sums
// on random registers, nothing loaded in it. A warp multiplies a kRows x 16 by a 16 x kColumns
// piece in every turn, as the inner loop of a matrix product does, each operand register serving
// several products. The best of a few pieces and numbers of warps is the rate.
//
//   mma_rate [device]    prints {"mma_sync_tflops": ...}
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "device/mma.cuh"

namespace {

constexpr int kThreads = 128;
constexpr int kTurns = 8192;  // some ms of work
constexpr int kSamples = 9;
constexpr float kWarmMs = 100;  // clocks rise and settle

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "mma_rate: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

// Two fp16 values of either sign with magnitudes in [1/8, 2): bits that change from product to
// product as a model's do, and none is 0.
__device__ uint32_t random_pair(uint32_t seed) {
  seed = (seed ^ 61u) ^ (seed >> 16);
  seed *= 9u;
  seed ^= seed >> 4;
  seed *= 0x27d4eb2du;
  seed ^= seed >> 15;
  return (seed & 0x8fff8fffu) | 0x30003000u;
}

template <int kRows, int kColumns, int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks) mma_rate_kernel(float* out, int turns) {
  constexpr int kM = kRows / 16, kN = kColumns / 8;
  uint32_t a[kM][4], b[kN][2];
  float c[kM][kN][4] = {};
  const uint32_t seed = (blockIdx.x * kThreads + threadIdx.x) * 256;
  for (int i = 0; i < kM; ++i) {
    for (int r = 0; r < 4; ++r) a[i][r] = random_pair(seed + 4 * i + r);
  }
  for (int j = 0; j < kN; ++j) {
    for (int r = 0; r < 2; ++r) b[j][r] = random_pair(seed + 128 + 2 * j + r);
  }
  for (int turn = 0; turn < turns; ++turn) {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        flashint8::cuda::mma_m16n8k16<__half>(c[i][j], a[i], b[j][0], b[j][1]);
      }
    }
  }
  float sum = 0;
  for (int i = 0; i < kM; ++i) {
    for (int j = 0; j < kN; ++j) sum += c[i][j][0] + c[i][j][1] + c[i][j][2] + c[i][j][3];
  }
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

// TFLOP/s (powers of 1000), the median of kSamples launches.
template <int kRows, int kColumns, int kBlocks>
double rate(int sm_count, float* out) {
  const auto kernel = mma_rate_kernel<kRows, kColumns, kBlocks>;
  const int blocks = sm_count * kBlocks;
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "an event");
  check(cudaEventCreate(&end), "an event");
  const auto launch = [&] {
    float ms = 0;
    check(cudaEventRecord(begin), "an event");
    kernel<<<blocks, kThreads>>>(out, kTurns);
    check(cudaGetLastError(), "a launch");
    check(cudaEventRecord(end), "an event");
    check(cudaEventSynchronize(end), "a run");
    check(cudaEventElapsedTime(&ms, begin, end), "a time");
    return ms;
  };
  for (float warm = 0; warm < kWarmMs;) warm += launch();
  std::vector<float> samples(kSamples);
  for (float& sample : samples) sample = launch();
  std::nth_element(samples.begin(), samples.begin() + kSamples / 2, samples.end());
  const double warps = static_cast<double>(blocks) * kThreads / 32;
  return warps * kTurns * 2.0 * kRows * kColumns * 16 / samples[kSamples / 2] * 1e-9;
}

}  // namespace

int main(int argc, char** argv) {
  int sm_count = 0;
  const int device = argc > 1 ? std::atoi(argv[1]) : 0;
  check(cudaSetDevice(device), "the device");
  check(cudaDeviceGetAttribute(&sm_count, cudaDevAttrMultiProcessorCount, device), "an attribute");
  float* out = nullptr;
  check(cudaMalloc(&out, sizeof(float) * sm_count * 4 * kThreads), "memory");
  const double rates[] = {
      rate<64, 64, 2>(sm_count, out),  // 8 warps a multiprocessor, as many sums as a large tile
      rate<32, 64, 4>(sm_count, out),  // 16 warps
      rate<64, 32, 4>(sm_count, out),
  };
  std::printf("{\"mma_sync_tflops\": %.1f}\n",
              *std::max_element(std::begin(rates), std::end(rates)));
  return 0;
}
