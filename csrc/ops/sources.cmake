# The op libraries' own sources: the only ones that see torch headers. All are compiled by the host compiler.
set(FLASHINT8_OPS_COMMON_SOURCES
    ${CMAKE_CURRENT_LIST_DIR}/tensor_view.cpp
    ${CMAKE_CURRENT_LIST_DIR}/attention_args.cpp
    ${CMAKE_CURRENT_LIST_DIR}/cache_args.cpp
    ${CMAKE_CURRENT_LIST_DIR}/decoder_args.cpp
    ${CMAKE_CURRENT_LIST_DIR}/linear_args.cpp)
set(FLASHINT8_OPS_CPU_SOURCES
    ${FLASHINT8_OPS_COMMON_SOURCES}
    ${CMAKE_CURRENT_LIST_DIR}/schemas.cpp
    ${CMAKE_CURRENT_LIST_DIR}/ops_cpu.cpp)
set(FLASHINT8_OPS_CUDA_SOURCES
    ${FLASHINT8_OPS_COMMON_SOURCES}
    ${CMAKE_CURRENT_LIST_DIR}/cuda_device.cpp
    ${CMAKE_CURRENT_LIST_DIR}/library_linear.cpp
    ${CMAKE_CURRENT_LIST_DIR}/ops_cuda.cpp)
