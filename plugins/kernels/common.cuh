// What the kernels share: pointers, vector loads, block reductions.
//
// Kernels touch memory only through Input, Output and Shared. On a GPU these are plain pointers; the CPU shim replaces
// them with views that find races, reads of unwritten memory and indices out of bounds.
#pragma once

#include "launch_plan.h"

#ifdef ZT_CPU_SHIM
#include "../cpu/shim.h"
#else
#include <cuda_fp16.h>

#define ZT_DEVICE __device__ __forceinline__

extern __shared__ uint4 zt_dynamic_shared[];  // 16-byte elements, for their alignment

namespace zt {

template <typename T>
using Input = const T*;
template <typename T>
using Output = T*;
template <typename T>
using Shared = T*;

// The counts are for the shim's views.
template <typename T>
ZT_DEVICE Input<T> input(const T* pointer, long long) {
    return pointer;
}
template <typename T>
ZT_DEVICE Output<T> output(T* pointer, long long) {
    return pointer;
}
template <typename T>
ZT_DEVICE Shared<T> dynamic_shared(int byte_offset, int) {
    return reinterpret_cast<T*>(reinterpret_cast<char*>(zt_dynamic_shared) + byte_offset);
}

// Reads an aligned vector of type V.
template <typename V, typename T>
ZT_DEVICE V load_as(const T* pointer, long long index) {
    return *reinterpret_cast<const V*>(pointer + index);
}
ZT_DEVICE __half2 as_half2(unsigned word) { return *reinterpret_cast<__half2*>(&word); }
template <typename V>
ZT_DEVICE void store_as(float* pointer, int index, V value) {
    *reinterpret_cast<V*>(pointer + index) = value;
}
template <typename T>
ZT_DEVICE void copy_16_bytes(T* to, int to_index, const T* from, long long from_index) {
    *reinterpret_cast<uint4*>(to + to_index) = *reinterpret_cast<const uint4*>(from + from_index);
}

}  // namespace zt
#endif

namespace zt {

// The smallest normal fp32: dividing by at least this never gives infinity from a finite vector of mean about 1.
constexpr float TINY = 1.17549435e-38f;

ZT_DEVICE float to_float(float value) { return value; }
ZT_DEVICE float to_float(__half value) { return __half2float(value); }

// a * b + c, rounded once. Written out so that equal tokens get equal results: left to itself, a compiler may fuse one
// copy of an unrolled loop and not the next, and break a tie.
ZT_DEVICE float multiply_add(float a, float b, float c) {
#ifdef ZT_CPU_SHIM
    return a * b + c;  // rounded twice: not every processor has the instruction, and without it fmaf is slow
#else
    return __fmaf_rn(a, b, c);
#endif
}

// 4 elements, from a multiple of 4 of a tensor.
constexpr int QUAD = 4;
struct alignas(8) HalfQuad {
    unsigned low, high;  // plain words, which a compiler reads in one load
};
template <typename T, typename Pointer>
ZT_DEVICE float4 load_quad(Pointer pointer, long long index) {
    if constexpr (sizeof(T) == sizeof(float)) {
        return load_as<float4>(pointer, index);
    } else {
        const HalfQuad quad = load_as<HalfQuad>(pointer, index);
        const float2 low = __half22float2(as_half2(quad.low)), high = __half22float2(as_half2(quad.high));
        return make_float4(low.x, low.y, high.x, high.y);
    }
}

// Orders all floats, infinities and NaN (the highest) included, so that ranks are always a permutation.
ZT_DEVICE unsigned order_key(float value) {
    if (value != value) return 0xffffffffu;
    const unsigned bits = __float_as_uint(value + 0.0f);  // adding 0 turns -0 into 0: the two must tie
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The sum over all threads, which every thread gets. `scratch` holds a float per thread; it is free again afterwards.
ZT_DEVICE float block_sum(Shared<float> scratch, float value) {
    const int thread = threadIdx.x;
    scratch[thread] = value;
    __syncthreads();
    if (thread < WARP) {
        float sum = 0.0f;
        for (int i = thread; i < int(blockDim.x); i += WARP) sum += scratch[i];
        scratch[thread] = sum;
    }
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < WARP; ++i) sum += scratch[i];
    __syncthreads();
    return sum;
}

}  // namespace zt
