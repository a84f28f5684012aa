# Makes the target ztdeploy::runtime, which brings the headers and libraries of the runtime that ZTDEPLOY_RUNTIME names.
add_library(ztdeploy::runtime INTERFACE IMPORTED)

if(ZTDEPLOY_RUNTIME STREQUAL "onnxruntime")
  set(hints ${ONNXRUNTIME_ROOT} $ENV{ONNXRUNTIME_ROOT})
  find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_c_api.h HINTS ${hints}
    PATH_SUFFIXES include include/onnxruntime include/onnxruntime/core/session)
  find_library(ONNXRUNTIME_LIBRARY onnxruntime HINTS ${hints} PATH_SUFFIXES lib lib64)
  if(NOT ONNXRUNTIME_INCLUDE_DIR OR NOT ONNXRUNTIME_LIBRARY)
    message(FATAL_ERROR "ONNX Runtime was not found (onnxruntime_c_api.h and libonnxruntime). Unpack its release and "
      "pass -DONNXRUNTIME_ROOT=/where/it/lies. Its Python wheel holds no headers.")
  endif()
  set_target_properties(ztdeploy::runtime PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${ONNXRUNTIME_INCLUDE_DIR}" INTERFACE_LINK_LIBRARIES "${ONNXRUNTIME_LIBRARY}")
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
