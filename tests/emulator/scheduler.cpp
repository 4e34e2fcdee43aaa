#include "scheduler.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "fiber.h"
#include "memory.h"
#include "watch.h"

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
#define FASTER __attribute__((target_clones("default", "arch=x86-64-v3")))
#else
#define FASTER
#endif

namespace emulator {

const KernelEntry *KernelEntry::first = nullptr;

namespace {

constexpr u32 MOST_THREADS = 1024, LANES = 32;
// Before the stacks, as to the watch a kernel's arguments are its own, too: the values and pointers to them.
constexpr u64 VALUES_BYTES = 4096, ARGUMENTS_BYTES = 8192;

#ifdef __SANITIZE_ADDRESS__
constexpr u64 STACK_BYTES = 256 << 10;
#else
constexpr u64 STACK_BYTES = 64 << 10;
#endif
constexpr u64 GUARD_BYTES = 4096;
constexpr u64 STACK_STEP = STACK_BYTES + GUARD_BYTES;

enum class State { ready, at_barrier, with_warp, finished };

struct Copy {
    void *to;
    const void *from;
    u32 bytes;
    u32 group;
};

struct Warp;

struct Thread {
    Fiber fiber;
    State state;
    u32 number;
    Warp *warp;
    Index index;
    u32 groups_closed;
    std::vector<Copy> copies;
};

// What the lanes of a warp have brought so far, and what each takes away.
struct Warp {
    u32 arrived;
    Together what;
    u64 met;
    u32 value[LANES], operand[LANES], result[LANES];
    const void *rows[LANES];
    Four tiles[LANES], a[LANES];
    u32 b[LANES][2];
    FourFloats c[LANES];
};

struct Block {
    u64 start;
    u32 number;
};

// All there is of the launch that runs. There is never more than one: the driver has a lock.
struct Machine {
    Thread threads[MOST_THREADS];
    Warp warps[MOST_THREADS / LANES];
    u8 *stacks = nullptr;

    const Launch *launch;
    void **arguments;
    Random random;
    u32 order; // how the next thread is picked: at random, the newest or the oldest
    Index block_index;
    std::vector<Block> blocks; // those of this launch so far

    u32 count;    // threads of the block
    u32 finished; // of them
    u32 waiting;  // at the barrier
    Thread *current;
    Thread *ready[MOST_THREADS];
    u32 ready_count;
    Fiber home; // the driver's stack

    u64 tick = 1;
    Fault fault;
};

Machine machine;

const char *name_of(Together what) {
    switch (what) {
    case Together::sync: return "sync_warp";
    case Together::swap: return "swap_lanes";
    case Together::from_lane: return "from_lane";
    case Together::from_below: return "from_below";
    case Together::vote: return "vote";
    case Together::load: return "load_tiles";
    case Together::load_transposed: return "load_tiles_transposed";
    case Together::multiply_f16: return "multiply of f16";
    case Together::multiply_bf16: return "multiply of bf16";
    case Together::multiply_tf32: return "multiply of tf32";
    }
    return "";
}

u64 now(const Thread &thread) { return machine.tick << MOMENT_SHIFT | thread.number; }

// The moment from which on all is later than what has been.
u64 next_tick() { return ++machine.tick << MOMENT_SHIFT; }

void set_current(Thread &thread) {
    machine.current = &thread;
    watch.moment = now(thread);
    watch.warp_met = thread.warp->met;
}

Thread &pick() {
    const u32 count = machine.ready_count--;
    const u32 chosen = machine.order == 0 ? machine.random.below(count) : machine.order == 1 ? count - 1 : 0;
    Thread *thread = machine.ready[chosen];
    machine.ready[chosen] = machine.ready[count - 1];
    return *thread;
}

void make_ready(Thread &thread) {
    thread.state = State::ready;
    machine.ready[machine.ready_count++] = &thread;
}

[[noreturn]] void end_launch() {
    Fiber gone;
    switch_fiber(&gone, &machine.home);
    abort();
}

std::string place_of(Index index, Index size) {
    std::string text = std::to_string(index.x);
    if (size.y > 1 || size.z > 1) text += "," + std::to_string(index.y);
    if (size.z > 1) text += "," + std::to_string(index.z);
    return text;
}

Index index_of(u64 number, Index size) {
    return {u32(number % size.x), u32(number / size.x % size.y), u32(number / size.x / size.y)};
}

std::string standing(const Thread &thread) {
    return "thread " + place_of(thread.index, machine.launch->block) +
           (thread.state == State::finished     ? " has finished"
            : thread.state == State::at_barrier ? " waits at sync_block"
                                                : " waits at " + std::string(name_of(thread.warp->what)));
}

// No thread can go on, and they have not all finished.
[[noreturn]] void divergence() {
    for (u32 i = 0; i < machine.count; ++i) {
        Thread &thread = machine.threads[i];
        if (thread.state != State::with_warp) continue;
        for (u32 lane = 0; lane < LANES; ++lane) {
            Thread &other = machine.threads[i / LANES * LANES + lane];
            if (other.state == State::with_warp) continue;
            machine.current = &thread;
            fault(LAUNCH_FAILED, "waits at %s, which not all lanes of its warp reach: %s", name_of(thread.warp->what),
                  standing(other).c_str());
        }
    }
    Thread *waits = nullptr, *gone = nullptr;
    for (u32 i = machine.count; i-- > 0;) {
        Thread &thread = machine.threads[i];
        (thread.state == State::at_barrier ? waits : gone) = &thread;
    }
    machine.current = waits;
    fault(LAUNCH_FAILED, "waits at sync_block, which not all threads of its block reach: %s", standing(*gone).c_str());
}

// The running thread cannot go on for now.
void give_way() {
    Thread &left = *machine.current;
    if (machine.ready_count == 0) divergence();
    Thread &next = pick();
    set_current(next);
    if (&next != &left) switch_fiber(&left.fiber, &next.fiber);
}

void thread_body() {
    const KernelEntry &kernel = *machine.launch->kernel;
    kernel.call(kernel.function, machine.arguments);
    Thread &done = *machine.current;
    done.state = State::finished;
    if (++machine.finished == machine.count) end_launch();
    if (machine.ready_count == 0) divergence();
    Thread &next = pick();
    set_current(next);
    switch_fiber(&done.fiber, &next.fiber);
    abort();
}

// 16x16 times 16x8 (of 16 bits each) from fragments to plain matrices, and the sums back. The multiplication is
// written so that the compiler turns its inner loop into vectors.
template <u32 K> FASTER void multiply_add(float (&c)[16][8], const float (&a)[16][K], const float (&b)[K][8]) {
    for (u32 i = 0; i < 16; ++i) {
        float sum[8];
        for (u32 j = 0; j < 8; ++j) sum[j] = 0;
        for (u32 k = 0; k < K; ++k) {
            for (u32 j = 0; j < 8; ++j) sum[j] += a[i][k] * b[k][j];
        }
        for (u32 j = 0; j < 8; ++j) c[i][j] += sum[j];
    }
}

template <u32 K> void multiply_warp(Warp &warp, const float (&a)[16][K], const float (&b)[K][8]) {
    float c[16][8];
    for (u32 lane = 0; lane < LANES; ++lane) {
        const u32 g = lane / 4, t = lane % 4;
        for (u32 i = 0; i < 4; ++i) c[g + i / 2 * 8][2 * t + i % 2] = warp.c[lane].value[i];
    }
    multiply_add(c, a, b);
    for (u32 lane = 0; lane < LANES; ++lane) {
        const u32 g = lane / 4, t = lane % 4;
        for (u32 i = 0; i < 4; ++i) warp.c[lane].value[i] = c[g + i / 2 * 8][2 * t + i % 2];
    }
}

template <class Widen> void multiply_halves(Warp &warp, Widen widen) {
    float a[16][16], b[16][8];
    for (u32 lane = 0; lane < LANES; ++lane) {
        const u32 g = lane / 4, t = lane % 4;
        for (u32 i = 0; i < 4; ++i) {
            const u32 two = warp.a[lane].value[i], row = g + i % 2 * 8, column = 2 * t + i / 2 * 8;
            a[row][column] = widen(u16(two));
            a[row][column + 1] = widen(u16(two >> 16));
        }
        for (u32 i = 0; i < 2; ++i) {
            const u32 two = warp.b[lane][i], row = 2 * t + i * 8;
            b[row][g] = widen(u16(two));
            b[row + 1][g] = widen(u16(two >> 16));
        }
    }
    multiply_warp(warp, a, b);
}

void multiply_singles(Warp &warp) {
    // The tensor cores do not look at the 13 bits that tf32 lacks.
    const auto cut = [](u32 bits) { return float_of(bits & ~0x1fffu); };
    float a[16][8], b[8][8];
    for (u32 lane = 0; lane < LANES; ++lane) {
        const u32 g = lane / 4, t = lane % 4;
        for (u32 i = 0; i < 4; ++i) a[g + i % 2 * 8][t + i / 2 * 4] = cut(warp.a[lane].value[i]);
        for (u32 i = 0; i < 2; ++i) b[t + i * 4][g] = cut(warp.b[lane][i]);
    }
    multiply_warp(warp, a, b);
}

// ldmatrix: eight lanes name the rows of a tile, and each of the 32 gets two neighbours of it.
void load(Warp &warp, bool transposed, Thread *lanes) {
    u16 tiles[4][8][8];
    Thread &last = *machine.current;
    for (u32 lane = 0; lane < LANES; ++lane) {
        set_current(lanes[lane]);
        const u64 row = reinterpret_cast<u64>(warp.rows[lane]);
        if (!memory.is_shared(row)) {
            fault(ILLEGAL_ADDRESS, "gives load_tiles %s, and rows come from shared memory",
                  memory.describe(row).c_str());
        }
        touch(row, 16, Access::read, true);
        memcpy(tiles[lane / 8][lane % 8], warp.rows[lane], 16);
    }
    set_current(last);
    for (u32 lane = 0; lane < LANES; ++lane) {
        const u32 g = lane / 4, t = lane % 4;
        for (u32 i = 0; i < 4; ++i) {
            const auto &tile = tiles[i];
            const u16 first = transposed ? tile[2 * t][g] : tile[g][2 * t];
            const u16 second = transposed ? tile[2 * t + 1][g] : tile[g][2 * t + 1];
            warp.tiles[lane].value[i] = first | u32(second) << 16;
        }
    }
}

// All lanes have brought theirs.
void work_together(Warp &warp, Thread *lanes) {
    switch (warp.what) {
    case Together::sync: break;
    case Together::swap:
        for (u32 i = 0; i < LANES; ++i) warp.result[i] = warp.value[(i ^ warp.operand[i]) % LANES];
        break;
    case Together::from_lane:
        for (u32 i = 0; i < LANES; ++i) warp.result[i] = warp.value[warp.operand[i] % LANES];
        break;
    case Together::from_below:
        for (u32 i = 0; i < LANES; ++i) warp.result[i] = warp.value[i < warp.operand[i] ? i : i - warp.operand[i]];
        break;
    case Together::vote: {
        u32 bits = 0;
        for (u32 i = 0; i < LANES; ++i) bits |= u32(warp.value[i] != 0) << i;
        for (u32 i = 0; i < LANES; ++i) warp.result[i] = bits;
        break;
    }
    case Together::load: load(warp, false, lanes); break;
    case Together::load_transposed: load(warp, true, lanes); break;
    case Together::multiply_f16: multiply_halves(warp, [](u16 bits) { return widen_f16(bits); }); break;
    case Together::multiply_bf16: multiply_halves(warp, [](u16 bits) { return widen_bf16(bits); }); break;
    case Together::multiply_tf32: multiply_singles(warp); break;
    }
}

// The running thread has put down what it brings. The last of the warp does the work and goes on.
inline void arrive(Warp &warp, Together what) {
    Thread &thread = *machine.current;
    if (warp.arrived == 0) {
        warp.what = what;
        if ((thread.number | (LANES - 1)) >= machine.count) {
            fault(LAUNCH_FAILED, "meets %s in a warp of %u threads, and it takes 32", name_of(what),
                  machine.count % LANES);
        }
    } else if (warp.what != what) {
        const Thread *lanes = &machine.threads[thread.number / LANES * LANES];
        const Thread *other = lanes;
        while (other->state != State::with_warp) ++other;
        fault(LAUNCH_FAILED, "meets %s, and %s: two different collectives of one warp", name_of(what),
              standing(*other).c_str());
    }
    if (++warp.arrived < LANES) {
        thread.state = State::with_warp;
        give_way();
        return;
    }
    Thread *lanes = &machine.threads[thread.number / LANES * LANES];
    work_together(warp, lanes);
    warp.arrived = 0;
    warp.met = next_tick();
    for (u32 i = 0; i < LANES; ++i) {
        if (&lanes[i] != &thread) make_ready(lanes[i]);
    }
    set_current(thread);
}

void prepare_stacks() {
    if (machine.stacks == nullptr) {
        const u64 bytes = ARGUMENTS_BYTES + MOST_THREADS * STACK_STEP;
        void *at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) {
            fprintf(stderr, "emulator: no memory for the stacks of threads\n");
            abort();
        }
        machine.stacks = static_cast<u8 *>(at);
        for (u32 i = 0; i < MOST_THREADS; ++i) {
            mprotect(machine.stacks + ARGUMENTS_BYTES + i * STACK_STEP, GUARD_BYTES, PROT_NONE);
        }
        watch.stacks = reinterpret_cast<u64>(machine.stacks);
        watch.stacks_bytes = bytes;
    }
}

void start_thread(u32 number, u64 block_start) {
    Thread &thread = machine.threads[number];
    u8 *stack = machine.stacks + ARGUMENTS_BYTES + number * STACK_STEP + GUARD_BYTES;
    ASAN_UNPOISON_MEMORY_REGION(stack, STACK_BYTES); // of what the last thread never returned from
    // Tops at different distances, lest all of them fall into the same few lines of the cache.
    start_fiber(&thread.fiber, stack, STACK_BYTES - number % 32 * 192, thread_body);
    thread.number = number;
    thread.warp = &machine.warps[number / LANES];
    thread.warp->arrived = 0;
    thread.warp->met = block_start;
    thread.index = index_of(number, machine.launch->block);
    thread.groups_closed = 0;
    thread.copies.clear();
    make_ready(thread);
}

void run_block(u64 number) {
    machine.block_index = index_of(number, machine.launch->grid);
    memory.set_shared(machine.launch->shared_bytes);
    const u64 start = next_tick();
    watch.block_start = watch.block_met = start;
    machine.blocks.push_back({start, u32(number)});
    forget_fences(false);
    machine.order = machine.random.below(4);
    if (machine.order == 3) machine.order = 0;
    machine.ready_count = machine.finished = machine.waiting = 0;
    for (u32 i = 0; i < machine.count; ++i) start_thread(i, start);
    Thread &first = pick();
    set_current(first);
    switch_fiber(&machine.home, &first.fiber);
}

} // namespace

Fault run(const Launch &launch, u64 seed) {
    prepare_stacks();
    memory.open();
    machine.launch = &launch;
    machine.fault = Fault();
    machine.random = Random{seed};
    machine.count = launch.block.x * launch.block.y * launch.block.z;
    machine.blocks.clear();
    machine.arguments = reinterpret_cast<void **>(machine.stacks + VALUES_BYTES);
    memcpy(machine.stacks, launch.arguments.data(), launch.arguments.size());
    u64 at = 0;
    for (u32 i = 0; i < launch.kernel->count; ++i) {
        machine.arguments[i] = machine.stacks + at;
        at += (launch.kernel->sizes[i] + 15) / 16 * 16;
    }

    // All numbers of blocks, each once, by steps that have no divisor in common with their count.
    const u64 blocks = u64(launch.grid.x) * launch.grid.y * launch.grid.z;
    u64 number = machine.random.below(u32(blocks)), step = 1;
    if (blocks > 2) {
        const auto common = [](u64 a, u64 b) {
            while (b != 0) {
                const u64 rest = a % b;
                a = b;
                b = rest;
            }
            return a;
        };
        do step = 1 + machine.random.below(u32(blocks - 1));
        while (common(step, blocks) != 1);
    }
    watch.launch_start = next_tick();
    forget_fences(true);
    watch.watching = watch.on;
    for (u64 i = 0; i < blocks && machine.fault.code == 0; ++i) {
        run_block(number);
        number = (number + step) % blocks;
    }
    watch.watching = false;
    return std::move(machine.fault);
}

void fault(int code, const char *format, ...) {
    va_list values;
    va_start(values, format);
    char text[600];
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    machine.fault.code = code;
    machine.fault.sentence = "kernel " + std::string(machine.launch->kernel->name) + ", block " +
                             place_of(machine.block_index, machine.launch->grid) + ", thread " +
                             place_of(machine.current->index, machine.launch->block) + ": " + text;
    end_launch();
}

u64 start_of_block(u64 moment) {
    const Block *found = nullptr;
    for (const Block &block : machine.blocks) {
        if (block.start <= moment) found = &block;
    }
    return found == nullptr ? 0 : found->start;
}

size_t blocks_so_far() { return machine.blocks.size(); }
u32 threads_of_block() { return machine.count; }

std::string block_at(u64 moment) {
    const u64 start = start_of_block(moment);
    const auto found = std::find_if(machine.blocks.begin(), machine.blocks.end(),
                                    [&](const Block &block) { return block.start == start; });
    return found == machine.blocks.end()
               ? "another block"
               : "block " + place_of(index_of(found->number, machine.launch->grid), machine.launch->grid);
}

Index thread_index() { return machine.current->index; }
Index block_index() { return machine.block_index; }
Index block_size() { return machine.launch->block; }
Index grid_size() { return machine.launch->grid; }
u8 *shared_memory_start() { return reinterpret_cast<u8 *>(memory.shared()); }

void meet_block() {
    Thread &thread = *machine.current;
    if (++machine.waiting < machine.count) {
        thread.state = State::at_barrier;
        give_way();
        return;
    }
    machine.waiting = 0;
    watch.block_met = next_tick();
    for (u32 i = 0; i < machine.count; ++i) {
        machine.threads[i].warp->met = watch.block_met;
        if (&machine.threads[i] != &thread) make_ready(machine.threads[i]);
    }
    set_current(thread);
}

u32 meet_warp(Together what, u32 value, u32 operand) {
    Thread &thread = *machine.current;
    Warp &warp = *thread.warp;
    const u32 lane = thread.number % LANES;
    warp.value[lane] = value;
    warp.operand[lane] = operand;
    arrive(warp, what);
    return warp.result[lane];
}

Four load_rows(Together what, const void *row) {
    Thread &thread = *machine.current;
    Warp &warp = *thread.warp;
    const u32 lane = thread.number % LANES;
    warp.rows[lane] = row;
    arrive(warp, what);
    return warp.tiles[lane];
}

FourFloats multiply_fragments(Together what, FourFloats c, Four a, u32 b0, u32 b1) {
    Thread &thread = *machine.current;
    Warp &warp = *thread.warp;
    const u32 lane = thread.number % LANES;
    warp.c[lane] = c;
    warp.a[lane] = a;
    warp.b[lane][0] = b0;
    warp.b[lane][1] = b1;
    arrive(warp, what);
    return warp.c[lane];
}

namespace {

// A thread that has passed a fence tells others of what came before it by its atomics. Each of those has a tick of
// its own, so that what the thread does next is not taken for told.
template <class T, class Change> T change(T *at, Change change) {
    const u64 address = reinterpret_cast<u64>(at);
    const bool tells = may_tell();
    if (tells) {
        next_tick();
        set_current(*machine.current);
    }
    touch(address, sizeof(T), Access::atomic, true);
    told_by_atomic(address);
    if (tells) {
        next_tick();
        set_current(*machine.current);
    }
    const T old = *at;
    *at = change(old);
    return old;
}

} // namespace

void fence() {
    next_tick();
    set_current(*machine.current);
    pass_fence();
}

u32 fetch_or(u32 *at, u32 bits) {
    return change(at, [=](u32 old) { return old | bits; });
}
u32 exchange(u32 *at, u32 value) {
    return change(at, [=](u32) { return value; });
}
u32 fetch_add(u32 *at, u32 n) {
    return change(at, [=](u32 old) { return old + n; });
}
// A copy is made when its thread waits for it, and no sooner: whoever forgets to wait finds garbage.
void start_copy(void *to, const void *from, u32 bytes) {
    const u64 target = reinterpret_cast<u64>(to), source = reinterpret_cast<u64>(from);
    if (bytes > 16) fault(LAUNCH_FAILED, "copies %u bytes by a copy_async, which takes 16 at most", bytes);
    if (!memory.is_shared(target)) {
        fault(ILLEGAL_ADDRESS, "gives copy_async %s, and it writes to shared memory", memory.describe(target).c_str());
    }
    if (bytes > 0 && memory.is_shared(source)) {
        fault(ILLEGAL_ADDRESS, "gives copy_async %s, and it reads from the device's memory",
              memory.describe(source).c_str());
    }
    if (source % 16 != 0) {
        fault(ILLEGAL_ADDRESS, "gives copy_async %s, an address that is no multiple of 16",
              memory.describe(source).c_str());
    }
    if (target % 16 != 0) {
        fault(ILLEGAL_ADDRESS, "gives copy_async %s, an address that is no multiple of 16",
              memory.describe(target).c_str());
    }
    touch(source, bytes, Access::read, false);
    begin_copy(target);
    machine.current->copies.push_back({to, from, bytes, machine.current->groups_closed});
}

void close_copies() { ++machine.current->groups_closed; }

void finish_copies(u32 still_under_way) {
    Thread &thread = *machine.current;
    if (thread.groups_closed <= still_under_way) return;
    const u32 covered = thread.groups_closed - still_under_way;
    size_t kept = 0;
    for (const Copy &copy : thread.copies) {
        if (copy.group >= covered) {
            thread.copies[kept++] = copy;
            continue;
        }
        touch(reinterpret_cast<u64>(copy.from), copy.bytes, Access::read, false);
        end_copy(reinterpret_cast<u64>(copy.to));
        memset(copy.to, 0, 16);
        memcpy(copy.to, copy.from, copy.bytes);
    }
    thread.copies.resize(kept);
}

} // namespace emulator
