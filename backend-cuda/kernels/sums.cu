// Gradients to half precision and back, for sums over a group of devices that travel so.
//
// The first `head` numbers stand before the first whole vector, on both sides.
#include "common.cuh"

static const u32 THREADS = 256;

// Eight numbers at a time: a vector of halves, two of single precision.
template <class T> INLINE void pack(const float *in, T *out, u64 len, u32 head) {
    if (blockIdx.x == 0 && threadIdx.x < head) out[threadIdx.x] = narrow<T>(in[threadIdx.x]);
    in += head;
    out += head;
    len -= head;
    u64 stride = u64(gridDim.x) * THREADS, vectors = len / 8;
#pragma unroll 2
    for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < vectors; i += stride) {
        Vector<float> low = load_vector(in + 8 * i), high = load_vector(in + 8 * i + 4);
        Vector<T> both;
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            both.at[j] = narrow<T>(low.at[j]);
            both.at[4 + j] = narrow<T>(high.at[j]);
        }
        store_vector(out + 8 * i, both, 8);
    }
    u64 rest = 8 * vectors + threadIdx.x;
    if (blockIdx.x == 0 && rest < len) out[rest] = narrow<T>(in[rest]);
}

template <class T> INLINE void unpack(const T *in, float *out, u64 len, u32 head) {
    if (blockIdx.x == 0 && threadIdx.x < head) out[threadIdx.x] = widen(in[threadIdx.x]);
    in += head;
    out += head;
    len -= head;
    u64 stride = u64(gridDim.x) * THREADS, vectors = len / 8;
#pragma unroll 2
    for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < vectors; i += stride) {
        Vector<T> both = load_vector(in + 8 * i);
        Vector<float> low, high;
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            low.at[j] = widen(both.at[j]);
            high.at[j] = widen(both.at[4 + j]);
        }
        store_vector(out + 8 * i, low, 4);
        store_vector(out + 8 * i + 4, high, 4);
    }
    u64 rest = 8 * vectors + threadIdx.x;
    if (blockIdx.x == 0 && rest < len) out[rest] = widen(in[rest]);
}

#define SUMS(TYPE)                                                                                                    \
    KERNEL(pack_##TYPE, THREADS, (const float *in, TYPE *out, u64 len, u32 head)) { pack<TYPE>(in, out, len, head); }   \
    KERNEL(unpack_##TYPE, THREADS, (const TYPE *in, float *out, u64 len, u32 head)) {                                   \
        unpack<TYPE>(in, out, len, head);                                                                             \
    }
SUMS(f16)
SUMS(bf16)
