// The loss of each user against the full history, and its gradient in place of the logits: one block a user.
//
// A row is brought to shared memory once and written once. Rows longer than `tile` elements come in tiles, twice.
#include "common.cuh"

// Threads of a block. Blocks wait for memory and compute in turn, so many small ones share a processor better than
// few large ones; of rows in single precision shared memory has room for two in any case.
template <class T> struct Block {
    static const u32 THREADS = 256;
};
template <> struct Block<float> {
    static const u32 THREADS = 512;
};

enum Kind : u32 { MULTINOMIAL = 0, GAUSSIAN = 1, LOGISTIC = 2 };

// Single precision wants the whole of it; what is stored in 16 bits is not better for it.
INLINE float exponential(float x, float) { return expf(x); }
template <class T> INLINE float exponential(float x, T) { return fast_exp(x); }

struct Shared {
    // A warp each, of the largest block.
    float scratch[Block<float>::THREADS / 32];
};

// Elements `from..from + n` of a row to shared memory.
template <class T> INLINE void fetch(const T *row, u32 n, T *tile) {
    const u32 THREADS = Block<T>::THREADS;
#pragma unroll 4
    for (u32 i = threadIdx.x * Vector<T>::SIZE; i < n; i += THREADS * Vector<T>::SIZE) {
        *(Vector<T> *)(tile + i) = load_vector(row + i);
    }
    sync_block();
}

template <class T>
INLINE void likelihood(const Rows &x, u32 kind, float seen, float unseen, T *logits, u64 stride, u32 cols, u32 size,
                       const Step *step, const Scale *scale, float *loss, u64 loss_stride) {
    const u32 SIZE = Vector<T>::SIZE, THREADS = Block<T>::THREADS;
    Shared &shared = *(Shared *)shared_memory();
    T *tile = (T *)(shared_memory() + sizeof(Shared));
    u32 position = x.first + step->first + blockIdx.x;
    Row row = row_at(x, position);
    logits += blockIdx.x * stride;
    float factor = scale->scale;
    bool once = cols <= size;

    // What the softmax is made of: the largest logit, the sum of e^(f - top), the weight of the history.
    float top = 0.0f, sum = 0.0f, total = 0.0f;
    if (once) fetch(logits, cols, tile);
    if (kind == MULTINOMIAL) {
        top = -INFINITY_F;
#pragma unroll 1
        for (u32 from = 0; from < cols; from += size) {
            u32 n = smaller(size, cols - from);
            if (!once) fetch(logits + from, n, tile);
            float most = top;
            for (u32 i = threadIdx.x * SIZE; i < n; i += THREADS * SIZE) {
                Vector<T> v = *(Vector<T> *)(tile + i);
#pragma unroll
                for (u32 j = 0; j < SIZE; ++j) most = larger(most, i + j < n ? widen(v.at[j]) : most);
            }
            most = block_max(most, shared.scratch);
            float part = 0.0f;
            for (u32 i = threadIdx.x * SIZE; i < n; i += THREADS * SIZE) {
                Vector<T> v = *(Vector<T> *)(tile + i);
#pragma unroll
                for (u32 j = 0; j < SIZE; ++j) part += i + j < n ? exponential(widen(v.at[j]) - most, T()) : 0.0f;
            }
            // The first time there is nothing to be scaled, and no number to scale it with.
            float before = from == 0 ? 0.0f : sum * exponential(top - most, T());
            sum = before + block_sum(part, shared.scratch);
            top = most;
        }
        float weight = 0.0f;
        for (u32 e = row.start + threadIdx.x; e < row.end; e += THREADS) weight += value_at(x, e);
        total = block_sum(weight, shared.scratch);
    }
    float share = factor * total / sum;

    float all = 0.0f;
    u32 event = row.start;
#pragma unroll 1
    for (u32 from = 0; from < cols; from += size) {
        u32 n = smaller(size, cols - from);
        if (!once) fetch(logits + from, n, tile);
        // As if the history were empty ...
        for (u32 i = threadIdx.x * SIZE; i < n; i += THREADS * SIZE) {
            Vector<T> v = *(Vector<T> *)(tile + i);
            Vector<T> out;
#pragma unroll
            for (u32 j = 0; j < SIZE; ++j) {
                float f = widen(v.at[j]), g, l = 0.0f;
                if (kind == MULTINOMIAL) {
                    g = share * exponential(f - top, T());
                } else if (kind == GAUSSIAN) {
                    g = factor * unseen * f;
                    l = 0.5f * unseen * f * f;
                } else {
                    float e = exponential(-fabsf(f), T());
                    g = factor * (f < 0.0f ? e : 1.0f) / (1.0f + e);
                    l = (f < 0.0f ? 0.0f : f) + log1pf(e);
                }
                out.at[j] = narrow<T>(g);
                if (i + j < n) all += l;
            }
            store_vector(logits + from + i, out, n - i);
        }
        sync_block();
        // ... and then the items of it, whose logits are still in the tile.
        u32 end = once ? row.end : lower_bound(x, row, from + n);
        for (u32 e = event + threadIdx.x; e < end; e += THREADS) {
            u32 item = x.indices[e] - from;
            float value = value_at(x, e), f = widen(tile[item]), g;
            if (kind == MULTINOMIAL) {
                g = share * exponential(f - top, T()) - factor * value;
                all += value * (top - f);
            } else if (kind == GAUSSIAN) {
                g = factor * seen * (f - value);
                all += 0.5f * seen * (f - value) * (f - value) - 0.5f * unseen * f * f;
            } else {
                float small = exponential(-fabsf(f), T());
                g = factor * ((f < 0.0f ? small : 1.0f) / (1.0f + small) - value);
                all -= value * f;
            }
            logits[from + item] = narrow<T>(g);
        }
        event = end;
        sync_block();
    }
    all = block_sum(all, shared.scratch);
    if (threadIdx.x == 0) loss[position * loss_stride] = kind == MULTINOMIAL ? all + total * logf(sum) : all;
}

#define LIKELIHOOD(TYPE)                                                                                              \
    KERNEL(likelihood_##TYPE, Block<TYPE>::THREADS,                                                                   \
           (Rows x, u32 kind, float seen, float unseen, TYPE *logits, u64 stride, u32 cols, u32 size,                 \
            const Step *step, const Scale *scale, float *loss, u64 loss_stride)) {                                    \
        likelihood<TYPE>(x, kind, seen, unseen, logits, stride, cols, size, step, scale, loss, loss_stride);          \
    }

LIKELIHOOD(f32)
LIKELIHOOD(f16)
#if __CUDA_ARCH__ >= 800
LIKELIHOOD(bf16)
#endif
