// Runs the kernels on a CPU and checks what a GPU would not: one fiber per thread, blocks one after another.
//
// Found and reported, never a hang or a crash: barriers that not all threads of a block reach (divergence), accesses to
// shared memory without a barrier between them (race), reads of shared memory that nobody wrote, indices out of bounds
// of shared memory or of a tensor.
#pragma once

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>

#include "fibers.h"

#define __global__
#define __launch_bounds__(...)
#define ZT_DEVICE inline
#define __syncthreads() ::zt_cpu::barrier(__FILE__, __LINE__)

struct __half {
    std::uint16_t bits;
};
struct __half2 {
    __half x, y;
};
struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct dim3 {
    unsigned x, y, z;
};

inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <typename To, typename From>
inline To zt_bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    To to;
    std::memcpy(&to, &from, sizeof(To));
    return to;
}

inline unsigned __float_as_uint(float value) { return zt_bit_cast<unsigned>(value); }

// The exponent moves to its place in fp32 by a product with 2^112, which is exact, subnormals included.
inline float __half2float(__half half) {
    const std::uint32_t magnitude = half.bits & 0x7fffu, sign = std::uint32_t(half.bits & 0x8000u) << 16;
    if (magnitude >= 0x7c00u) return zt_bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
    const float value = zt_bit_cast<float>(magnitude << 13) * 5.192296858534828e+33f;
    return zt_bit_cast<float>(zt_bit_cast<std::uint32_t>(value) | sign);
}
inline __half2 as_half2(std::uint32_t word) { return zt_bit_cast<__half2>(word); }
inline float2 __half22float2(__half2 pair) { return {__half2float(pair.x), __half2float(pair.y)}; }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace zt_cpu {

enum Error { NONE, BAD_ARGUMENT, DIVERGENCE, RACE, OUT_OF_BOUNDS, UNWRITTEN };
enum class Order { forward, reverse, shuffle };

// Who touched 2 bytes of shared memory last, and in which epoch: epochs end at barriers.
struct Cell {
    std::uint32_t written = 0, read = 0;
    std::uint16_t writer = 0, reader = 0;
};
constexpr std::uint16_t SEVERAL = 0xffff;

struct Fiber {
    Context context;
    bool done;
    const char* file;  // the barrier at which it waits
    int line;
};

// One launch at a time; the library holds a lock.
struct State {
    Context scheduler;
    std::vector<Fiber> fibers;
    std::unique_ptr<char[]> stacks;
    std::size_t stack_count = 0;
    std::function<void()> kernel;

    std::vector<float4> memory;  // 16-byte aligned
    std::vector<Cell> cells;
    int shared_bytes = 0;
    std::uint32_t epoch = 1, block_epoch = 1;

    Order order = Order::forward;
    std::uint32_t random = 1;

    // A barrier that all threads, or one, are made to miss: how tests see that its absence is noticed.
    const char* skip_file = nullptr;
    int skip_line = 0, skip_thread = -1;

    Error error = NONE;
    char message[512] = "";
};
inline State state;

[[noreturn, gnu::format(printf, 2, 3), gnu::noinline]] inline void fail(Error error, const char* format, ...) {
    state.error = error;
    std::va_list arguments;
    va_start(arguments, format);
    const int length = std::vsnprintf(state.message, sizeof(state.message), format, arguments);
    va_end(arguments);
    if (length >= 0 && length < int(sizeof(state.message)))
        std::snprintf(state.message + length, sizeof(state.message) - length, " (thread %u of block %u, %u)",
                      threadIdx.x, blockIdx.x, blockIdx.y);
    Context abandoned;
    switch_context(abandoned, state.scheduler);
    __builtin_unreachable();
}

inline const char* base_name(const char* path) {
    const char* slash = std::strrchr(path, '/');
    return slash ? slash + 1 : path;
}

inline void barrier(const char* file, int line) {
    if (state.skip_file && line == state.skip_line && !std::strcmp(base_name(file), state.skip_file) &&
        (state.skip_thread < 0 || unsigned(state.skip_thread) == threadIdx.x))
        return;
    Fiber& self = state.fibers[threadIdx.x];
    self.file = file;
    self.line = line;
    switch_context(self.context, state.scheduler);
}

inline void fiber_main() {
    state.kernel();
    Fiber& self = state.fibers[threadIdx.x];
    self.done = true;
    switch_context(self.context, state.scheduler);
}

// Where all threads stand after each has run as far as it can: false when the block is done or has failed.
inline bool barrier_is_complete() {
    if (state.error) return false;
    const Fiber& first = state.fibers[0];
    for (std::size_t i = 1; i < state.fibers.size(); ++i) {
        const Fiber& other = state.fibers[i];
        if (first.done && other.done) continue;
        if (first.done == other.done && first.line == other.line && !std::strcmp(first.file, other.file)) continue;
        const Fiber& waits = first.done ? other : first;
        char elsewhere[160] = "has returned";
        if (first.done == other.done)
            std::snprintf(elsewhere, sizeof(elsewhere), "waits at %s:%d", base_name(other.file), other.line);
        state.error = DIVERGENCE;
        std::snprintf(state.message, sizeof(state.message),
                      "divergent barrier: thread %d waits at %s:%d, thread %d %s (block %u, %u)",
                      first.done ? int(i) : 0, base_name(waits.file), waits.line, first.done ? 0 : int(i), elsewhere,
                      blockIdx.x, blockIdx.y);
        return false;
    }
    return !first.done;
}

inline void choose_order(std::vector<unsigned>& turns) {
    const std::size_t count = turns.size();
    for (std::size_t i = 0; i < count; ++i) turns[i] = state.order == Order::reverse ? count - 1 - i : i;
    if (state.order != Order::shuffle) return;
    for (std::size_t i = count; i > 1; --i) {
        state.random = state.random * 1664525u + 1013904223u;
        std::swap(turns[i - 1], turns[(state.random >> 8) % i]);
    }
}

inline void run_block() {
    const std::size_t threads = blockDim.x;
    std::vector<unsigned> turns(threads);
    for (std::size_t i = 0; i < threads; ++i) {
        state.fibers[i].done = false;
        state.fibers[i].context.prepare(state.stacks.get() + i * STACK_BYTES, fiber_main);
    }
    state.block_epoch = ++state.epoch;
    do {
        choose_order(turns);
        for (unsigned turn : turns) {
            if (state.fibers[turn].done) continue;
            threadIdx = {turn, 0, 0};
            switch_context(state.scheduler, state.fibers[turn].context);
            if (state.error) return;
        }
        ++state.epoch;
    } while (barrier_is_complete());
}

// Runs a kernel; what it found is in state.error and state.message.
inline void launch(dim3 grid, int threads, int shared_bytes, std::function<void()> kernel) {
    state.kernel = std::move(kernel);
    state.fibers.resize(threads);
    if (state.stack_count < std::size_t(threads)) {
        state.stacks.reset(new char[threads * STACK_BYTES]);
        state.stack_count = threads;
    }
    state.shared_bytes = shared_bytes;
    if (state.memory.size() * 16 < std::size_t(shared_bytes)) {
        state.memory.resize((shared_bytes + 15) / 16);
        state.cells.resize(8 * state.memory.size());
    }
    gridDim = grid;
    blockDim = {unsigned(threads), 1, 1};
    const unsigned blocks = grid.x * grid.y;
    for (unsigned i = 0; i < blocks && !state.error; ++i) {
        const unsigned block = state.order == Order::reverse ? blocks - 1 - i : i;
        blockIdx = {block % grid.x, block / grid.x, 0};
        run_block();
    }
    state.kernel = nullptr;
}

inline void will_read(unsigned byte, unsigned bytes) {
    const auto self = std::uint16_t(threadIdx.x);
    Cell* cell = &state.cells[byte / 2];
    for (Cell* end = cell + bytes / 2; cell != end; ++cell) {
        if (cell->written == state.epoch && cell->writer != self)
            fail(RACE, "race: reads byte %u of shared memory, which thread %d wrote since the last barrier", byte,
                 int(cell->writer));
        if (cell->written < state.block_epoch)
            fail(UNWRITTEN, "reads byte %u of shared memory, which nobody wrote", byte);
        if (cell->read != state.epoch) {
            cell->read = state.epoch;
            cell->reader = self;
        } else if (cell->reader != self) {
            cell->reader = SEVERAL;
        }
    }
}

inline void will_write(unsigned byte, unsigned bytes) {
    const auto self = std::uint16_t(threadIdx.x);
    Cell* cell = &state.cells[byte / 2];
    for (Cell* end = cell + bytes / 2; cell != end; ++cell) {
        if (cell->written == state.epoch && cell->writer != self)
            fail(RACE, "race: writes byte %u of shared memory, which thread %d wrote since the last barrier", byte,
                 int(cell->writer));
        if (cell->read == state.epoch && cell->reader != self)
            fail(RACE, "race: writes byte %u of shared memory, which another thread read since the last barrier", byte);
        cell->written = state.epoch;
        cell->writer = self;
    }
}

}  // namespace zt_cpu

namespace zt {

// A tensor in global memory that is only read.
template <typename T>
struct Input {
    const T* pointer;
    long long first, count;  // of the whole tensor: what lies before `first` is still inside

    explicit operator bool() const { return pointer != nullptr; }
    Input operator+(long long step) const { return {pointer, first + step, count}; }
    T operator[](long long index) const { return *at(index, 1); }
    const T* at(long long index, int elements) const {
        const long long from = first + index;
        if (from < 0 || from + elements > count)
            zt_cpu::fail(zt_cpu::OUT_OF_BOUNDS, "reads element %lld of a tensor of %lld", from, count);
        return pointer + from;
    }
};

// A tensor that is only written.
template <typename T>
struct Output {
    T* pointer;
    long long count;

    T& operator[](long long index) const {
        if (index < 0 || index >= count)
            zt_cpu::fail(zt_cpu::OUT_OF_BOUNDS, "writes element %lld of a tensor of %lld", index, count);
        return pointer[index];
    }
};

// A part of a block's shared memory.
template <typename T>
struct Shared {
    int byte, first, count;

    char* at(int index, int elements) const {
        const int from = first + index;
        if (from < 0 || from + elements > count)
            zt_cpu::fail(zt_cpu::OUT_OF_BOUNDS, "element %d of %d in shared memory", from, count);
        return reinterpret_cast<char*>(zt_cpu::state.memory.data()) + address(index);
    }
    unsigned address(int index) const { return byte + (first + index) * int(sizeof(T)); }

    template <typename V>
    V load(int index) const {
        const char* place = at(index, sizeof(V) / sizeof(T));
        zt_cpu::will_read(address(index), sizeof(V));
        V value;
        std::memcpy(&value, place, sizeof(V));
        return value;
    }
    template <typename V>
    void store(int index, const V& value) const {
        char* place = at(index, sizeof(V) / sizeof(T));
        zt_cpu::will_write(address(index), sizeof(V));
        std::memcpy(place, &value, sizeof(V));
    }

    struct Element {
        const Shared& view;
        int index;
        operator T() const { return view.template load<T>(index); }
        void operator=(const T& value) const { view.store(index, value); }
        void operator=(const Element& other) const { view.store(index, T(other)); }
    };
    Element operator[](int index) const { return {*this, index}; }
    Shared operator+(int step) const { return {byte, first + step, count}; }
};

template <typename T>
inline Input<T> input(const T* pointer, long long count) {
    return {pointer, 0, count};
}
template <typename T>
inline Output<T> output(T* pointer, long long count) {
    return {pointer, count};
}
template <typename T>
inline Shared<T> dynamic_shared(int byte_offset, int count) {
    if (byte_offset % int(sizeof(T)) || byte_offset + count * int(sizeof(T)) > zt_cpu::state.shared_bytes)
        zt_cpu::fail(zt_cpu::OUT_OF_BOUNDS, "%d elements from byte %d of %d bytes of shared memory", count, byte_offset,
                     zt_cpu::state.shared_bytes);
    return {byte_offset, 0, count};
}

// A GPU faults on a vector that is not aligned.
template <typename V>
inline void check_alignment(std::uintptr_t address) {
    if (address % sizeof(V))
        zt_cpu::fail(zt_cpu::OUT_OF_BOUNDS, "a vector of %d bytes at an address %d off", int(sizeof(V)),
                     int(address % sizeof(V)));
}

template <typename V, typename T>
inline V load_as(const Input<T>& view, long long index) {
    const T* place = view.at(index, sizeof(V) / sizeof(T));
    check_alignment<V>(reinterpret_cast<std::uintptr_t>(place));
    V value;
    std::memcpy(&value, place, sizeof(V));
    return value;
}
template <typename V, typename T>
inline V load_as(const Shared<T>& view, long long index) {
    check_alignment<V>(view.address(int(index)));
    return view.template load<V>(int(index));
}
template <typename V>
inline void store_as(const Shared<float>& view, int index, const V& value) {
    check_alignment<V>(view.address(index));
    view.store(index, value);
}
template <typename T>
inline void copy_16_bytes(const Shared<T>& to, int to_index, const Input<T>& from, long long from_index) {
    struct alignas(16) Chunk {
        char bytes[16];
    };
    check_alignment<Chunk>(to.address(to_index));
    to.store(to_index, load_as<Chunk>(from, from_index));
}

}  // namespace zt
