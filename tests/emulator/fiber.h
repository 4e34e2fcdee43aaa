// Stacks that are switched between by hand: a kernel's threads run on them, one at a time.
#pragma once

#include <cstddef>
#if (!defined(__x86_64__) && !defined(__aarch64__)) || defined(VAECF_EMULATOR_UCONTEXT)
#undef VAECF_EMULATOR_UCONTEXT
#define VAECF_EMULATOR_UCONTEXT
#include <ucontext.h>
#endif

namespace emulator {

#ifndef VAECF_EMULATOR_UCONTEXT

// Where a suspended stack stands. What a call must keep is saved on the stack itself.
using Fiber = void *;

extern "C" __attribute__((visibility("hidden"))) void vaecf_emulator_switch(Fiber *from, Fiber to);

inline void switch_fiber(Fiber *from, Fiber *to) { vaecf_emulator_switch(from, *to); }

// A fiber that starts in `entry` when it is first switched to; `entry` never returns.
inline void start_fiber(Fiber *fiber, void *stack, size_t bytes, void (*entry)()) {
#if defined(__x86_64__)
    // Six registers, the address to go to, and nowhere to return to.
    void **top = reinterpret_cast<void **>(static_cast<char *>(stack) + bytes) - 8;
    for (int i = 0; i < 8; ++i) top[i] = nullptr;
    top[6] = reinterpret_cast<void *>(entry);
#else
    // x19 to x30, of which the last is the address to go to, then d8 to d15.
    void **top = reinterpret_cast<void **>(static_cast<char *>(stack) + bytes) - 20;
    for (int i = 0; i < 20; ++i) top[i] = nullptr;
    top[11] = reinterpret_cast<void *>(entry);
#endif
    *fiber = top;
}

#else

using Fiber = ucontext_t;

inline void switch_fiber(Fiber *from, Fiber *to) { swapcontext(from, to); }

inline void start_fiber(Fiber *fiber, void *stack, size_t bytes, void (*entry)()) {
    getcontext(fiber);
    fiber->uc_stack.ss_sp = stack;
    fiber->uc_stack.ss_size = bytes;
    fiber->uc_link = nullptr;
    makecontext(fiber, entry, 0);
}

#endif

} // namespace emulator
