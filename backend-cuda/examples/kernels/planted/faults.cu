#include "prims.cuh"

// 1024 threads leave each 64 registers, and this one holds 128 numbers.
KERNEL(spills, 1024, (float *x)) {
    float held[128];
#pragma unroll
    for (int i = 0; i < 128; ++i) held[i] = x[i * 1024 + threadIdx.x];
    sync_block();
#pragma unroll
    for (int i = 0; i < 128; ++i) x[i * 1024 + threadIdx.x] = held[i] * held[127 - i];
}

// Registers have no addresses: an array that is indexed by what is known late lies in memory.
KERNEL(array, 32, (u32 *x)) {
    u32 held[64];
#pragma unroll
    for (int i = 0; i < 64; ++i) held[i] = x[i];
#pragma unroll
    for (int i = 0; i < 64; ++i) held[x[i + 64] % 64] += i;
    x[threadIdx.x] = held[x[threadIdx.x] % 64];
}

// A product by plain multiplications.
KERNEL(gemm_f16_without, 32, (const f16 *a, const f16 *b, float *c, u32 n)) {
    float sum = 0.0f;
    for (u32 i = 0; i < n; ++i) sum += widen(a[i]) * widen(b[i * n + threadIdx.x]);
    c[threadIdx.x] = sum;
}

extern "C" __global__ void unbounded(float *x) { x[threadIdx.x] += 1.0f; }
