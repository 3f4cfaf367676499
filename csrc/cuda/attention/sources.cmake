# The attention kernels (compiled by nvcc) and their plan (plain C++).
set(FLASHINT8_ATTENTION_PLAN_SOURCES ${CMAKE_CURRENT_LIST_DIR}/plan.cpp)
set(FLASHINT8_ATTENTION_CUDA_SOURCES
    ${CMAKE_CURRENT_LIST_DIR}/launch.cu
    ${CMAKE_CURRENT_LIST_DIR}/../instantiations/attention_decode_bf16_d128.cu
    ${CMAKE_CURRENT_LIST_DIR}/../instantiations/attention_decode_bf16_d256.cu
    ${CMAKE_CURRENT_LIST_DIR}/../instantiations/attention_decode_bf16_d64.cu
    ${CMAKE_CURRENT_LIST_DIR}/../instantiations/attention_decode_fp16_d128.cu
    ${CMAKE_CURRENT_LIST_DIR}/../instantiations/attention_decode_fp16_d256.cu
    ${CMAKE_CURRENT_LIST_DIR}/../instantiations/attention_decode_fp16_d64.cu
    ${CMAKE_CURRENT_LIST_DIR}/../instantiations/attention_prefill_bf16_d128.cu
    ${CMAKE_CURRENT_LIST_DIR}/../instantiations/attention_prefill_bf16_d128_small.cu
    ${CMAKE_CURRENT_LIST_DIR}/../instantiations/attention_prefill_bf16_d32_96_256.cu
    ${CMAKE_CURRENT_LIST_DIR}/../instantiations/attention_prefill_bf16_d64.cu
    ${CMAKE_CURRENT_LIST_DIR}/../instantiations/attention_prefill_bf16_d64_small.cu
    ${CMAKE_CURRENT_LIST_DIR}/../instantiations/attention_prefill_fp16_d128.cu
    ${CMAKE_CURRENT_LIST_DIR}/../instantiations/attention_prefill_fp16_d128_small.cu
    ${CMAKE_CURRENT_LIST_DIR}/../instantiations/attention_prefill_fp16_d32_96_256.cu
    ${CMAKE_CURRENT_LIST_DIR}/../instantiations/attention_prefill_fp16_d64.cu
    ${CMAKE_CURRENT_LIST_DIR}/../instantiations/attention_prefill_fp16_d64_small.cu)
# For sm_90a alone.
set(FLASHINT8_ATTENTION_SM90_SOURCES
    ${CMAKE_CURRENT_LIST_DIR}/../instantiations/attention_prefill_sm90_bf16_d128.cu
    ${CMAKE_CURRENT_LIST_DIR}/../instantiations/attention_prefill_sm90_bf16_d64.cu
    ${CMAKE_CURRENT_LIST_DIR}/../instantiations/attention_prefill_sm90_fp16_d128.cu
    ${CMAKE_CURRENT_LIST_DIR}/../instantiations/attention_prefill_sm90_fp16_d64.cu)
