# What setup.py installs, every *.so at the top of the build folder: the op libraries (all that sees
# torch) and the Python module _C (no torch).
set(generated ${CMAKE_CURRENT_BINARY_DIR}/generated)

# C shims that live in torch's CUDA library. A CPU-only torch has no such library, so the link is
# against a stand-in of the same name; at run time the real one is in the process already.
set(FLASHINT8_TORCH_CUDA_SYMBOLS
    aoti_torch_get_current_cuda_stream
    torch_c10_cuda_check_msg
    torch_c10_cuda_free_error_msg)

add_library(torch_cpu SHARED IMPORTED)
set_target_properties(torch_cpu PROPERTIES IMPORTED_LOCATION
                                           ${FLASHINT8_TORCH_DIR}/lib/libtorch_cpu.so)
if(NOT EXISTS ${FLASHINT8_TORCH_DIR}/lib/libtorch_cpu.so)
  message(FATAL_ERROR "FLASHINT8_TORCH_DIR=${FLASHINT8_TORCH_DIR} holds no lib/libtorch_cpu.so")
endif()

function(flashint8_op_library name)
  add_library(${name} SHARED ${ARGN})
  target_include_directories(${name} PRIVATE ops ${generated})
  target_include_directories(${name} SYSTEM PRIVATE ${FLASHINT8_TORCH_DIR}/include)
  target_link_options(${name} PRIVATE -Wl,-rpath-link,${FLASHINT8_TORCH_DIR}/lib)
  target_compile_options(${name} PRIVATE -ffile-prefix-map=${FLASHINT8_TORCH_DIR}=torch)
  target_link_libraries(${name} PRIVATE flashint8_options torch_cpu)
  set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX)
endfunction()

flashint8_op_library(flashint8_cpu ${FLASHINT8_OPS_CPU_SOURCES}
                     $<TARGET_OBJECTS:flashint8_cpu_kernels>)

if(FLASHINT8_CUDA)
  set(stand_in "// Names that torch's CUDA library defines; only the linker reads this.\n")
  foreach(symbol IN LISTS FLASHINT8_TORCH_CUDA_SYMBOLS)
    string(APPEND stand_in
           "extern \"C\" __attribute__((visibility(\"default\"))) void ${symbol}() {}\n")
  endforeach()
  file(CONFIGURE OUTPUT ${generated}/torch_cuda.cpp CONTENT "${stand_in}" @ONLY)
  add_library(torch_cuda SHARED ${generated}/torch_cuda.cpp)
  set_target_properties(torch_cuda PROPERTIES LIBRARY_OUTPUT_DIRECTORY
                                              ${CMAKE_CURRENT_BINARY_DIR}/stand_in)

  flashint8_op_library(
    flashint8_cuda ${FLASHINT8_OPS_CUDA_SOURCES} $<TARGET_OBJECTS:flashint8_plans>
    ${FLASHINT8_CUDA_OBJECTS})
  target_compile_definitions(flashint8_cuda PRIVATE USE_CUDA)
  target_include_directories(flashint8_cuda SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  target_link_libraries(flashint8_cuda PRIVATE torch_cuda CUDA::cudart_static ${CMAKE_DL_LIBS})
endif()

set(PYBIND11_FINDPYTHON ON)
find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)
find_package(pybind11 CONFIG REQUIRED)
pybind11_add_module(_C MODULE NO_EXTRAS bindings.cpp $<TARGET_OBJECTS:flashint8_plans>
                    $<TARGET_OBJECTS:flashint8_cpu_kernels>)
target_include_directories(_C PRIVATE ${generated})
target_compile_options(_C PRIVATE -Wall -Wextra)
if(FLASHINT8_SANITIZE)
  target_link_options(_C PRIVATE -fsanitize=${FLASHINT8_SANITIZE})
endif()
target_include_directories(_C PRIVATE include)
