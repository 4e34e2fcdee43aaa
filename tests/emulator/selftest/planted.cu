// Kernels with a fault that the emulator must find, and that is not there where `right` is true.
#include "prims.cuh"

INLINE u32 global_thread() { return blockIdx.x * blockDim.x + threadIdx.x; }
INLINE u32 *shared_words() { return (u32 *)shared_memory(); }

// ---- Barriers ----

// Reads what another warp wrote.
KERNEL(barrier_before_read, 256, (u32 right, u32 *out)) {
    shared_words()[threadIdx.x] = threadIdx.x;
    if (right) sync_block();
    out[global_thread()] = shared_words()[(threadIdx.x + 32) % blockDim.x];
}

// Writes again what another warp may not have read yet.
KERNEL(barrier_before_reuse, 256, (u32 right, u32 *out)) {
    u32 sum = 0;
    for (u32 round = 0; round < 3; ++round) {
        shared_words()[threadIdx.x] = threadIdx.x + round;
        sync_block();
        sum += shared_words()[(threadIdx.x + 32) % blockDim.x];
        if (right) sync_block();
    }
    out[global_thread()] = sum;
}

// Within a warp a barrier of the warp is enough.
KERNEL(barrier_of_warp, 256, (u32 right, u32 *out)) {
    shared_words()[threadIdx.x] = threadIdx.x;
    if (right) sync_warp();
    out[global_thread()] = shared_words()[threadIdx.x ^ 1];
}

// A barrier of the warp is not enough between warps.
KERNEL(barrier_too_small, 256, (u32 right, u32 *out)) {
    shared_words()[threadIdx.x] = threadIdx.x;
    if (right) sync_block();
    sync_warp();
    out[global_thread()] = shared_words()[(threadIdx.x + 64) % blockDim.x];
}

// The device's memory needs the barrier, too.
KERNEL(barrier_for_global, 256, (u32 right, u32 *out)) {
    out[global_thread()] = threadIdx.x;
    if (right) sync_block();
    const u32 other = out[blockIdx.x * blockDim.x + (threadIdx.x + 32) % blockDim.x];
    sync_block();
    out[global_thread()] = other;
}

KERNEL(barrier_in_branch, 256, (u32 right, u32 *out)) {
    if (right || threadIdx.x < 64) sync_block();
    out[global_thread()] = 1;
}

KERNEL(barrier_after_return, 256, (u32 right, u32 *out)) {
    if (!right && threadIdx.x == 77) return;
    sync_block();
    out[global_thread()] = 1;
}

// ---- Warps ----

KERNEL(shuffle_in_branch, 256, (u32 right, u32 *out)) {
    u32 x = threadIdx.x;
    if (right || lane_of() < 16) x += swap_lanes(x, 1);
    out[global_thread()] = x;
}

KERNEL(shuffle_before_barrier, 256, (u32 right, u32 *out)) {
    u32 x = threadIdx.x;
    if (right || threadIdx.x != 5) x = from_lane(x, 0);
    sync_block();
    out[global_thread()] = x;
}

KERNEL(two_collectives, 256, (u32 right, u32 *out)) {
    const u32 low = right || lane_of() < 16;
    out[global_thread()] = low ? vote(true) : swap_lanes(threadIdx.x, 1);
}

// ---- Addresses ----

KERNEL(shared_write_past_end, 256, (u32 right, u32 *out)) {
    shared_words()[threadIdx.x + (right ? 0 : 1)] = 1;
    out[global_thread()] = 1;
}

KERNEL(shared_read_before_start, 256, (u32 right, u32 *out)) {
    shared_words()[threadIdx.x] = 1;
    out[global_thread()] = shared_words()[int(threadIdx.x) - (right || threadIdx.x > 0 ? 0 : 1)];
}

KERNEL(global_write_past_end, 256, (u32 right, u32 *out)) { out[global_thread() + (right ? 0 : 1)] = 1; }

KERNEL(global_read_past_end, 256, (u32 right, u32 *out)) {
    const u32 i = global_thread();
    const u32 x = right || i + 1 < gridDim.x * blockDim.x ? 0 : out[i + 1];
    out[i] = x;
}

KERNEL(global_read_before_start, 256, (u32 right, u32 *out)) {
    const u32 i = global_thread();
    const u32 x = right || i > 0 ? 0 : out[int(i) - 1];
    out[i] = x;
}

// Reads through a pointer of its argument: the tests give it a null pointer, one of the host, and a freed one.
KERNEL(read_through, 256, (const u32 *from, u32 *out)) { out[global_thread()] = from[global_thread()]; }

KERNEL(misaligned_vector, 256, (u32 right, const float *from, float *out)) {
    const float4 x = *(const float4 *)(from + (right ? 0 : 1));
    out[global_thread()] = x.x + x.y + x.z + x.w;
}

KERNEL(misaligned_word, 256, (u32 right, const u16 *from, u32 *out)) {
    out[global_thread()] = *(const u32 *)(from + (right ? 2 : 1));
}

KERNEL(misaligned_row, 32, (u32 right, u32 *out)) {
    for (u32 i = threadIdx.x; i < 256; i += 32) shared_words()[i] = i;
    sync_warp();
    u32 tiles[4];
    load_tiles(tiles, shared_memory() + 16 * lane_of() + (right ? 0 : 8));
    out[global_thread()] = tiles[0];
}

KERNEL(rows_of_global, 32, (u32 right, u32 *out)) {
    for (u32 i = threadIdx.x; i < 256; i += 32) shared_words()[i] = i;
    sync_warp();
    u32 tiles[4];
    load_tiles(tiles, right ? (void *)(shared_memory() + 16 * lane_of()) : (void *)(out + 4 * lane_of()));
    sync_warp();
    out[global_thread()] = tiles[0];
}

// ---- Races through the device's memory ----

KERNEL(blocks_write_same, 256, (u32 right, u32 *out)) { out[right ? global_thread() : threadIdx.x] = 1; }

KERNEL(block_reads_other, 256, (u32 right, u32 *out)) {
    const u32 n = gridDim.x * blockDim.x, i = global_thread();
    const u32 x = right || blockIdx.x > 0 ? i : out[(i + blockDim.x) % n];
    out[i] = x;
}

KERNEL(threads_write_same, 256, (u32 right, u32 *out)) {
    if (right ? threadIdx.x == 0 : threadIdx.x % 64 == 0) out[blockIdx.x] = 1;
}

KERNEL(count_without_atomic, 256, (u32 right, u32 *out)) {
    if (right) {
        atomic_add(&out[threadIdx.x % 7], 1);
    } else {
        out[threadIdx.x % 7] += 1;
    }
}

KERNEL(plain_read_of_atomic, 256, (u32 right, u32 *out)) {
    atomic_or(&out[0], 1u << lane_of());
    if (!right && threadIdx.x == 200) out[1] = out[0];
}

// The last block adds up what each has left: `out` is a count and then a number of each block.
INLINE void last_adds_up(bool first_fence, bool second_fence, u32 *out) {
    if (threadIdx.x == 0) out[1 + blockIdx.x] = blockIdx.x;
    if (first_fence) fence();
    sync_block();
    if (threadIdx.x != 0 || atomic_add(&out[0], 1) + 1 < gridDim.x) return;
    if (second_fence) fence();
    u32 sum = 0;
    for (u32 i = 0; i < gridDim.x; ++i) sum += out[1 + i];
    out[0] = sum;
}
KERNEL(told_without_fence, 256, (u32 right, u32 *out)) { last_adds_up(right, true, out); }
KERNEL(heard_without_fence, 256, (u32 right, u32 *out)) { last_adds_up(true, right, out); }

// What is written after the fence is not told.
KERNEL(told_too_late, 256, (u32 right, u32 *out)) {
    if (threadIdx.x == 0) {
        if (right) out[1 + blockIdx.x] = blockIdx.x;
        fence();
        if (!right) out[1 + blockIdx.x] = blockIdx.x;
        if (atomic_add(&out[0], 1) + 1 < gridDim.x) return;
        fence();
        u32 sum = 0;
        for (u32 i = 0; i < gridDim.x; ++i) sum += out[1 + i];
        out[0] = sum;
    }
}

// ---- Asynchronous copies ----

KERNEL(copy_without_wait, 64, (u32 right, const u32 *from, u32 *out)) {
    copy_async(shared_memory() + 16 * threadIdx.x, from + 4 * threadIdx.x, 16);
    copy_commit();
    if (right) copy_wait<0>();
    sync_block();
    out[global_thread()] = shared_words()[threadIdx.x];
}

KERNEL(copy_without_commit, 64, (u32 right, const u32 *from, u32 *out)) {
    copy_async(shared_memory() + 16 * threadIdx.x, from + 4 * threadIdx.x, 16);
    if (right) copy_commit();
    copy_wait<0>();
    sync_block();
    out[global_thread()] = shared_words()[threadIdx.x];
}

KERNEL(copy_wait_too_weak, 64, (u32 right, const u32 *from, u32 *out)) {
    for (u32 half = 0; half < 2; ++half) {
        copy_async(shared_memory() + 1024 * half + 16 * threadIdx.x, from + 4 * threadIdx.x, 16);
        copy_commit();
    }
    if (right) {
        copy_wait<0>();
    } else {
        copy_wait<1>();
    }
    sync_block();
    out[global_thread()] = shared_words()[threadIdx.x] + shared_words()[256 + threadIdx.x];
}

// What a thread waits for is there for that thread only, until the barrier.
KERNEL(copy_without_barrier, 64, (u32 right, const u32 *from, u32 *out)) {
    copy_async(shared_memory() + 16 * threadIdx.x, from + 4 * threadIdx.x, 16);
    copy_commit();
    copy_wait<0>();
    if (right) sync_block();
    out[global_thread()] = shared_words()[threadIdx.x];
}

KERNEL(copy_misaligned, 64, (u32 right, const u32 *from, u32 *out)) {
    copy_async(shared_memory() + 16 * threadIdx.x, from + (right ? 4 : 1) * threadIdx.x, 16);
    copy_commit();
    copy_wait<0>();
    sync_block();
    out[global_thread()] = shared_words()[threadIdx.x];
}

KERNEL(copy_past_end, 64, (u32 right, const u32 *from, u32 *out)) {
    // The source has 4 * 64 words; of the last thread's only one is there.
    copy_async(shared_memory() + 16 * threadIdx.x, from + 4 * threadIdx.x + (right || threadIdx.x < 63 ? 0 : 4), 4);
    copy_commit();
    copy_wait<0>();
    sync_block();
    out[global_thread()] = shared_words()[4 * threadIdx.x] + shared_words()[4 * threadIdx.x + 3];
}
