// The watch: what it must be told, and what it can be asked.
#pragma once

#include <string>

#include "numbers.h"

namespace emulator {

// A moment is a tick that every synchronisation moves on, and below it 16 bits for who. As all threads run one
// after another, one count is enough: what happened before a block's last barrier has a smaller one.
constexpr u32 MOMENT_SHIFT = 16;

struct Watch {
    bool on = false;       // by the environment
    bool watching = false; // on, and a kernel runs
    u64 stacks = 0;        // accesses to these bytes are a thread's own business
    u64 stacks_bytes = 0;

    // Set by the scheduler.
    u64 moment = 0;       // now, by the running thread
    u64 launch_start = 0; // what is older was ordered by the stream
    u64 block_start = 0;  // what is older, but not older than the launch, another block did
    u64 block_met = 0;    // what is older came before the block's last barrier
    u64 warp_met = 0;     // the same for the running thread's warp
};

extern Watch watch;

enum class Access { read, write, atomic };

// An access by the running thread. Where it must not be, the launch ends with a sentence that says why.
void touch(u64 address, u32 bytes, Access access, bool aligned);

// Bytes that copy_async will write: until its wait nobody may touch them.
void begin_copy(u64 to);
void end_copy(u64 to);

// Ends the launch. The sentence is preceded by who and where.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fault(int code, const char *format, ...);

// Order among blocks: what a thread did before a fence, it tells by an atomic after it; who then changes the same
// word by an atomic and passes a fence has been told.
bool may_tell();
void told_by_atomic(u64 address);
void pass_fence();
void forget_fences(bool of_launch);

// Of the launch's blocks, the one that was running at a moment: when it began, and in words.
u64 start_of_block(u64 moment);
std::string block_at(u64 moment);
size_t blocks_so_far();
u32 threads_of_block();

constexpr int ILLEGAL_ADDRESS = 700;
constexpr int LAUNCH_FAILED = 719;

} // namespace emulator
