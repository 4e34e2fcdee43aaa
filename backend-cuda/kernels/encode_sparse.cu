// y = curve(d w + b): the first layer, a weighted sum of the weight rows of a user's items.
//
// One block a user. Threads stand in `teams`, each as wide as a row of the weights in vectors of 16 bytes, and
// teams take events in turn; what they summed is added up in a fixed order.
#include "common.cuh"

static const u32 THREADS = 256;

// An event that was kept.
struct Kept {
    u32 item;
    float factor;
};

template <class T>
INLINE void encode(const Rows &x, const T *w, u64 w_stride, const T *b, u32 cols, u32 curve, const Noise &noise,
                   const Step *step, T *y, u64 y_stride) {
    const u32 SIZE = Vector<T>::SIZE;
    Kept *kept = (Kept *)shared_memory();
    float *partial = (float *)(kept + THREADS);
    u32 *scratch = (u32 *)(partial + THREADS * SIZE);

    Row row = row_at(x, x.first + step->first + blockIdx.x);
    u32 update = step->update;
    float factor = inverse_norm(x, row, (float *)scratch) * noise.inverse_keep;

    u32 vectors = (cols + SIZE - 1) / SIZE;
#pragma unroll 1
    for (u32 from = 0; from < vectors; from += THREADS) {
        u32 wide = smaller(vectors - from, THREADS), teams = THREADS / wide;
        u32 team = threadIdx.x / wide, col = (from + threadIdx.x % wide) * SIZE;
        float sum[SIZE] = {};

#pragma unroll 1
        for (u32 tile = row.start; tile < row.end; tile += THREADS) {
            u32 event = tile + threadIdx.x, item = 0;
            bool keep = false;
            if (event < row.end) {
                item = x.indices[event];
                keep = keeps(noise, update, row.user, item);
            }
            Place place = block_scan(keep, scratch);
            if (keep) kept[place.before] = Kept{item, factor * value_at(x, event)};
            sync_block();
            if (team < teams) {
#pragma unroll 4
                for (u32 e = team; e < place.all; e += teams) {
                    Kept one = kept[e];
                    Vector<T> v = load_vector(w + one.item * w_stride + col);
#pragma unroll
                    for (u32 i = 0; i < SIZE; ++i) sum[i] += one.factor * widen(v.at[i]);
                }
            }
            sync_block();
        }

#pragma unroll
        for (u32 i = 0; i < SIZE; ++i) partial[threadIdx.x * SIZE + i] = sum[i];
        sync_block();
        if (threadIdx.x < wide) {
            Vector<T> bias = load_vector(b + col), out;
#pragma unroll
            for (u32 i = 0; i < SIZE; ++i) {
                float total = widen(bias.at[i]);
#pragma unroll 1
                for (u32 t = 0; t < teams; ++t) total += partial[(t * wide + threadIdx.x) * SIZE + i];
                out.at[i] = narrow<T>(bend(curve, total));
            }
            store_vector(y + blockIdx.x * y_stride + col, out, cols - col);
        }
        sync_block();
    }
}

#define ENCODE(TYPE)                                                                                                  \
    KERNEL(encode_sparse_##TYPE, THREADS,                                                                             \
           (Rows x, const TYPE *w, u64 w_stride, const TYPE *b, u32 cols, u32 curve, Noise noise, const Step *step,   \
            TYPE *y, u64 y_stride)) {                                                                                 \
        encode<TYPE>(x, w, w_stride, b, cols, curve, noise, step, y, y_stride);                                       \
    }

ENCODE(f32)
ENCODE(f16)
#if __CUDA_ARCH__ >= 800
ENCODE(bf16)
#endif
