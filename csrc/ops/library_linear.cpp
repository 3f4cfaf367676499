#include "library_linear.h"

#include <algorithm>

#include "flashint8/cuda.h"

namespace flashint8::ops {
namespace {

// A view of memory that others own and keep alive: no autograd state, no storage of its own.
Tensor borrow(const void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides,
              const TensorView& like) {
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_create_tensor_from_blob(const_cast<void*>(data), ndim, sizes, strides, 0,
                                         like.dtype, like.device_type, like.device_index, &handle));
  return Tensor(handle);
}

Tensor borrow_matrix(const void* data, int64_t rows, int64_t columns, int64_t row_stride,
                     const TensorView& like) {
  const int64_t sizes[2] = {rows, columns}, strides[2] = {row_stride, 1};
  return borrow(data, 2, sizes, strides, like);
}

void linear_out(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                const Tensor& out) {
  using torch::stable::detail::from;
  StableIValue stack[4] = {from(x), from(weight), from(bias), from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "out", stack, TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes the returned reference, and drops it
}

}  // namespace

void library_linear(const Int8LinearParams& params, const LinearPlan& plan, const TensorView& x,
                    const CudaCall& call) {
  const Tensor rows = borrow_matrix(params.x, params.m, params.k, params.x_rows.stride[3], x);
  const int64_t element_bytes = 2;
  for (int64_t first = 0; first < params.n; first += plan.block_n) {
    const int64_t count = std::min<int64_t>(plan.block_n, params.n - first);
    call.check(cuda::launch_dequantize(params, first, count, call.stream()));
    const Tensor weight = borrow_matrix(params.workspace, count, params.k, params.k, x);
    std::optional<Tensor> bias;
    if (params.bias != nullptr) {
      const int64_t stride = 1;
      bias = borrow(static_cast<const char*>(params.bias) + first * element_bytes, 1, &count,
                    &stride, x);
    }
    const Tensor out = borrow_matrix(static_cast<char*>(params.out) + first * element_bytes,
                                     params.m, count, params.n, x);
    linear_out(rows, weight, bias, out);
  }
}

}  // namespace flashint8::ops
