#include "memory.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulator {

Memory memory;

namespace {

constexpr u64 STEP = 4096; // of the machine's own pages, so that a freed allocation gives its memory back
constexpr u64 GAP = 4096;  // unused addresses after each allocation
// A larger allocation has garbage only this far, so that claiming all memory does not take all of the host's.
constexpr u64 FILLED = 256 << 20;

u64 reserve(u64 bytes) {
    void *at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? 0 : reinterpret_cast<u64>(at);
}

void fill(u64 address, u64 bytes) {
    u16 *numbers = reinterpret_cast<u16 *>(address);
    for (u64 i = 0; i < bytes / 2; ++i) numbers[i] = GARBAGE;
}

} // namespace

void Memory::open() {
    if (start != 0) return;
    for (span = 128ull << 30; span >= 1ull << 30; span /= 2) {
        start = reserve(span);
        pages = reinterpret_cast<Page *>(reserve(span / PAGE_BYTES * sizeof(Page)));
        if (start != 0 && pages != nullptr) break;
        if (start != 0) munmap(reinterpret_cast<void *>(start), span);
        if (pages != nullptr) munmap(pages, span / PAGE_BYTES * sizeof(Page));
        start = 0;
    }
    if (start == 0) {
        fprintf(stderr, "emulator: the system gives no range of addresses for device memory\n");
        abort();
    }
    cursor = start + SHARED_SPAN;
}

u64 Memory::allocate(u64 bytes, int device) {
    const u64 needed = (512 + bytes + GAP + STEP - 1) / STEP * STEP;
    // Onwards from the last one, so that addresses come again late; once round before giving up.
    for (int round = 0; round < 2; ++round) {
        for (auto next = allocations.lower_bound(cursor);; ++next) {
            const u64 end = next == allocations.end() ? start + span : next->first / STEP * STEP;
            if (end - cursor >= needed) {
                const u64 address = cursor + 512;
                cursor += needed;
                allocations[address] = {bytes, device};
                ASAN_UNPOISON_MEMORY_REGION(reinterpret_cast<void *>(address), bytes);
                ASAN_POISON_MEMORY_REGION(reinterpret_cast<void *>(address + bytes), needed - 512 - bytes);
                set_limits(address, bytes, true);
                fill(address, bytes < FILLED ? bytes + 1 : FILLED);
                return address;
            }
            if (next == allocations.end()) break;
            cursor = (next->first + next->second.bytes + GAP + STEP - 1) / STEP * STEP;
        }
        cursor = start + SHARED_SPAN;
    }
    return 0;
}

bool Memory::release(u64 address) {
    const auto found = allocations.find(address);
    if (found == allocations.end()) return false;
    const u64 bytes = found->second.bytes;
    set_limits(address, bytes, false);
    const u64 from = address / STEP * STEP;
    madvise(reinterpret_cast<void *>(from), (address + bytes - from + STEP - 1) / STEP * STEP, MADV_DONTNEED);
    ASAN_POISON_MEMORY_REGION(reinterpret_cast<void *>(address), bytes);
    allocations.erase(found);
    return true;
}

void Memory::set_shared(u32 bytes) {
    if (bytes != shared_bytes) {
        set_limits(shared(), shared_bytes, false);
        set_limits(shared(), bytes, true);
        ASAN_UNPOISON_MEMORY_REGION(reinterpret_cast<void *>(shared()), bytes);
        ASAN_POISON_MEMORY_REGION(reinterpret_cast<void *>(shared() + bytes), SHARED_SPAN - SHARED_START - bytes);
        shared_bytes = bytes;
    }
    fill(shared(), bytes);
}

void Memory::set_limits(u64 address, u64 bytes, bool usable) {
    Page *page = pages + (address - start) / PAGE_BYTES;
    for (u64 done = 0; done < bytes; done += PAGE_BYTES, ++page) {
        const u64 left = bytes - done;
        page->limit = !usable ? 0 : left < PAGE_BYTES ? u16(left) : u16(PAGE_BYTES);
        if (!usable) {
            free(page->cells);
            page->cells = nullptr;
        }
    }
}

std::map<u64, Allocation>::iterator Memory::find(u64 address, u64 bytes) {
    auto found = allocations.upper_bound(address);
    if (found == allocations.begin()) return allocations.end();
    --found;
    const u64 at = address - found->first;
    return at <= found->second.bytes && bytes <= found->second.bytes - at ? found : allocations.end();
}

std::string Memory::describe(u64 address) {
    char text[200];
    const auto say = [&](const char *format, auto... values) {
        snprintf(text, sizeof text, format, values...);
        return std::string(text);
    };
    if (is_shared(address)) {
        const long long at = (long long)(address - shared());
        if (at < 0) return say("%lld bytes before the %u bytes of shared memory", -at, shared_bytes);
        if (at < shared_bytes) return say("byte %lld of shared memory", at);
        return say("%lld bytes past the end of the %u bytes of shared memory", at - shared_bytes, shared_bytes);
    }
    if (address < 1 << 20) return say("a null pointer and %llu", address);
    if (address - start >= span) return say("0x%llx, which is no memory of the device", address);
    auto after = allocations.upper_bound(address);
    const auto before = after == allocations.begin() ? allocations.end() : std::prev(after);
    if (before != allocations.end()) {
        const u64 at = address - before->first;
        if (at < before->second.bytes) {
            return say("byte %llu of the allocation of %llu bytes at 0x%llx", at, before->second.bytes, before->first);
        }
        const u64 past = at - before->second.bytes;
        if (after == allocations.end() || past <= after->first - address) {
            return say("%llu bytes past the end of the allocation of %llu bytes at 0x%llx", past, before->second.bytes,
                       before->first);
        }
    }
    if (after == allocations.end()) return say("0x%llx, where nothing is allocated", address);
    return say("%llu bytes before the allocation of %llu bytes at 0x%llx", after->first - address, after->second.bytes,
               after->first);
}

} // namespace emulator
