# The small operators between a decoder's attention and linears.
set(FLASHINT8_DECODER_CUDA_SOURCES
    ${CMAKE_CURRENT_LIST_DIR}/add_norm.cu
    ${CMAKE_CURRENT_LIST_DIR}/argmax.cu
    ${CMAKE_CURRENT_LIST_DIR}/embed.cu
    ${CMAKE_CURRENT_LIST_DIR}/rope_append.cu
    ${CMAKE_CURRENT_LIST_DIR}/silu_mul.cu)
