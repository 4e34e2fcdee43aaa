#include "prims.cuh"

KERNEL(numbers, 256, (u32 *w, float *x, f16 *h, bf16 *b, tf32 *t)) {
    u32 i = threadIdx.x + blockIdx.x * 256;
    u32 bits = as_bits(x[i]) | 1;
    w[i] = count_bits(bits) + lowest_bit(bits) + leading_zeros(bits) + multiply_high(bits, w[i]) +
           smaller(bits, w[i]) + larger(lane_of(), warp_of());
    float y = widen(x[i]) + widen(h[i]) + widen(b[i]) + widen(t[i]) + as_float(bits);
    x[i] = is_finite(y) ? fast_exp(narrow<float>(y)) : INFINITY_F;
    h[i] = narrow<f16>(y);
    t[i] = narrow<tf32>(y);
#if __CUDA_ARCH__ >= 800
    b[i] = narrow<bf16>(y);
    w[i] += round_tf32(y);
#endif
}

KERNEL(lanes, 256, (u32 *w, float *x)) {
    u32 i = threadIdx.x;
    float y = swap_lanes(x[i], 3) + from_lane(x[i], 4) + warp_sum(x[i]) + warp_max(x[i]);
    u32 z = swap_lanes(w[i], 3) + from_lane(w[i], 4) + from_below(w[i], 1) + vote(y > 0);
    sync_warp();
    sync_block();
    atomic_or(w, z);
    fence();
    atomic_swap(w, z);
    atomic_add(w + 1, z);
}

template <class T> INLINE void multiply_tiles(const u8 *a, float *c, u32 bytes) {
    u8 *memory = shared_memory();
    copy_async(memory + threadIdx.x * 16, a + threadIdx.x * 16, bytes);
    copy_commit();
    copy_wait<0>();
    sync_block();
    u32 p[4], q[4];
    load_tiles(p, memory + lane_of() * 16);
    load_tiles_transposed(q, memory + 512 + lane_of() * 16);
    float sum[4] = {};
    multiply(sum, p, q, T{});
    for (int i = 0; i < 4; ++i) c[threadIdx.x * 4 + i] = sum[i];
}

KERNEL(gemm_f16_tiles, 64, (const u8 *a, float *c, u32 bytes)) { multiply_tiles<f16>(a, c, bytes); }
#if __CUDA_ARCH__ >= 800
KERNEL(gemm_bf16_tiles, 64, (const u8 *a, float *c, u32 bytes)) { multiply_tiles<bf16>(a, c, bytes); }
KERNEL(gemm_tf32_tiles, 64, (const u8 *a, float *c, u32 bytes)) { multiply_tiles<tf32>(a, c, bytes); }
#endif
