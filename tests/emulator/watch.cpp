// Sees every access of a kernel to memory: the compiler's marks for its thread sanitizer lead here, and not to
// that sanitizer's library. Finds accesses outside of what is allocated or launched, misaligned ones, and two
// of different threads to the same byte that nothing orders, of which one writes.
#include "watch.h"

#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "memory.h"

namespace emulator {

Watch watch;

namespace {

// Who, in the low bits of a moment: a thread of the block, or where several did the same with no order among
// them, all of a warp, of a block or of all blocks.
constexpr u32 WARP = 0x400, BLOCK = 0x420, BLOCKS = 0x421, WHO = 0x7ff;
constexpr u64 ATOMIC = 0x4000;  // on a cell's write: by an atomic
constexpr u64 PENDING = 0x8000; // on a cell's write: by a copy that nobody has waited for

u32 me() { return u32(watch.moment) & WHO; }
u32 who(u64 moment) { return u32(moment) & WHO; }

bool of_my_warp(u64 moment) {
    const u32 other = who(moment);
    return other < WARP ? other / 32 == me() / 32 : other == (WARP | me() / 32);
}

// What a thread of a block told by an atomic: all that it had done before its fence, the atomic itself, and what
// its block had done before a barrier that the fence came after, or that all threads came to with a fence.
struct Told {
    u64 block;
    u32 thread;
    u64 fence, atomic, by_block;

    bool covers(u64 then) const {
        const bool own = who(then) == thread && (then < fence || then >> MOMENT_SHIFT == atomic >> MOMENT_SHIFT);
        return own || then < by_block;
    }
};

struct Fences {
    bool used = false; // by the running block
    u64 changes = 0;   // by atomics of it
    u64 passed[1024] = {};
    u64 met[1024] = {};                              // the block's last barrier before that fence
    std::vector<u64> changed[1024];                  // words that the thread has changed by atomics since
    std::unordered_map<u64, std::vector<Told>> told; // by each word, in this launch
    std::vector<Told> heard;                         // by the running block
    std::set<u64> heard_of;                          // the blocks of these
    u32 hearer = 0;
    u64 heard_at = 0;
};
Fences fences;

// Whether a fence orders what another block did before what I do now.
__attribute__((noinline)) bool told_to_me(u64 then) {
    if (fences.heard.empty() || (fences.hearer != me() && fences.heard_at >= watch.block_met)) return false;
    // Of several blocks it is not known what each did last.
    if (who(then) == BLOCKS) return fences.heard_of.size() + 1 >= blocks_so_far();
    const u64 block = start_of_block(then);
    return std::any_of(fences.heard.begin(), fences.heard.end(),
                       [&](const Told &told) { return told.block == block && told.covers(then); });
}

// Whether what happened then, in this launch, by somebody else, is ordered before what I do now.
inline bool before_now(u64 then) {
    if (then < watch.block_start || who(then) == BLOCKS) return told_to_me(then);
    // With a barrier of the block since, it does not matter who it was.
    if (then < watch.block_met) return true;
    return then < watch.warp_met && of_my_warp(then);
}

// The moment to keep where `then` was kept and I have done the same.
u64 joined(u64 then, u64 horizon) {
    const u64 now = watch.moment;
    if (then < horizon) return now;
    if (then < watch.block_start || who(then) == BLOCKS) return (now & ~u64(WHO)) | BLOCKS;
    if (who(then) == me() || before_now(then)) return now;
    return (now & ~u64(WHO)) | (of_my_warp(then) ? WARP | me() / 32 : BLOCK);
}

std::string name_of(u64 then) {
    const u32 other = who(then);
    std::string name = other < WARP     ? "thread " + std::to_string(other)
                       : other < BLOCK  ? "other threads of warp " + std::to_string(other - WARP)
                       : other < BLOCKS ? "several threads"
                                        : "several blocks";
    if (then < watch.block_start && other != BLOCKS) name += " of " + block_at(then);
    return name;
}

const char *word(Access access) {
    return access == Access::read ? "reads" : access == Access::write ? "writes" : "changes by an atomic";
}

[[noreturn]] void race(u64 address, u32 bytes, Access access, u64 then, const char *did) {
    if (then & PENDING) {
        fault(LAUNCH_FAILED,
              "%s %u bytes at %s, which a copy_async of %s has yet to bring: no copy_wait of its covers them",
              word(access), bytes, memory.describe(address).c_str(), name_of(then).c_str());
    }
    const char *lacks = then < watch.block_start || who(then) == BLOCKS ? "and nothing orders the blocks of a launch"
                        : of_my_warp(then)                              ? "with no sync_warp between"
                                                                        : "with no sync_block between";
    fault(LAUNCH_FAILED, "%s %u bytes at %s, which %s %s, %s: a race", word(access), bytes,
          memory.describe(address).c_str(), name_of(then).c_str(), did, lacks);
}

inline bool races(u64 then, u64 horizon) {
    return then >= horizon &&
           ((then & PENDING) || ((who(then) != me() || then < watch.block_start) && !before_now(then)));
}

inline void touch_cell(Cell &cell, u64 address, u32 bytes, Access access, u64 horizon) {
    const u64 now = watch.moment;
    const u64 wrote = cell.wrote;
    if (wrote >= horizon && wrote != now) {
        const bool both_atomic = access == Access::atomic && (wrote & (ATOMIC | PENDING)) == ATOMIC;
        if (!both_atomic && races(wrote, horizon)) {
            race(address, bytes, access, wrote, wrote & ATOMIC ? "changed by an atomic" : "wrote");
        }
    }
    const u64 read = cell.read;
    if (access == Access::read) {
        // Where several have read since the last barrier it says so already.
        const u32 readers = who(read);
        if (read == now || (readers == BLOCK && read >= watch.block_met)) return;
        if (readers == BLOCKS && read >= watch.launch_start) return;
        cell.read = read < horizon ? now : joined(read, horizon);
        return;
    }
    if (read >= horizon && races(read, horizon)) race(address, bytes, access, read, "read");
    if (access == Access::write) {
        cell.wrote = now;
    } else {
        cell.wrote = (wrote & ATOMIC ? joined(wrote, horizon) : now) | ATOMIC;
    }
}

// Cells for the page, one for each 2^grain bytes or finer. Where there were coarser ones each is split.
__attribute__((noinline)) void refine(Page &page, u32 grain) {
    if (page.cells != nullptr && page.grain <= grain) return;
    const u32 count = PAGE_BYTES >> grain;
    Cell *cells = static_cast<Cell *>(calloc(count, sizeof(Cell)));
    if (page.cells != nullptr) {
        for (u32 i = 0; i < count; ++i) cells[i] = page.cells[i >> (page.grain - grain)];
        free(page.cells);
    }
    page.cells = cells;
    page.grain = u16(grain);
}

// The library's own constants, which kernels may read.
bool in_library(u64 address) {
    static u64 low = ~0ull, high = 0;
    if (high == 0) {
        dl_iterate_phdr(
            [](dl_phdr_info *info, size_t, void *) {
                u64 from = ~0ull, to = 0;
                for (int i = 0; i < info->dlpi_phnum; ++i) {
                    if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
                    const u64 at = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
                    from = at < from ? at : from;
                    to = at + info->dlpi_phdr[i].p_memsz > to ? at + info->dlpi_phdr[i].p_memsz : to;
                }
                const u64 here = reinterpret_cast<u64>(&watch);
                if (here < from || here >= to) return 0;
                low = from;
                high = to;
                return 1;
            },
            nullptr);
    }
    return address >= low && address < high;
}

// What the quick way below does not take: an access to be refused, one over several pages, or a constant.
__attribute__((noinline)) void touch_slowly(u64 address, u32 bytes, Access access, bool aligned) {
    if (access == Access::read && in_library(address)) return;
    if (aligned && address % bytes != 0) {
        fault(ILLEGAL_ADDRESS, "%s %u bytes at %s, an address that is no multiple of %u", word(access), bytes,
              memory.describe(address).c_str(), bytes);
    }
    while (bytes > 0) {
        const u64 offset = address - memory.start;
        if (offset >= memory.span || offset % PAGE_BYTES >= memory.pages[offset / PAGE_BYTES].limit) {
            fault(ILLEGAL_ADDRESS, "%s %u bytes at %s", word(access), bytes, memory.describe(address).c_str());
        }
        Page &page = memory.pages[offset / PAGE_BYTES];
        const u32 at = offset % PAGE_BYTES;
        const u32 here = bytes < page.limit - at ? bytes : page.limit - at;
        u32 grain = page.cells != nullptr ? page.grain : 4;
        while ((at | here) & ((1u << grain) - 1)) --grain;
        refine(page, grain);
        const u64 horizon = offset < SHARED_SPAN ? watch.block_start : watch.launch_start;
        for (u32 i = at; i < at + here; i += 1u << page.grain) {
            touch_cell(page.cells[i >> page.grain], address, here, access, horizon);
        }
        address += here;
        bytes -= here;
    }
}

// An access of a power of two of bytes that must be aligned: all but few.
template <u32 BYTES> inline __attribute__((always_inline)) void touch_quickly(u64 address, Access access) {
    if (!watch.watching || address - watch.stacks < watch.stacks_bytes) return;
    constexpr u32 GRAIN = BYTES == 16 ? 4 : BYTES == 8 ? 3 : BYTES == 4 ? 2 : BYTES == 2 ? 1 : 0;
    const u64 offset = address - memory.start;
    if (offset >= memory.span || address % BYTES != 0) return touch_slowly(address, BYTES, access, true);
    Page &page = memory.pages[offset / PAGE_BYTES];
    const u32 at = offset % PAGE_BYTES;
    if (at + BYTES > page.limit) return touch_slowly(address, BYTES, access, true);
    if (page.cells == nullptr || page.grain > GRAIN) refine(page, GRAIN);
    const u64 horizon = offset < SHARED_SPAN ? watch.block_start : watch.launch_start;
    Cell *cell = page.cells + (at >> page.grain);
    for (u32 i = 0; i < BYTES; i += 1u << page.grain) touch_cell(*cell++, address, BYTES, access, horizon);
}

void mark_copy(u64 to, u64 flag) {
    if (!watch.watching) return;
    const u64 offset = to - memory.start;
    Page &page = memory.pages[offset / PAGE_BYTES];
    for (u32 i = 0; i < 16; i += 1u << page.grain) {
        Cell &cell = page.cells[(offset % PAGE_BYTES + i) >> page.grain];
        cell.wrote = (cell.wrote & ~PENDING) | flag;
    }
}

} // namespace

void touch(u64 address, u32 bytes, Access access, bool aligned) {
    if (!watch.watching || bytes == 0 || address - watch.stacks < watch.stacks_bytes) return;
    if (aligned && bytes == 16) return touch_quickly<16>(address, access);
    if (aligned && bytes == 4) return touch_quickly<4>(address, access);
    touch_slowly(address, bytes, access, aligned);
}

bool may_tell() { return fences.used && fences.passed[me()] != 0; }

void told_by_atomic(u64 address) {
    if (!watch.watching || memory.is_shared(address)) return;
    ++fences.changes;
    std::vector<u64> &changed = fences.changed[me()];
    if (std::find(changed.begin(), changed.end(), address) == changed.end()) changed.push_back(address);
    if (!may_tell()) return;
    u64 all = ~0ull;
    for (u32 i = 0; i < threads_of_block(); ++i) all = std::min(all, fences.passed[i]);
    const u64 by_block = std::max(fences.met[me()], all < watch.block_met ? all : 0);
    fences.told[address].push_back({watch.block_start, me(), fences.passed[me()], watch.moment, by_block});
}

void pass_fence() {
    if (!watch.watching) return;
    fences.used = true;
    fences.passed[me()] = watch.moment & ~u64(0xffff);
    fences.met[me()] = watch.block_met;
    for (u64 address : fences.changed[me()]) {
        const auto found = fences.told.find(address);
        if (found == fences.told.end()) continue;
        for (const Told &told : found->second) {
            if (told.block == watch.block_start) continue;
            fences.heard.push_back(told);
            fences.heard_of.insert(told.block);
        }
        fences.hearer = me();
        fences.heard_at = watch.moment;
    }
    fences.changed[me()].clear();
}

void forget_fences(bool of_launch) {
    if (of_launch) fences.told.clear();
    if (!fences.used && fences.changes == 0) return;
    for (u32 i = 0; i < 1024; ++i) {
        fences.passed[i] = 0;
        fences.changed[i].clear();
    }
    fences.used = false;
    fences.changes = 0;
    fences.heard.clear();
    fences.heard_of.clear();
}

void begin_copy(u64 to) {
    touch(to, 16, Access::write, true);
    mark_copy(to, PENDING);
}

void end_copy(u64 to) {
    mark_copy(to, 0);
    touch(to, 16, Access::write, true);
}

// What the compiler calls. Names and meanings are those of gcc's and clang's thread sanitizer.
#define VAECF_SEEN extern "C" __attribute__((visibility("hidden"))) void
#define VAECF_SEEN_BYTES(BYTES)                                                                                        \
    VAECF_SEEN __tsan_read##BYTES(void *at) { touch_quickly<BYTES>(u64(at), Access::read); }                           \
    VAECF_SEEN __tsan_write##BYTES(void *at) { touch_quickly<BYTES>(u64(at), Access::write); }                         \
    VAECF_SEEN __tsan_volatile_read##BYTES(void *at) { touch_quickly<BYTES>(u64(at), Access::read); }                  \
    VAECF_SEEN __tsan_volatile_write##BYTES(void *at) { touch_quickly<BYTES>(u64(at), Access::write); }                \
    VAECF_SEEN __tsan_unaligned_read##BYTES(void *at) { touch(u64(at), BYTES, Access::read, false); }                  \
    VAECF_SEEN __tsan_unaligned_write##BYTES(void *at) { touch(u64(at), BYTES, Access::write, false); }

VAECF_SEEN_BYTES(1)
VAECF_SEEN_BYTES(2)
VAECF_SEEN_BYTES(4)
VAECF_SEEN_BYTES(8)
VAECF_SEEN_BYTES(16)

VAECF_SEEN __tsan_read_range(void *at, size_t bytes) { touch(u64(at), u32(bytes), Access::read, false); }
VAECF_SEEN __tsan_write_range(void *at, size_t bytes) { touch(u64(at), u32(bytes), Access::write, false); }
VAECF_SEEN __tsan_init() {}
VAECF_SEEN __tsan_func_entry(void *) {}
VAECF_SEEN __tsan_func_exit() {}
VAECF_SEEN __tsan_vptr_update(void **, void *) {}
VAECF_SEEN __tsan_vptr_read(void **) {}

extern "C" __attribute__((visibility("hidden"))) void *vaecf_watched_memcpy(void *to, const void *from, size_t bytes) {
    touch(u64(from), u32(bytes), Access::read, false);
    touch(u64(to), u32(bytes), Access::write, false);
    return memcpy(to, from, bytes);
}
extern "C" __attribute__((visibility("hidden"))) void *vaecf_watched_memmove(void *to, const void *from, size_t bytes) {
    touch(u64(from), u32(bytes), Access::read, false);
    touch(u64(to), u32(bytes), Access::write, false);
    return memmove(to, from, bytes);
}
extern "C" __attribute__((visibility("hidden"))) void *vaecf_watched_memset(void *to, int value, size_t bytes) {
    touch(u64(to), u32(bytes), Access::write, false);
    return memset(to, value, bytes);
}

} // namespace emulator
