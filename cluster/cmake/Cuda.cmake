# Finds CUDA, NCCL and cuDNN: PESC_HAS_CUDA, PESC_HAS_NCCL, PESC_HAS_CUDNN, and the targets pesc_cuda and pesc_nccl,
# which are empty without. A build without one of them refuses at run time, by name, what needs it.
#
#   -DPESC_CUDA=OFF                    no CUDA even where nvcc is found; ON fails where it is not
#   -DCMAKE_CUDA_COMPILER=/path/nvcc   where nvcc is neither on the path nor in /usr/local/cuda/bin
#   -DCMAKE_CUDA_ARCHITECTURES=80      the GPUs: 90a (H100, H200) unless given; 80 (A100), 90, "80;90a", ...
#   -DPESC_CUDA_LIBRARIES_ROOT=DIR     a folder with include/ and lib/ of NCCL, cuDNN or cuBLASLt, looked in first
#   -DCUDNN_FRONTEND_INCLUDE_DIR=DIR   the folder with cudnn_frontend.h
add_library(pesc_cuda INTERFACE)
add_library(pesc_nccl INTERFACE)
set(PESC_HAS_CUDA OFF)
set(PESC_HAS_NCCL OFF)
set(PESC_HAS_CUDNN OFF)

if(PESC_CUDA STREQUAL "OFF")
  message(STATUS "pesc: CUDA is off; the device is the CPU")
  return()
endif()

if(PESC_CUDA STREQUAL "AUTO" AND PESC_NVCC_REFUSED AND NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  message(STATUS "pesc: no CUDA, since ${PESC_NVCC_REFUSED} was refused; -DCMAKE_CUDA_COMPILER=/path/to/nvcc tries again")
  return()  # a build folder does not change its device by itself
endif()
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(PESC_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin $ENV{CUDA_PATH}/bin PATHS /usr/local/cuda/bin)
  if(PESC_NVCC)
    set(CMAKE_CUDA_COMPILER ${PESC_NVCC})
  endif()
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90a CACHE STRING "The GPUs that the CUDA code is compiled for")
endif()
# What AUTO finds must not stop a build that needs no GPU: an nvcc that is too old or cannot compile is told of and left alone,
# where ON ends with the same words. tests/cluster/cuda_cmake_test.py tries both.
function(pesc_try_nvcc nvcc result)
  separate_arguments(command UNIX_COMMAND "${nvcc}")  # CUDACXX may hold flags too
  execute_process(COMMAND ${command} --version OUTPUT_VARIABLE said ERROR_VARIABLE said RESULT_VARIABLE code)
  string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" version "${said}")
  if(NOT code EQUAL 0 OR NOT CMAKE_MATCH_1)
    set(${result} "it does not run" PARENT_SCOPE)
  elseif(CMAKE_MATCH_1 VERSION_LESS 13.0)
    set(${result} "it is version ${CMAKE_MATCH_1}, and 13.0 or newer is needed" PARENT_SCOPE)
  else()
    # The check is a project of its own, which gets the compiler by this variable.
    set(ENV{CUDACXX} "${nvcc}")
    unset(CMAKE_CUDA_COMPILER)
    unset(CMAKE_CUDA_COMPILER CACHE)
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER)
      set(${result} "" PARENT_SCOPE)
    else()
      set(${result} "it cannot compile a small program" PARENT_SCOPE)
    endif()
  endif()
endfunction()

if(NOT PESC_NVCC_WORKS AND (CMAKE_CUDA_COMPILER OR DEFINED ENV{CUDACXX}))
  include(CheckLanguage)
  set(pesc_nvcc ${CMAKE_CUDA_COMPILER})
  if(NOT pesc_nvcc)
    set(pesc_nvcc $ENV{CUDACXX})
  endif()
  pesc_try_nvcc("${pesc_nvcc}" pesc_wrong)
  if(pesc_wrong AND PESC_CUDA STREQUAL "ON")
    unset(CMAKE_CUDA_COMPILER CACHE)
    message(FATAL_ERROR "PESC_CUDA=ON, but nvcc is ${pesc_nvcc}, and ${pesc_wrong}; install the CUDA toolkit (13.0 or newer) or "
                        "give -DCMAKE_CUDA_COMPILER=/path/to/nvcc")
  elseif(pesc_wrong)
    message(WARNING "pesc: nvcc is ${pesc_nvcc}, but ${pesc_wrong}, so no CUDA; the device is the CPU. "
                    "-DCMAKE_CUDA_COMPILER=/path/to/nvcc names another, -DPESC_CUDA=OFF wants none")
    unset(CMAKE_CUDA_COMPILER)
    unset(CMAKE_CUDA_COMPILER CACHE)
    set(PESC_NVCC_REFUSED "${pesc_nvcc}" CACHE INTERNAL "")
    return()
  endif()
  set(PESC_NVCC_WORKS ON CACHE INTERNAL "")
  unset(PESC_NVCC_REFUSED CACHE)
endif()
if(CMAKE_CUDA_COMPILER OR DEFINED ENV{CUDACXX})
  enable_language(CUDA)
elseif(PESC_CUDA STREQUAL "ON")
  message(FATAL_ERROR "PESC_CUDA=ON, but there is no nvcc on the path or in /usr/local/cuda/bin; install the CUDA "
                      "toolkit (13.0 or newer) or give -DCMAKE_CUDA_COMPILER=/path/to/nvcc")
else()
  message(STATUS "pesc: no nvcc, so no CUDA; the device is the CPU")
  return()
endif()
set(PESC_HAS_CUDA ON)
if(CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
endif()
set(CMAKE_CUDA_FLAGS_RELEASE "-O3")
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc can
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()

# The toolkit's folder is nvcc's own; wheels of NVIDIA's libraries lie in site-packages/nvidia.
get_filename_component(PESC_CUDA_ROOT ${CMAKE_CUDA_COMPILER} REALPATH)
get_filename_component(PESC_CUDA_ROOT ${PESC_CUDA_ROOT} DIRECTORY)
get_filename_component(PESC_CUDA_ROOT ${PESC_CUDA_ROOT} DIRECTORY)
set(pesc_cuda_roots ${PESC_CUDA_LIBRARIES_ROOT} ${PESC_CUDA_ROOT} ${PESC_CUDA_ROOT}/targets/x86_64-linux
    ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
file(GLOB pesc_wheel_roots LIST_DIRECTORIES true
     /opt/*/.venv/lib/python3*/site-packages/nvidia/* /opt/*/lib/python3*/site-packages/nvidia/*
     /usr/local/lib/python3*/*-packages/nvidia/* /usr/lib/python3/dist-packages/nvidia/*)
list(APPEND pesc_cuda_roots ${pesc_wheel_roots})

# A versioned name too: wheels hold libnccl.so.2 alone.
function(pesc_cuda_library variable name)
  find_library(${variable} NAMES ${name} ${ARGN} HINTS ${pesc_cuda_roots} PATH_SUFFIXES lib lib64 lib/stubs)
endfunction()

find_path(CUDA_RUNTIME_INCLUDE cuda_runtime_api.h HINTS ${pesc_cuda_roots} PATH_SUFFIXES include)
find_path(CUBLASLT_INCLUDE cublasLt.h HINTS ${pesc_cuda_roots} PATH_SUFFIXES include)
pesc_cuda_library(CUBLASLT_LIBRARY cublasLt libcublasLt.so.13 libcublasLt.so.12)
pesc_cuda_library(CUDART_LIBRARY cudart libcudart.so.13 libcudart.so.12)
foreach(need CUDA_RUNTIME_INCLUDE CUBLASLT_INCLUDE CUBLASLT_LIBRARY CUDART_LIBRARY)
  if(NOT ${need} AND PESC_CUDA STREQUAL "AUTO")
    message(WARNING "pesc: nvcc is ${CMAKE_CUDA_COMPILER}, but ${need} was not found beside it, so no CUDA; the device is "
                    "the CPU. Install the whole toolkit or give -DPESC_CUDA_LIBRARIES_ROOT=DIR")
    set(PESC_HAS_CUDA OFF)
    return()
  elseif(NOT ${need})
    message(FATAL_ERROR "pesc: nvcc is ${CMAKE_CUDA_COMPILER}, but ${need} was not found beside it; install the whole "
                        "toolkit, give -DPESC_CUDA_LIBRARIES_ROOT=DIR, or -DPESC_CUDA=OFF for the CPU alone")
  endif()
endforeach()
# One CUDA runtime in the process, the shared one, which NCCL and cuDNN use as well.
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
target_include_directories(pesc_cuda SYSTEM INTERFACE ${CUDA_RUNTIME_INCLUDE} ${CUBLASLT_INCLUDE})
target_link_libraries(pesc_cuda INTERFACE ${CUBLASLT_LIBRARY} ${CUDART_LIBRARY})

find_path(NCCL_INCLUDE nccl.h HINTS ${pesc_cuda_roots} PATH_SUFFIXES include)
pesc_cuda_library(NCCL_LIBRARY nccl libnccl.so.2)
if(NCCL_INCLUDE AND NCCL_LIBRARY)
  set(PESC_HAS_NCCL ON)
  target_include_directories(pesc_nccl SYSTEM INTERFACE ${NCCL_INCLUDE})
  target_link_libraries(pesc_nccl INTERFACE ${NCCL_LIBRARY})
endif()

find_path(CUDNN_INCLUDE cudnn.h HINTS ${pesc_cuda_roots} PATH_SUFFIXES include)
find_path(CUDNN_FRONTEND_INCLUDE_DIR cudnn_frontend.h HINTS ${pesc_cuda_roots} ${CMAKE_PREFIX_PATH} PATH_SUFFIXES include)
pesc_cuda_library(CUDNN_LIBRARY cudnn libcudnn.so.9)
if(CUDNN_INCLUDE AND CUDNN_FRONTEND_INCLUDE_DIR AND CUDNN_LIBRARY)
  set(PESC_HAS_CUDNN ON)
  target_include_directories(pesc_cuda SYSTEM INTERFACE ${CUDNN_INCLUDE} ${CUDNN_FRONTEND_INCLUDE_DIR})
  target_link_libraries(pesc_cuda INTERFACE ${CUDNN_LIBRARY})
  # The newer frontends' headers name its functions (in engines that are not used here).
  pesc_cuda_library(NVRTC_LIBRARY nvrtc libnvrtc.so.13 libnvrtc.so.12)
  if(NVRTC_LIBRARY)
    target_link_libraries(pesc_cuda INTERFACE ${NVRTC_LIBRARY})
  endif()
endif()
message(STATUS "pesc: CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}, NCCL ${PESC_HAS_NCCL}, "
               "cuDNN attention ${PESC_HAS_CUDNN}")
