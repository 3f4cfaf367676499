# The CUDA kernels: compiled by nvcc for CMAKE_CUDA_ARCHITECTURES, without torch.
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
  message(FATAL_ERROR "flashint8 needs CUDA 12.0 or newer, this is ${CMAKE_CUDA_COMPILER_VERSION}")
endif()
find_package(CUDAToolkit REQUIRED)
string(REGEX MATCH "^[0-9]+\\.[0-9]+" FLASHINT8_CUDA_TOOLKIT "${CMAKE_CUDA_COMPILER_VERSION}")
string(REPLACE "-real" "" FLASHINT8_CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}")
string(REPLACE ";" " " FLASHINT8_CUDA_ARCHITECTURES "${FLASHINT8_CUDA_ARCHITECTURES}")

set(sources ${FLASHINT8_ATTENTION_CUDA_SOURCES} ${FLASHINT8_DECODER_CUDA_SOURCES}
            ${FLASHINT8_INT8_LINEAR_CUDA_SOURCES} cuda/tensor_map.cu)
add_library(flashint8_cuda_kernels OBJECT ${sources})
target_link_libraries(flashint8_cuda_kernels PRIVATE flashint8_options)
target_include_directories(flashint8_cuda_kernels PRIVATE cuda ${CUDAToolkit_INCLUDE_DIRS})

# Files are compiled in parallel by Ninja; where there are more jobs than files, the architectures
# of one file are too.
list(LENGTH sources num_sources)
list(LENGTH CMAKE_CUDA_ARCHITECTURES num_architectures)
math(EXPR threads "${FLASHINT8_JOBS} / (${num_sources} + 1)")
if(threads GREATER num_architectures)
  set(threads ${num_architectures})
elseif(threads LESS 1)
  set(threads 1)
endif()
target_compile_options(
  flashint8_cuda_kernels PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall;-Xptxas=-v;-t=${threads}>")

# Keeps ptxas' word on registers and spills beside each object, for scripts/check_spills.py.
set_target_properties(
  flashint8_cuda_kernels PROPERTIES CUDA_COMPILER_LAUNCHER
                                    "sh;${CMAKE_CURRENT_LIST_DIR}/with_ptxas_log.sh")
