// Runs a kernel's launch: its blocks one after another in a random order, a block's threads as fibers that give
// way to each other at random where they synchronise.
#pragma once

#include <string>
#include <vector>

#include "border.h"

namespace emulator {

struct Launch {
    const KernelEntry *kernel;
    Index grid;
    Index block;
    u32 shared_bytes;
    std::vector<u8> arguments; // each at the next multiple of 16
};

struct Fault {
    int code = 0; // of the driver; 0 where all went well
    std::string sentence;
};

// A launch that has ended by a fault has done some of its work, and nothing says which.
Fault run(const Launch &launch, u64 seed);

// Small random numbers, the same for the same seed everywhere.
struct Random {
    u64 state;
    u32 below(u32 n) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return u32((state >> 32) * n >> 32);
    }
};

} // namespace emulator
