# Makes the target ztdeploy::runtime, which brings the headers and libraries of the runtime that ZTDEPLOY_RUNTIME names.
add_library(ztdeploy::runtime INTERFACE IMPORTED)

if(ZTDEPLOY_RUNTIME STREQUAL "onnxruntime")
  # The library alone: src/onnxruntime_table.h declares what is used of it.
  foreach(folder ${ONNXRUNTIME_ROOT} $ENV{ONNXRUNTIME_ROOT} /usr/local /usr)
    file(GLOB found ${folder}/libonnxruntime.so* ${folder}/capi/libonnxruntime.so* ${folder}/lib/libonnxruntime.so*
      ${folder}/lib/${CMAKE_LIBRARY_ARCHITECTURE}/libonnxruntime.so*)
    list(APPEND libraries ${found})
  endforeach()
  if(NOT libraries)
    message(FATAL_ERROR "ONNX Runtime was not found (libonnxruntime.so). Its Python wheel holds it, and its release: pass "
      "-DONNXRUNTIME_ROOT=/where/it/lies, such as site-packages/onnxruntime.")
  endif()
  list(GET libraries 0 library)
  # Programs look for it by the name that it gives itself, which it has in a release and not in the wheel.
  file(CREATE_LINK ${library} ${CMAKE_CURRENT_BINARY_DIR}/libonnxruntime.so.1 SYMBOLIC)
  set_target_properties(ztdeploy::runtime PROPERTIES
    INTERFACE_LINK_LIBRARIES "${CMAKE_CURRENT_BINARY_DIR}/libonnxruntime.so.1")
elseif(ZTDEPLOY_RUNTIME STREQUAL "openvino")
  find_package(OpenVINO QUIET COMPONENTS Runtime)
  if(NOT OpenVINO_FOUND)
    message(FATAL_ERROR "OpenVINO was not found (OpenVINOConfig.cmake). Its Python wheel holds it: pass "
      "-DOpenVINO_DIR=$(python -c 'from openvino.utils import get_cmake_path; print(get_cmake_path())')")
  endif()
  set_target_properties(ztdeploy::runtime PROPERTIES INTERFACE_LINK_LIBRARIES openvino::runtime)
elseif(ZTDEPLOY_RUNTIME STREQUAL "tensorrt")
  find_package(CUDAToolkit REQUIRED)
  set(hints ${TENSORRT_ROOT} $ENV{TENSORRT_ROOT})
  find_path(TENSORRT_INCLUDE_DIR NvInferRuntime.h HINTS ${hints} PATH_SUFFIXES include
    PATHS /usr/include/aarch64-linux-gnu /usr/include/x86_64-linux-gnu)
  find_library(TENSORRT_LIBRARY nvinfer HINTS ${hints} PATH_SUFFIXES lib)
  if(NOT TENSORRT_INCLUDE_DIR OR NOT TENSORRT_LIBRARY)
    message(FATAL_ERROR "TensorRT was not found (NvInferRuntime.h and libnvinfer). On a Jetson install "
      "'libnvinfer-dev'; elsewhere unpack TensorRT and pass -DTENSORRT_ROOT=/where/it/lies.")
  endif()
  set_target_properties(ztdeploy::runtime PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${TENSORRT_INCLUDE_DIR}"
    INTERFACE_LINK_LIBRARIES "${TENSORRT_LIBRARY};CUDA::cudart")
else()
  message(FATAL_ERROR "ZTDEPLOY_RUNTIME is '${ZTDEPLOY_RUNTIME}'; expected onnxruntime, openvino or tensorrt")
endif()
