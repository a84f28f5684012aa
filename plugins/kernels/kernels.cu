// The translation unit for nvcc and NVRTC.
#include "kernels.cuh"
