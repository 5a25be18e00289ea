# CMakeLists.txt includes this file if nvcc is found. It defines the target _cuda and the list cuda_architectures.

execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code
  OUTPUT_VARIABLE known OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
string(REPLACE "\n" ";" known "${known}")
foreach(architecture IN LISTS CAWA_FAST_CUDA_ARCHITECTURES)
  if("sm_${architecture}" IN_LIST known)
    list(APPEND cuda_architectures ${architecture})
  endif()
endforeach()
if(NOT cuda_architectures)
  message(FATAL_ERROR "cawa_fast: ${CMAKE_CUDA_COMPILER} knows none of CAWA_FAST_CUDA_ARCHITECTURES "
    "(${CAWA_FAST_CUDA_ARCHITECTURES})")
endif()
set(CMAKE_CUDA_ARCHITECTURES ${cuda_architectures})
list(TRANSFORM CMAKE_CUDA_ARCHITECTURES APPEND -real)
list(GET cuda_architectures -1 newest)
list(APPEND CMAKE_CUDA_ARCHITECTURES ${newest}-virtual)

enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static) # torch has its own, perhaps of another version

add_library(_cuda MODULE csrc/cuda/cam_counts.cu csrc/cuda/confusion_matrix.cu csrc/cuda/cross_entropy.cu
  csrc/cuda/label_counts.cu csrc/cuda/library.cpp csrc/cuda/resized_cross_entropy.cu)
target_include_directories(_cuda SYSTEM PRIVATE ${torch_dir}/include ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
# libtorch_cuda is not linked, since a torch without CUDA has none. device.h looks up what it needs at run time.
target_link_libraries(_cuda PRIVATE ${torch_cpu} ${CMAKE_DL_LIBS})
set_target_properties(_cuda PROPERTIES PREFIX "" SKIP_BUILD_RPATH ON
  CXX_VISIBILITY_PRESET hidden CUDA_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
set(cuda_warnings -Wall,-Wextra,-ffile-prefix-map=${CMAKE_SOURCE_DIR}/=,-ffile-prefix-map=${torch_dir}/=)
target_compile_options(_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:CXX>:${compile_options}>
  # --threads=0: compile for all architectures in parallel. Warnings in torch's headers are off, as they are SYSTEM.
  $<$<COMPILE_LANGUAGE:CUDA>:--threads=0 -Xcompiler=${cuda_warnings}
    $<$<BOOL:${CAWA_FAST_WERROR}>:-Werror=all-warnings>>)
target_compile_definitions(_cuda PRIVATE TORCH_TARGET_VERSION=0x020a000000000000)
install(TARGETS _cuda LIBRARY DESTINATION .)
