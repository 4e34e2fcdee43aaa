// The memory of the emulated devices: one range of addresses, its start the shared memory of the block that
// runs, the rest handed out to allocations with gaps between them and not used again for as long as possible.
#pragma once

#include <map>
#include <string>

#include "numbers.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

namespace emulator {

// Who touched some bytes last. Both are moments of the watch (watch.cpp); zero is never.
struct Cell {
    u64 wrote;
    u64 read;
};

// What the watch knows of PAGE_BYTES bytes: how many of them may be used, and once touched a cell for each
// 2^grain bytes. The grain is the size of the smallest access so far, so that an array of f32 has a cell each.
constexpr u32 PAGE_BYTES = 512;
struct Page {
    Cell *cells;
    u16 limit;
    u16 grain;
};

struct Allocation {
    u64 bytes;
    int device;
};

constexpr u64 SHARED_SPAN = 1 << 20;   // a block's shared memory lies in the middle of this
constexpr u64 SHARED_START = 64 << 10; // with room before it, that a negative index shows

struct Memory {
    u64 start = 0;
    u64 span = 0;
    Page *pages = nullptr;
    std::map<u64, Allocation> allocations;

    void open();
    // Fresh memory is garbage. Aligned to 512 bytes and no more, as the driver promises. Zero where none is left.
    u64 allocate(u64 bytes, int device);
    bool release(u64 address);
    void set_shared(u32 bytes);

    // The allocation that holds all of it; end() where none does.
    std::map<u64, Allocation>::iterator find(u64 address, u64 bytes);
    // Where an address is, in words.
    std::string describe(u64 address);

    u64 shared() const { return start + SHARED_START; }
    bool is_shared(u64 address) const { return address - start < SHARED_SPAN; }

  private:
    u64 cursor = 0;
    u32 shared_bytes = 0;
    void set_limits(u64 address, u64 bytes, bool usable);
};

extern Memory memory;

} // namespace emulator
