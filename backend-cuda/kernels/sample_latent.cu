// The latent sample and its gradient: one block a user, a thread for each four latent units, which share a draw.
#include "common.cuh"

static const u32 THREADS = 128;

// z = mu + exp(logvar / 2) eps; kl[first + r] = 1/2 sum (exp(logvar) + mu^2 - 1 - logvar).
template <class T>
INLINE void sample(const Rows &x, const T *stats, u64 stats_stride, u32 units, const Noise &noise, const Step *step,
                   T *z, u64 z_stride, float *kl, u64 kl_stride) {
    float *scratch = (float *)shared_memory();
    u32 position = x.first + step->first + blockIdx.x, user = x.users ? x.users[position] : position;
    const T *mu = stats + blockIdx.x * stats_stride, *logvar = mu + units;
    z += blockIdx.x * z_stride;
    float sum = 0.0f;
    for (u32 block = threadIdx.x; 4 * block < units; block += THREADS) {
        float eps[4] = {};
        if (noise.keep > 0.0f) normals(eps, noise, step->update, user, block);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            u32 k = 4 * block + i;
            if (k < units) {
                float m = widen(mu[k]), v = widen(logvar[k]);
                z[k] = narrow<T>(m + expf(0.5f * v) * eps[i]);
                sum += 0.5f * (expf(v) + m * m - 1.0f - v);
            }
        }
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) kl[position * kl_stride] = sum;
}

// dmu = dz + beta mu, dlogvar = 1/2 dz eps exp(logvar / 2) + beta / 2 (exp(logvar) - 1).
template <class T>
INLINE void grad(const Rows &x, const T *stats, u64 stats_stride, u32 units, const T *dz, u64 dz_stride,
                 const Noise &noise, const Step *step, const Scale *scale, T *dstats, u64 dstats_stride) {
    u32 position = x.first + step->first + blockIdx.x, user = x.users ? x.users[position] : position;
    float beta = step->beta * scale->scale;
    const T *mu = stats + blockIdx.x * stats_stride, *logvar = mu + units;
    T *dmu = dstats + blockIdx.x * dstats_stride, *dlogvar = dmu + units;
    dz += blockIdx.x * dz_stride;
    for (u32 block = threadIdx.x; 4 * block < units; block += THREADS) {
        float eps[4] = {};
        if (noise.keep > 0.0f) normals(eps, noise, step->update, user, block);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            u32 k = 4 * block + i;
            if (k < units) {
                float d = widen(dz[k]), deviation = expf(0.5f * widen(logvar[k]));
                dmu[k] = narrow<T>(d + beta * widen(mu[k]));
                dlogvar[k] = narrow<T>(0.5f * (d * eps[i] * deviation + beta * (deviation * deviation - 1.0f)));
            }
        }
    }
}

#define LATENT(TYPE)                                                                                                  \
    KERNEL(sample_latent_##TYPE, THREADS,                                                                             \
           (Rows x, const TYPE *stats, u64 stats_stride, u32 units, Noise noise, const Step *step, TYPE *z,           \
            u64 z_stride, float *kl, u64 kl_stride)) {                                                                \
        sample<TYPE>(x, stats, stats_stride, units, noise, step, z, z_stride, kl, kl_stride);                         \
    }                                                                                                                 \
    KERNEL(sample_latent_grad_##TYPE, THREADS,                                                                        \
           (Rows x, const TYPE *stats, u64 stats_stride, u32 units, const TYPE *dz, u64 dz_stride, Noise noise,       \
            const Step *step, const Scale *scale, TYPE *dstats, u64 dstats_stride)) {                                 \
        grad<TYPE>(x, stats, stats_stride, units, dz, dz_stride, noise, step, scale, dstats, dstats_stride);          \
    }

LATENT(f32)
LATENT(f16)
#if __CUDA_ARCH__ >= 800
LATENT(bf16)
#endif
