# Sources of the INT8 linear kernels, for the CUDA op library and for what needs the plan alone.
set(_int8_linear_instantiations "${CMAKE_CURRENT_LIST_DIR}/../instantiations")
set(FLASHINT8_INT8_LINEAR_CUDA_SOURCES
    "${CMAKE_CURRENT_LIST_DIR}/launch.cu"
    "${CMAKE_CURRENT_LIST_DIR}/quantize.cu"
    "${CMAKE_CURRENT_LIST_DIR}/split_sum.cu"
    "${_int8_linear_instantiations}/int8_linear_gemv_m8_n16.cu"
    "${_int8_linear_instantiations}/int8_linear_gemv_m8_n32.cu"
    "${_int8_linear_instantiations}/int8_linear_gemv_m16_n32.cu"
    "${_int8_linear_instantiations}/int8_linear_gemv_m32_n32.cu"
    "${_int8_linear_instantiations}/int8_linear_gemv_m8_n16_unaligned.cu"
    "${_int8_linear_instantiations}/int8_linear_gemv_m32_n32_unaligned.cu"
    "${_int8_linear_instantiations}/int8_linear_gemm_m32_n64.cu"
    "${_int8_linear_instantiations}/int8_linear_gemm_m32_n128.cu"
    "${_int8_linear_instantiations}/int8_linear_gemm_m64_n64.cu"
    "${_int8_linear_instantiations}/int8_linear_gemm_m64_n128.cu"
    "${_int8_linear_instantiations}/int8_linear_gemm_m128_n128.cu"
    "${_int8_linear_instantiations}/int8_linear_gemm_m128_n256.cu")
set(FLASHINT8_INT8_LINEAR_PLAN_SOURCES "${CMAKE_CURRENT_LIST_DIR}/plan.cpp")
unset(_int8_linear_instantiations)
