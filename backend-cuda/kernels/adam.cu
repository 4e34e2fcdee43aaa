// One Adam update over the arena.
//
// An update that is skipped leaves everything as it was, so all gradients are looked at before the first weight
// changes: `adam_check` reads them, and `adam` goes through the arena the other way round, so that it begins
// with what is still in the cache. Loss scale and flags stay on the device.
#include "common.cuh"

static const u32 THREADS = 256;

// Shared by the two kernels of an update; all zero before the first.
struct Verdict {
    // Blocks that are done, and whether one found a number that is not finite: zero again afterwards.
    u32 done;
    u32 bad;
    // What `adam` goes by.
    u32 skip;
    float inverse_scale;
};

// `dynamic`: the scale halves with a skipped update and doubles after `growth` finite ones.
KERNEL(adam_check, THREADS, (const float *dw, u64 len, Scale *scale, Verdict *verdict, u32 dynamic, u32 growth)) {
    u64 stride = u64(gridDim.x) * THREADS, vectors = len / 4;
    u32 bad = 0;
#pragma unroll 4
    for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < vectors; i += stride) {
        Vector<float> v = load_vector(dw + 4 * i);
#pragma unroll
        for (u32 j = 0; j < 4; ++j) bad |= !is_finite(v.at[j]);
    }
    u64 rest = 4 * vectors + threadIdx.x;
    if (blockIdx.x == 0 && rest < len) bad |= !is_finite(dw[rest]);
    bad = vote(bad) != 0;
    if (bad && lane_of() == 0) atomic_or(&verdict->bad, 1);
    sync_block();
    if (threadIdx.x != 0) return;
    fence();
    if (atomic_add(&verdict->done, 1) + 1 < gridDim.x) return;

    // The last block judges.
    fence();
    u32 skip = atomic_swap(&verdict->bad, 0);
    atomic_swap(&verdict->done, 0);
    verdict->skip = skip;
    verdict->inverse_scale = 1.0f / scale->scale;
    scale->finite = !skip;
    scale->skipped += skip;
    scale->good += !skip;
    if (dynamic && skip) {
        scale->scale *= 0.5f;
        scale->good = 0;
    }
    if (dynamic && scale->good >= growth) {
        scale->scale *= 2.0f;
        scale->good = 0;
    }
}

INLINE void update(const Step &s, float factor, bool decays, float dw, float &w, float &m, float &v) {
    float g = dw * factor + (decays ? s.l2 * w : 0.0f);
    m = s.beta1 * m + s.gain1 * g;
    v = s.beta2 * v + s.gain2 * g * g;
    w -= s.rate * m / (sqrtf(v) * s.root + s.eps);
}

// `copy` is the weights as operations read them, where that is not the master itself.
template <class T>
INLINE void adam(float *w, const float *dw, float *m, float *v, T *copy, u64 len, u64 decayed, const Step *step,
                 const Verdict *verdict) {
    if (verdict->skip) return;
    Step s = *step;
    float factor = s.grad_factor * verdict->inverse_scale;
    u64 stride = u64(gridDim.x) * THREADS, vectors = len / 4;
    for (u64 n = u64(blockIdx.x) * THREADS + threadIdx.x; n < vectors; n += stride) {
        u64 at = 4 * (vectors - 1 - n);
        Vector<float> weights = load_vector(w + at), first = load_vector(m + at), second = load_vector(v + at);
        Vector<float> gradient = load_vector(dw + at);
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            update(s, factor, at + j < decayed, gradient.at[j], weights.at[j], first.at[j], second.at[j]);
        }
        store_vector(w + at, weights, 4);
        store_vector(m + at, first, 4);
        store_vector(v + at, second, 4);
        if (copy) {
            uint2 narrowed;
            T *each = (T *)&narrowed;
#pragma unroll
            for (u32 j = 0; j < 4; ++j) each[j] = narrow<T>(weights.at[j]);
            *(uint2 *)(copy + at) = narrowed;
        }
    }
    u64 rest = 4 * vectors + threadIdx.x;
    if (blockIdx.x == 0 && rest < len) {
        update(s, factor, rest < decayed, dw[rest], w[rest], m[rest], v[rest]);
        if (copy) copy[rest] = narrow<T>(w[rest]);
    }
}

KERNEL(adam_f32, THREADS,
       (float *w, const float *dw, float *m, float *v, u64 len, u64 decayed, const Step *step,
        const Verdict *verdict)) {
    adam<f16>(w, dw, m, v, nullptr, len, decayed, step, verdict);
}

#define ADAM(TYPE)                                                                                                    \
    KERNEL(adam_##TYPE, THREADS,                                                                                      \
           (float *w, const float *dw, float *m, float *v, TYPE *copy, u64 len, u64 decayed, const Step *step,        \
            const Verdict *verdict)) {                                                                                \
        adam<TYPE>(w, dw, m, v, copy, len, decayed, step, verdict);                                                   \
    }
ADAM(f16)
#if __CUDA_ARCH__ >= 800
ADAM(bf16)
#endif
