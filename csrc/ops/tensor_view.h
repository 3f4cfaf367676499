// What an op reads of a tensor, read once, and the wording of its complaints.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "flashint8/types.h"
#include "stable.h"

namespace flashint8::ops {

// Borrowed from the tensor: valid while the tensor lives.
struct TensorView {
  const void* data;
  const int64_t* sizes;
  const int64_t* strides;
  int64_t ndim;
  int32_t dtype;  // torch's code; see dtype_name
  int32_t device_type;
  int32_t device_index;
};

TensorView view(const Tensor& tensor);

// "float16", "int8", ...
std::string dtype_name(int32_t dtype);
// "cpu", "cuda:0", ...
std::string device_name(const TensorView& t);
// "(2, 3)"
std::string shape_text(const TensorView& t);

// The kernels' dtype of a float32, float16 or bfloat16 tensor; nothing for other types.
std::optional<DType> float_dtype(int32_t dtype);

// Throws std::invalid_argument (ValueError in Python) with the parts joined.
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

// `what` is "attention: k", for the message.
void check_same_device(const char* what, const TensorView& t, const char* reference_name,
                       const TensorView& reference);
// On the same device and of the same dtype.
void check_like(const char* what, const TensorView& t, const char* reference_name,
                const TensorView& reference);
// On the same device and of this dtype.
void check_typed(const char* what, const TensorView& t, int32_t dtype, const char* reference_name,
                 const TensorView& reference);
void check_last_dim_contiguous(const char* what, const TensorView& t);
// kAny: any size.
constexpr int64_t kAny = -1;
void check_shape(const char* what, const TensorView& t, std::initializer_list<int64_t> sizes);
// What is written in place must not name an element twice, as an expanded tensor does.
void check_written(const char* what, const TensorView& t);
// A contiguous vector of n elements.
void check_vector(const char* what, const TensorView& t, int64_t n);
// Checks float32/float16/bfloat16 (on CUDA: the 16-bit two) and returns the kernels' dtype.
DType check_float_dtype(const char* what, const TensorView& t);

bool is_cuda(const TensorView& t);

// The leading dimensions of (..., n), adjacent ones merged where their strides allow it; throws
// where more than 4 are left.
RowLayout row_layout(const char* what, const TensorView& t);
// How many rows they are.
int64_t row_count(const TensorView& t);

// An uninitialised tensor on the device of `like`. `dtype` is torch's code.
Tensor empty_strided(int64_t ndim, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                     const TensorView& like);
Tensor empty_contiguous(int64_t ndim, const int64_t* sizes, int32_t dtype, const TensorView& like);

int64_t element_count(const TensorView& t);

}  // namespace flashint8::ops
