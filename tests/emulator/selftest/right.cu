// Kernels without a fault: what they compute is checked, and their speed measured.
#include "prims.cuh"

// A name that planted.cu has too, with another meaning: each file is a program by itself.
INLINE u32 global_thread() { return blockIdx.x * blockDim.x + threadIdx.x; }
INLINE u32 *shared_words() { return (u32 *)(shared_memory() + 256); }

// ---- Numbers ----

KERNEL(widen_each, 256, (float *of_f16, float *of_bf16)) {
    const u32 i = global_thread();
    of_f16[i] = widen(f16{u16(i)});
    of_bf16[i] = widen(bf16{u16(i)});
}

KERNEL(narrow_each, 256, (u32 n, const float *x, f16 *as_f16, bf16 *as_bf16, u32 *as_tf32)) {
    const u32 i = global_thread();
    if (i >= n) return;
    // Neighbours in one word are different threads' business.
    as_f16[i] = narrow<f16>(x[i]);
    as_bf16[i] = narrow<bf16>(x[i]);
    as_tf32[i] = round_tf32(x[i]);
}

// Each argument where it must be, whatever its size.
struct Three {
    u32 a, b, c;
};
KERNEL(arguments, 32, (u8 a, u16 b, float c, u64 d, Three e, u32 *out)) {
    if (threadIdx.x != 0) return;
    out[0] = a;
    out[1] = b;
    out[2] = as_bits(c);
    out[3] = u32(d >> 32);
    out[4] = e.a + e.b + e.c;
    const u32 place = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    out[5 + place] = place;
}

// ---- Warps and fragments ----

KERNEL(collectives, 32, (u32 * out)) {
    const u32 lane = lane_of();
    out[lane] = swap_lanes(100 + lane, 5);
    out[32 + lane] = from_lane(100 + lane, (3 * lane + 1) % 32);
    out[64 + lane] = from_below(100 + lane, 3);
    out[96 + lane] = vote(lane % 3 == 0);
    out[128 + lane] = as_bits(warp_sum(float(lane)));
    out[160 + lane] = as_bits(warp_max(float(lane ^ 21)));
}

// Four tiles of 8x8, one after another, to what each lane gets.
KERNEL(tiles_of_lanes, 32, (u32 transposed, const u16 *from, u32 *out)) {
    u16 *shared = (u16 *)shared_memory();
    for (u32 i = threadIdx.x; i < 256; i += 32) shared[i] = from[i];
    sync_block();
    u32 tiles[4];
    if (transposed) {
        load_tiles_transposed(tiles, shared + 8 * lane_of());
    } else {
        load_tiles(tiles, shared + 8 * lane_of());
    }
    for (u32 i = 0; i < 4; ++i) out[4 * lane_of() + i] = tiles[i];
}

template <class T> INLINE void multiply_given(const u32 *a, const u32 *b, float *c, T type) {
    const u32 lane = lane_of();
    u32 rows[4], columns[2];
    float sums[4];
    for (u32 i = 0; i < 4; ++i) rows[i] = a[4 * lane + i];
    for (u32 i = 0; i < 2; ++i) columns[i] = b[2 * lane + i];
    for (u32 i = 0; i < 4; ++i) sums[i] = c[4 * lane + i];
    multiply(sums, rows, columns, type);
    for (u32 i = 0; i < 4; ++i) c[4 * lane + i] = sums[i];
}

KERNEL(multiply_f16, 32, (const u32 *a, const u32 *b, float *c)) { multiply_given(a, b, c, f16{}); }
KERNEL(multiply_bf16, 32, (const u32 *a, const u32 *b, float *c)) { multiply_given(a, b, c, bf16{}); }
KERNEL(multiply_tf32, 32, (const u32 *a, const u32 *b, float *c)) { multiply_given(a, b, c, tf32{}); }

// ---- Whole kernels ----

// A row of softmax a block, as a training step has it.
KERNEL(softmax_rows, 256, (u32 n, float *x)) {
    float *row = x + u64(blockIdx.x) * n;
    float *shared = (float *)shared_memory();
    float most = -INFINITY_F;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) most = larger(most, row[i]);
    most = warp_max(most);
    if (lane_of() == 0) shared[warp_of()] = most;
    sync_block();
    for (u32 i = 0; i < blockDim.x / 32; ++i) most = larger(most, shared[i]);
    float sum = 0;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) sum += fast_exp(row[i] - most);
    sum = warp_sum(sum);
    sync_block();
    if (lane_of() == 0) shared[warp_of()] = sum;
    sync_block();
    sum = 0;
    for (u32 i = 0; i < blockDim.x / 32; ++i) sum += shared[i];
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) row[i] = fast_exp(row[i] - most) / sum;
}

// c = a b, all m x n, m x k, k x n in rows, multiples of 64, 64 and 16: 64x64 a block of four warps, the next
// step's operands on their way while this one's are used.
KERNEL(product, 128, (u32 n, u32 k, const f16 *a, const f16 *b, float *c)) {
    const u32 row = blockIdx.y * 64, column = blockIdx.x * 64, lane = lane_of(), warp = warp_of();
    f16 *shared = (f16 *)shared_memory();
    const u32 half = 64 * 16 + 16 * 64;
    const auto fetch = [&](u32 step) {
        f16 *to = shared + step % 2 * half;
        const u32 i = threadIdx.x;
        copy_async(to + i * 8, a + u64(row + i / 2) * k + step * 16 + i % 2 * 8, 16);
        copy_async(to + 1024 + i * 8, b + u64(step * 16 + i / 8) * n + column + i % 8 * 8, 16);
        copy_commit();
    };
    float sums[8][4];
    for (u32 j = 0; j < 8; ++j) {
        for (u32 i = 0; i < 4; ++i) sums[j][i] = 0;
    }
    fetch(0);
    for (u32 step = 0; step < k / 16; ++step) {
        if (step + 1 < k / 16) {
            fetch(step + 1);
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        sync_block();
        const f16 *from = shared + step % 2 * half;
        u32 rows[4];
        load_tiles(rows, from + (16 * warp + lane % 16) * 16 + lane / 16 * 8);
        for (u32 j = 0; j < 4; ++j) {
            u32 columns[4];
            load_tiles_transposed(columns, from + 1024 + (lane % 16) * 64 + 16 * j + lane / 16 * 8);
            multiply(sums[2 * j], rows, columns, f16{});
            multiply(sums[2 * j + 1], rows, columns + 2, f16{});
        }
        sync_block();
    }
    for (u32 j = 0; j < 8; ++j) {
        float *to = c + u64(row + 16 * warp + lane / 4) * n + column + 8 * j + lane % 4 * 2;
        *(float2 *)to = make_float2(sums[j][0], sums[j][1]);
        *(float2 *)(to + 8 * n) = make_float2(sums[j][2], sums[j][3]);
    }
}

KERNEL(add_scaled, 256, (u32 n, float scale, const float4 *x, float4 *y)) {
    for (u32 i = global_thread(); i < n; i += gridDim.x * blockDim.x) {
        const float4 a = x[i];
        float4 b = y[i];
        b.x += scale * a.x;
        b.y += scale * a.y;
        b.z += scale * a.z;
        b.w += scale * a.w;
        y[i] = b;
    }
}

KERNEL(fill_shared, 256, (u32 words, u32 *out)) {
    u32 *shared = shared_words();
    for (u32 i = threadIdx.x; i < words - 64; i += blockDim.x) shared[i] = i;
    sync_block();
    out[global_thread()] = shared[threadIdx.x];
}

KERNEL(add_one, 256, (u32 n, u32 *x)) {
    const u32 i = global_thread();
    if (i < n) x[i] += 1;
}

// A table that lives with the code.
static const u32 TABLE[4] = {3, 1, 4, 1};
KERNEL(read_table, 32, (u32 * out)) { out[threadIdx.x] = TABLE[threadIdx.x % 4]; }
