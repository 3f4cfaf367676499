# Sets FLASHINT8_CPU_SOURCES, and the flags of each instruction set on its one file. Included by
# csrc/CMakeLists.txt.
set(_cpu ${CMAKE_CURRENT_LIST_DIR})
set(FLASHINT8_CPU_SOURCES
    ${_cpu}/attention.cpp
    ${_cpu}/decoder.cpp
    ${_cpu}/dispatch.cpp
    ${_cpu}/int8_linear.cpp
    ${_cpu}/kernels_portable.cpp
    ${_cpu}/workers.cpp)
set(FLASHINT8_CPU_ISA_BUILT portable)

set_source_files_properties(${_cpu}/kernels_portable.cpp PROPERTIES COMPILE_OPTIONS "-O3")

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(_avx2 -mavx2 -mfma -mf16c)
  set(_avx512 ${_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
  set(_avx512_bf16 ${_avx512} -mavx512bf16 -mavx512vnni)
  foreach(_isa avx2 avx512 avx512_bf16)
    list(APPEND FLASHINT8_CPU_SOURCES ${_cpu}/kernels_${_isa}.cpp)
    list(APPEND FLASHINT8_CPU_ISA_BUILT ${_isa})
    set_source_files_properties(${_cpu}/kernels_${_isa}.cpp PROPERTIES COMPILE_OPTIONS
                                "-O3;${_${_isa}}")
  endforeach()
  set_source_files_properties(${_cpu}/dispatch.cpp ${_cpu}/kernels_avx2.cpp
                              ${_cpu}/kernels_avx512.cpp ${_cpu}/kernels_avx512_bf16.cpp PROPERTIES
                              COMPILE_DEFINITIONS FLASHINT8_CPU_X86)
endif()
