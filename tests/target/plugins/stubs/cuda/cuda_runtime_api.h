// A stand-in for the CUDA runtime's header, for machines without CUDA: what the adapter's plain C++ names of it.
#pragma once

struct CUstream_st;
typedef CUstream_st* cudaStream_t;
struct CUevent_st;
typedef CUevent_st* cudaEvent_t;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };

inline const char* cudaGetErrorString(cudaError_t error)
{
    return error == cudaSuccess ? "no error" : "invalid configuration argument";
}
