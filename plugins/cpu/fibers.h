// Threads of a block as fibers: each runs until it waits at a barrier or returns, then hands the processor back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

// x86-64 Linux has a switch of its own below. Everywhere else, and where a test asks for it, the C library switches.
#if !defined(__x86_64__) || !defined(__linux__)
#define ZT_CPU_UCONTEXT
#endif
#ifdef ZT_CPU_UCONTEXT
#include <ucontext.h>
#endif

namespace zt_cpu {

constexpr std::size_t STACK_BYTES = 64 * 1024;

#ifndef ZT_CPU_UCONTEXT

// Saves what a call must preserve, stores the stack pointer, loads the other. swapcontext would make a system call.
extern "C" void zt_fiber_switch(void** save, void* load);
asm(R"(
    .text
    .p2align 4
    .type zt_fiber_switch, @function
zt_fiber_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size zt_fiber_switch, . - zt_fiber_switch
)");

struct Context {
    void* stack_pointer = nullptr;

    void prepare(char* stack, void (*entry)()) {
        const auto top = (reinterpret_cast<std::uintptr_t>(stack) + STACK_BYTES - 64) & ~std::uintptr_t(15);
        auto* frame = reinterpret_cast<std::uintptr_t*>(top);
        frame[0] = reinterpret_cast<std::uintptr_t>(entry);  // where the first switch returns to
        for (int i = 1; i <= 6; ++i) frame[-i] = 0;
        stack_pointer = frame - 6;
    }
};

inline void switch_context(Context& from, Context& to) { zt_fiber_switch(&from.stack_pointer, to.stack_pointer); }

#else

struct Context {
    ucontext_t context;

    void prepare(char* stack, void (*entry)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = stack;
        context.uc_stack.ss_size = STACK_BYTES;
        context.uc_link = nullptr;
        makecontext(&context, entry, 0);
    }
};

inline void switch_context(Context& from, Context& to) { swapcontext(&from.context, &to.context); }

#endif

}  // namespace zt_cpu
