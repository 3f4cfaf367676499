// Picks the instantiation that a plan names.
#include "flashint8/cuda.h"
#include "launch.cuh"
#include "variants.h"

namespace flashint8::cuda {

namespace {

using Launcher = cudaError_t (*)(const Int8LinearParams&, const LinearPlan&, cudaStream_t);

constexpr Launcher kGemvLaunchers[] = {launch_gemv<0>, launch_gemv<1>, launch_gemv<2>,
                                       launch_gemv<3>};
constexpr Launcher kGemmLaunchers[] = {launch_gemm<0>, launch_gemm<1>, launch_gemm<2>,
                                       launch_gemm<3>, launch_gemm<4>};
static_assert(sizeof(kGemvLaunchers) / sizeof(Launcher) == kNumGemvTiles);
static_assert(sizeof(kGemmLaunchers) / sizeof(Launcher) == kNumGemmTiles);
#ifdef FLASHINT8_SM90A
constexpr Launcher kGemvSm90Launchers[] = {launch_gemv_sm90<0>, launch_gemv_sm90<1>,
                                           launch_gemv_sm90<2>};
static_assert(sizeof(kGemvSm90Launchers) / sizeof(Launcher) == kNumGemvSm90Tiles);
constexpr Launcher kSm90Launchers[] = {launch_sm90<0>, launch_sm90<1>, launch_sm90<2>,
                                       launch_sm90<3>, launch_sm90<4>};
static_assert(sizeof(kSm90Launchers) / sizeof(Launcher) == kNumSm90Tiles);
#endif

}  // namespace

cudaError_t launch_int8_linear(const Int8LinearParams& params, const LinearPlan& plan,
                               cudaStream_t stream) {
  if (params.dtype != plan.dtype || params.dtype == DType::kFloat32) return cudaErrorInvalidValue;
  if (plan.num_blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  if (plan.kernel == LinearKernel::kGemv) {
    for (int i = 0; i < kNumGemvTiles; ++i) {
      const GemvTile& tile = kGemvTiles[i];
      if (tile.block_m == plan.block_m && tile.num_warps == plan.num_warps &&
          tile.vectorized == plan.vectorized) {
        return kGemvLaunchers[i](params, plan, stream);
      }
    }
    return cudaErrorInvalidConfiguration;
  }
#ifdef FLASHINT8_SM90A
  if (plan.kernel == LinearKernel::kGemvSm90) {
    for (int i = 0; i < kNumGemvSm90Tiles; ++i) {
      const GemvSm90Tile& tile = kGemvSm90Tiles[i];
      if (tile.block_m == plan.block_m && tile.block_n == plan.block_n) {
        return kGemvSm90Launchers[i](params, plan, stream);
      }
    }
    return cudaErrorInvalidConfiguration;
  }
  if (plan.kernel == LinearKernel::kGemmSm90) {
    for (int i = 0; i < kNumSm90Tiles; ++i) {
      if (kSm90Tiles[i].block_m == plan.block_m) return kSm90Launchers[i](params, plan, stream);
    }
    return cudaErrorInvalidConfiguration;
  }
#endif
  if (plan.kernel != LinearKernel::kGemm) return cudaErrorInvalidConfiguration;
  for (int i = 0; i < kNumGemmTiles; ++i) {
    const GemmTile& tile = kGemmTiles[i];
    if (tile.block_m == plan.block_m && tile.block_n == plan.block_n && plan.vectorized) {
      if (const cudaError_t error = kGemmLaunchers[i](params, plan, stream)) return error;
      return plan.num_splits > 1 ? launch_split_sum(params, plan, stream) : cudaSuccess;
    }
  }
  return cudaErrorInvalidConfiguration;
}

}  // namespace flashint8::cuda
