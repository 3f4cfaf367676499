#include "tensor_view.h"

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace flashint8::ops {

TensorView view(const Tensor& tensor) {
  const AtenTensorHandle handle = tensor.get();
  TensorView t{};
  void* data = nullptr;
  int64_t* sizes = nullptr;
  int64_t* strides = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(handle, &data));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle, &sizes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(handle, &strides));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle, &t.ndim));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(handle, &t.dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(handle, &t.device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(handle, &t.device_index));
  t.data = data;
  t.sizes = sizes;
  t.strides = strides;
  return t;
}

std::string dtype_name(int32_t dtype) {
  static const std::pair<int32_t, const char*> kNames[] = {
      {aoti_torch_dtype_float32(), "float32"},
      {aoti_torch_dtype_float16(), "float16"},
      {aoti_torch_dtype_bfloat16(), "bfloat16"},
      {aoti_torch_dtype_float64(), "float64"},
      {aoti_torch_dtype_float8_e5m2(), "float8_e5m2"},
      {aoti_torch_dtype_float8_e4m3fn(), "float8_e4m3fn"},
      {aoti_torch_dtype_int8(), "int8"},
      {aoti_torch_dtype_int16(), "int16"},
      {aoti_torch_dtype_int32(), "int32"},
      {aoti_torch_dtype_int64(), "int64"},
      {aoti_torch_dtype_uint8(), "uint8"},
      {aoti_torch_dtype_uint16(), "uint16"},
      {aoti_torch_dtype_uint32(), "uint32"},
      {aoti_torch_dtype_uint64(), "uint64"},
      {aoti_torch_dtype_bool(), "bool"},
      {aoti_torch_dtype_complex32(), "complex32"},
      {aoti_torch_dtype_complex64(), "complex64"},
      {aoti_torch_dtype_complex128(), "complex128"},
  };
  for (const auto& [code, name] : kNames) {
    if (code == dtype) return name;
  }
  return "dtype " + std::to_string(dtype);
}

std::string device_name(const TensorView& t) {
  if (t.device_type == aoti_torch_device_type_cpu()) return "cpu";
  const std::string kind = is_cuda(t) ? "cuda" : "device type " + std::to_string(t.device_type);
  return kind + ":" + std::to_string(t.device_index);
}

std::string shape_text(const TensorView& t) {
  std::string text = "(";
  for (int64_t d = 0; d < t.ndim; ++d) {
    if (d > 0) text += ", ";
    text += std::to_string(t.sizes[d]);
  }
  if (t.ndim == 1) text += ",";
  return text + ")";
}

std::optional<DType> float_dtype(int32_t dtype) {
  if (dtype == aoti_torch_dtype_float16()) return DType::kFloat16;
  if (dtype == aoti_torch_dtype_bfloat16()) return DType::kBFloat16;
  if (dtype == aoti_torch_dtype_float32()) return DType::kFloat32;
  return std::nullopt;
}

void check_same_device(const char* what, const TensorView& t, const char* reference_name,
                       const TensorView& reference) {
  if (t.device_type == reference.device_type && t.device_index == reference.device_index) return;
  fail(what, " is on ", device_name(t), ", ", reference_name, " is on ", device_name(reference));
}

void check_like(const char* what, const TensorView& t, const char* reference_name,
                const TensorView& reference) {
  check_same_device(what, t, reference_name, reference);
  if (t.dtype != reference.dtype) {
    fail(what, " has dtype ", dtype_name(t.dtype), ", ", reference_name, " has ",
         dtype_name(reference.dtype));
  }
}

void check_typed(const char* what, const TensorView& t, int32_t dtype, const char* reference_name,
                 const TensorView& reference) {
  check_same_device(what, t, reference_name, reference);
  if (t.dtype != dtype) fail(what, " must be ", dtype_name(dtype), ", got ", dtype_name(t.dtype));
}

void check_last_dim_contiguous(const char* what, const TensorView& t) {
  const int64_t d = t.ndim - 1;
  if (t.sizes[d] <= 1 || t.strides[d] == 1) return;
  fail(what, "'s last dimension must be contiguous, got stride ", t.strides[d]);
}

void check_vector(const char* what, const TensorView& t, int64_t n) {
  if (t.ndim != 1 || t.sizes[0] != n) {
    fail(what, " must have shape (", n, ",), got ", shape_text(t));
  }
  if (n > 1 && t.strides[0] != 1) fail(what, " must be contiguous, got stride ", t.strides[0]);
}

namespace {

// "(2, *, 16)"
std::string expected_shape(std::initializer_list<int64_t> sizes) {
  std::string text;
  for (const int64_t size : sizes) {
    text += text.empty() ? "(" : ", ";
    text += size == kAny ? "*" : std::to_string(size);
  }
  return text + (sizes.size() == 1 ? ",)" : ")");
}

}  // namespace

void check_shape(const char* what, const TensorView& t, std::initializer_list<int64_t> sizes) {
  bool same = t.ndim == static_cast<int64_t>(sizes.size());
  const int64_t* size = t.sizes;
  for (const int64_t expected : sizes) {
    if (!same) fail(what, " must have shape ", expected_shape(sizes), ", got ", shape_text(t));
    same = expected == kAny || *size == expected;
    ++size;
  }
  if (!same) fail(what, " must have shape ", expected_shape(sizes), ", got ", shape_text(t));
}

void check_written(const char* what, const TensorView& t) {
  for (int64_t d = 0; d < t.ndim; ++d) {
    if (t.sizes[d] > 1 && t.strides[d] == 0) {
      fail(what, " is written in place and must not be expanded, got stride 0 in dimension ", d);
    }
  }
}

DType check_float_dtype(const char* what, const TensorView& t) {
  const std::optional<DType> dtype = float_dtype(t.dtype);
  if (is_cuda(t)) {
    if (!dtype || *dtype == DType::kFloat32) {
      fail(what, " must be float16 or bfloat16 on CUDA, got ", dtype_name(t.dtype));
    }
  } else if (!dtype) {
    fail(what, " must be float16, bfloat16 or float32, got ", dtype_name(t.dtype));
  }
  return *dtype;
}

bool is_cuda(const TensorView& t) { return t.device_type == aoti_torch_device_type_cuda(); }

RowLayout row_layout(const char* what, const TensorView& t) {
  RowLayout rows;
  int used = 0;  // dimensions written, counted from the innermost end
  for (int64_t d = t.ndim - 2; d >= 0; --d) {
    if (t.sizes[d] == 1) continue;
    if (used > 0) {
      const int inner = 4 - used;
      if (t.strides[d] == rows.size[inner] * rows.stride[inner]) {
        rows.size[inner] *= t.sizes[d];
        continue;
      }
    }
    if (used == 4) {
      const char* name = what + std::string_view(what).find(": ") + 2;
      fail(what, "'s leading dimensions must merge into at most 4 strided ones, got shape ",
           shape_text(t), "; pass ", name, ".contiguous()");
    }
    ++used;
    rows.size[4 - used] = t.sizes[d];
    rows.stride[4 - used] = t.strides[d];
  }
  return rows;
}

int64_t row_count(const TensorView& t) {
  int64_t count = 1;
  for (int64_t d = 0; d + 1 < t.ndim; ++d) count *= t.sizes[d];
  return count;
}

namespace {

int64_t count(int64_t ndim, const int64_t* sizes) {
  int64_t elements = 1;
  for (int64_t d = 0; d < ndim; ++d) elements *= sizes[d];
  return elements;
}

}  // namespace

Tensor empty_strided(int64_t ndim, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                     const TensorView& like) {
  AtenTensorHandle handle = nullptr;
  // The stable interface tells that it failed, not why: torch's own error type is lost here.
  if (aoti_torch_empty_strided(ndim, sizes, strides, dtype, like.device_type, like.device_index,
                               &handle) != AOTI_TORCH_SUCCESS) {
    throw std::runtime_error("flashint8: out of memory: could not allocate a tensor of " +
                             std::to_string(count(ndim, sizes)) + " elements of " +
                             dtype_name(dtype) + " on " + device_name(like));
  }
  return Tensor(handle);
}

Tensor empty_contiguous(int64_t ndim, const int64_t* sizes, int32_t dtype, const TensorView& like) {
  constexpr int64_t kMaxDims = 64;
  int64_t strides[kMaxDims];
  if (ndim > kMaxDims) fail("a tensor has ", ndim, " dimensions, at most ", kMaxDims, " are taken");
  int64_t stride = 1;
  for (int64_t d = ndim - 1; d >= 0; --d) {
    strides[d] = stride;
    stride *= sizes[d] > 1 ? sizes[d] : 1;
  }
  return empty_strided(ndim, sizes, strides, dtype, like);
}

int64_t element_count(const TensorView& t) {
  int64_t count = 1;
  for (int64_t d = 0; d < t.ndim; ++d) count *= t.sizes[d];
  return count;
}

}  // namespace flashint8::ops
