// The border between kernels and the scheduler: the table of kernels, and what a thread asks for.
#pragma once

#include <utility>

#include "numbers.h"

namespace emulator {

// A kernel in the table that cuModuleGetFunction looks into: how many bytes each argument has, and how to call
// the function with them.
struct KernelEntry {
    const char *name;
    u32 threads;
    void (*function)();
    void (*call)(void (*function)(), void *const *arguments);
    u32 count;
    u32 sizes[32] = {};
    const KernelEntry *next;

    template <class... T> KernelEntry(const char *name, u32 threads, void (*function)(T...))
        : name(name), threads(threads), function(reinterpret_cast<void (*)()>(function)), call(call_with<T...>),
          count(sizeof...(T)), next(first) {
        static_assert(sizeof...(T) <= 32, "a kernel has at most 32 arguments");
        u32 i = 0;
        ((sizes[i++] = sizeof(T)), ...);
        first = this;
    }

    static const KernelEntry *first;

  private:
    template <class... T> static void call_with(void (*function)(), void *const *arguments) {
        unpack<T...>(reinterpret_cast<void (*)(T...)>(function), arguments, std::index_sequence_for<T...>());
    }
    template <class... T, std::size_t... I>
    static void unpack(void (*function)(T...), [[maybe_unused]] void *const *arguments, std::index_sequence<I...>) {
        function(*static_cast<T *>(arguments[I])...);
    }
};

struct Index {
    u32 x, y, z;
};
struct Four {
    u32 value[4];
};
struct FourFloats {
    float value[4];
};

// What 32 lanes do together. Each lane brings what it has; the last that arrives does the work of all.
enum class Together {
    sync,
    swap,
    from_lane,
    from_below,
    vote,
    load,
    load_transposed,
    multiply_f16,
    multiply_bf16,
    multiply_tf32
};

// To a fiber these never change.
__attribute__((const)) Index thread_index();
__attribute__((const)) Index block_index();
__attribute__((const)) Index block_size();
__attribute__((const)) Index grid_size();
__attribute__((const)) u8 *shared_memory_start();

void meet_block();
u32 meet_warp(Together what, u32 value, u32 operand);
Four load_rows(Together what, const void *row);
FourFloats multiply_fragments(Together what, FourFloats c, Four a, u32 b0, u32 b1);

void fence();
u32 fetch_or(u32 *at, u32 bits);
u32 exchange(u32 *at, u32 value);
u32 fetch_add(u32 *at, u32 n);

void start_copy(void *to, const void *from, u32 bytes);
void close_copies();
void finish_copies(u32 still_under_way);

} // namespace emulator
