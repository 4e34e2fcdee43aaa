// The sum of each column of a matrix: first of stretches of rows, then of those sums, always in this order.
#include "common.cuh"

static const u32 WARPS = 8;

// Block (x, y) sums rows `y each .. (y + 1) each` of 32 vectors of columns, to row y of `partial`.
template <class T> INLINE void sum(const T *in, u64 stride, u32 rows, u32 cols, u32 each, float *partial) {
    const u32 SIZE = Vector<T>::SIZE;
    float *shared = (float *)shared_memory();
    u32 col = (blockIdx.x * 32 + lane_of()) * SIZE, end = smaller((blockIdx.y + 1) * each, rows);
    float sum[SIZE] = {};
    if (col < cols) {
#pragma unroll 4
        for (u32 r = blockIdx.y * each + warp_of(); r < end; r += WARPS) {
            Vector<T> v = load_vector(in + r * stride + col);
#pragma unroll
            for (u32 i = 0; i < SIZE; ++i) sum[i] += widen(v.at[i]);
        }
    }
#pragma unroll
    for (u32 i = 0; i < SIZE; ++i) shared[warp_of() * (32 * SIZE + 1) + lane_of() * SIZE + i] = sum[i];
    sync_block();
    for (u32 c = threadIdx.x; c < 32 * SIZE; c += 32 * WARPS) {
        float total = 0.0f;
#pragma unroll
        for (u32 warp = 0; warp < WARPS; ++warp) total += shared[warp * (32 * SIZE + 1) + c];
        u32 at = blockIdx.x * 32 * SIZE + c;
        if (at < cols) partial[u64(blockIdx.y) * cols + at] = total;
    }
}

#define SUM(TYPE)                                                                                                     \
    KERNEL(column_sums_##TYPE, 32 * WARPS,                                                                            \
           (const TYPE *in, u64 stride, u32 rows, u32 cols, u32 each, float *partial)) {                              \
        sum<TYPE>(in, stride, rows, cols, each, partial);                                                             \
    }
SUM(f32)
SUM(f16)
#if __CUDA_ARCH__ >= 800
SUM(bf16)
#endif

// out[c] = the sum of column c of `parts` rows.
KERNEL(column_sums_finish, 256, (const float *partial, u32 parts, u32 cols, float *out)) {
    u32 c = blockIdx.x * 256 + threadIdx.x;
    if (c >= cols) return;
    float total = 0.0f;
#pragma unroll 4
    for (u32 p = 0; p < parts; ++p) total += partial[u64(p) * cols + c];
    out[c] = total;
}
