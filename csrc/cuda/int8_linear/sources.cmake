# Sources of the INT8 linear kernels, for the CUDA op library and for what needs the plan alone.
set(FLASHINT8_INT8_LINEAR_PLAN_SOURCES "${CMAKE_CURRENT_LIST_DIR}/plan.cpp"
                                       "${CMAKE_CURRENT_LIST_DIR}/plan_sm90.cpp")
set(FLASHINT8_INT8_LINEAR_CUDA_SOURCES
    "${CMAKE_CURRENT_LIST_DIR}/launch.cu"
    "${CMAKE_CURRENT_LIST_DIR}/quantize.cu"
    "${CMAKE_CURRENT_LIST_DIR}/dequantize.cu"
    "${CMAKE_CURRENT_LIST_DIR}/split_sum.cu"
    "${CMAKE_CURRENT_LIST_DIR}/../instantiations/int8_linear_gemv_m8_w16.cu"
    "${CMAKE_CURRENT_LIST_DIR}/../instantiations/int8_linear_gemv_m8_w8.cu"
    "${CMAKE_CURRENT_LIST_DIR}/../instantiations/int8_linear_gemv_m16.cu"
    "${CMAKE_CURRENT_LIST_DIR}/../instantiations/int8_linear_gemv_m32_unaligned.cu"
    "${CMAKE_CURRENT_LIST_DIR}/../instantiations/int8_linear_gemm_m16_n64.cu"
    "${CMAKE_CURRENT_LIST_DIR}/../instantiations/int8_linear_gemm_m32_n128.cu"
    "${CMAKE_CURRENT_LIST_DIR}/../instantiations/int8_linear_gemm_m64_n64.cu"
    "${CMAKE_CURRENT_LIST_DIR}/../instantiations/int8_linear_gemm_m64_n128.cu"
    "${CMAKE_CURRENT_LIST_DIR}/../instantiations/int8_linear_gemm_m128_n128.cu")
# For sm_90a alone.
set(FLASHINT8_INT8_LINEAR_SM90_SOURCES
    "${CMAKE_CURRENT_LIST_DIR}/../instantiations/int8_linear_gemv_sm90_m16_n32.cu"
    "${CMAKE_CURRENT_LIST_DIR}/../instantiations/int8_linear_gemv_sm90_m32_n32.cu"
    "${CMAKE_CURRENT_LIST_DIR}/../instantiations/int8_linear_gemv_sm90_m32_n48.cu"
    "${CMAKE_CURRENT_LIST_DIR}/../instantiations/int8_linear_sm90_m32.cu"
    "${CMAKE_CURRENT_LIST_DIR}/../instantiations/int8_linear_sm90_m64.cu"
    "${CMAKE_CURRENT_LIST_DIR}/../instantiations/int8_linear_sm90_m128.cu"
    "${CMAKE_CURRENT_LIST_DIR}/../instantiations/int8_linear_sm90_m192.cu"
    "${CMAKE_CURRENT_LIST_DIR}/../instantiations/int8_linear_sm90_m256.cu")
