# The CUDA kernels: compiled by nvcc for CMAKE_CUDA_ARCHITECTURES, without torch.
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
  message(FATAL_ERROR "flashint8 needs CUDA 12.0 or newer, this is ${CMAKE_CUDA_COMPILER_VERSION}")
endif()
find_package(CUDAToolkit REQUIRED)
string(REGEX MATCH "^[0-9]+\\.[0-9]+" FLASHINT8_CUDA_TOOLKIT "${CMAKE_CUDA_COMPILER_VERSION}")
string(REPLACE "-real" "" FLASHINT8_CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}")
string(REPLACE ";" " " FLASHINT8_CUDA_ARCHITECTURES "${FLASHINT8_CUDA_ARCHITECTURES}")

# One object library for all architectures; one more with what only sm_90a has, if that is built.
# Both show ptxas' statistics, which with_ptxas_log.sh keeps beside each object for
# scripts/check_spills.py.
function(flashint8_cuda_kernels name)
  add_library(${name} OBJECT ${ARGN})
  target_link_libraries(${name} PRIVATE flashint8_options)
  target_include_directories(${name} PRIVATE cuda ${CUDAToolkit_INCLUDE_DIRS})
  # Files are compiled in parallel by Ninja; where there are more jobs than files, the architectures
  # of one file are too.
  list(LENGTH ARGN num_sources)
  list(LENGTH CMAKE_CUDA_ARCHITECTURES num_architectures)
  math(EXPR threads "${FLASHINT8_JOBS} / (${num_sources} + 1)")
  if(threads GREATER num_architectures)
    set(threads ${num_architectures})
  elseif(threads LESS 1)
    set(threads 1)
  endif()
  target_compile_options(
    ${name} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall;-Xptxas=-v;-t=${threads}>")
  set_target_properties(${name} PROPERTIES CUDA_COMPILER_LAUNCHER
                                           "sh;${CMAKE_CURRENT_FUNCTION_LIST_DIR}/with_ptxas_log.sh")
endfunction()

flashint8_cuda_kernels(
  flashint8_cuda_kernels ${FLASHINT8_ATTENTION_CUDA_SOURCES} ${FLASHINT8_DECODER_CUDA_SOURCES}
  ${FLASHINT8_INT8_LINEAR_CUDA_SOURCES})
set(FLASHINT8_CUDA_OBJECTS $<TARGET_OBJECTS:flashint8_cuda_kernels>)

if("${CMAKE_CUDA_ARCHITECTURES}" MATCHES "(^|;)90a(-real)?(;|$)")
  flashint8_cuda_kernels(flashint8_cuda_kernels_sm90 cuda/tensor_map.cu
                         ${FLASHINT8_ATTENTION_SM90_SOURCES} ${FLASHINT8_INT8_LINEAR_SM90_SOURCES})
  set_target_properties(flashint8_cuda_kernels_sm90 PROPERTIES CUDA_ARCHITECTURES "90a-real")
  target_compile_definitions(flashint8_cuda_kernels PRIVATE FLASHINT8_SM90A)
  list(APPEND FLASHINT8_CUDA_OBJECTS $<TARGET_OBJECTS:flashint8_cuda_kernels_sm90>)
endif()
