// dw = d^T dy: the gradient of the first layer, every cell written, in the same order each time.
//
// The batch is transposed as bits: `marks` has a row of bits for each item, one bit for each row of the batch,
// set where the row holds the item and the noise keeps it. Setting bits commutes, so threads may do it in any
// order. Then one block an item lists its rows, ascending, and sums theirs of dy. An item with very many rows
// is left to a second kernel, in which many blocks share it by columns.
#include "common.cuh"

static const u32 THREADS = 256;
// Rows that one block lists at once.
static const u32 LIST = 512;

// A row of the batch that holds the item, and its coefficient.
struct Holder {
    u32 row;
    float factor;
};

// A warp a row. `factors[r]` becomes 1 / (|x_r| keep).
KERNEL(mark_batch, THREADS, (Rows x, Noise noise, const Step *step, u32 words, u32 *marks, float *factors)) {
    u32 r = blockIdx.x * (THREADS / 32) + warp_of();
    if (r >= x.count) return;
    Row row = row_at(x, x.first + step->first + r);
    float square = 0.0f;
    for (u32 e = row.start + lane_of(); e < row.end; e += 32) {
        u32 item = x.indices[e];
        float value = value_at(x, e);
        square += value * value;
        if (keeps(noise, step->update, row.user, item)) atomic_or(&marks[u64(item) * words + r / 32], 1u << (r % 32));
    }
    square = warp_sum(square);
    if (lane_of() == 0) factors[r] = square > 0.0f ? rsqrtf(square) * noise.inverse_keep : 0.0f;
}

// Lists the rows whose bits are set in words `from..to` of an item, ascending: at most 32 (to - from). A thread
// takes `each` words one after another. Returns how many there are; a list longer than `most` is not written.
INLINE u32 list_rows(const Rows &x, const Step *step, const u32 *marks, u32 item, u32 from, u32 to, u32 each,
                     const float *factors, u32 most, Holder *list, u32 *scratch) {
    u32 start = from + threadIdx.x * each, end = smaller(start + each, to), n = 0;
    for (u32 w = start; w < end; ++w) n += count_bits(marks[w]);
    Place place = block_scan(n, scratch);
    if (place.all <= most) {
        u32 at = place.before;
        for (u32 w = start; w < end; ++w) {
            for (u32 bits = marks[w]; bits != 0; bits &= bits - 1) {
                u32 r = 32 * w + lowest_bit(bits);
                float factor = factors[r];
                if (x.values) {
                    Row row = row_at(x, x.first + step->first + r);
                    factor *= x.values[lower_bound(x, row, item)];
                }
                list[at++] = Holder{r, factor};
            }
        }
    }
    sync_block();
    return place.all;
}

// Adds the listed rows, of columns `col..`, to a sum: this thread's share of them, `team` of `teams`.
template <class T>
INLINE void add_rows(const Holder *list, u32 n, u32 team, u32 teams, const T *dy, u64 stride, u32 col,
                     float (&sum)[Vector<T>::SIZE]) {
#pragma unroll 4
    for (u32 e = team; e < n; e += teams) {
        Holder one = list[e];
        Vector<T> v = load_vector(dy + one.row * stride + col);
#pragma unroll
        for (u32 i = 0; i < Vector<T>::SIZE; ++i) sum[i] += one.factor * widen(v.at[i]);
    }
}

// Adds up what the teams have, and writes `count` columns of it.
template <u32 SIZE>
INLINE void finish(const float (&sum)[SIZE], float *partial, u32 wide, u32 teams, float *out, u32 count) {
#pragma unroll
    for (u32 i = 0; i < SIZE; ++i) partial[threadIdx.x * SIZE + i] = sum[i];
    sync_block();
    if (threadIdx.x < wide) {
#pragma unroll
        for (u32 i = 0; i < SIZE; i += 4) {
            Vector<float> total = {};
#pragma unroll 1
            for (u32 t = 0; t < teams; ++t) {
#pragma unroll
                for (u32 j = 0; j < 4; ++j) total.at[j] += partial[(t * wide + threadIdx.x) * SIZE + i + j];
            }
            if (i < count) store_vector(out + i, total, count - i);
        }
    }
    sync_block();
}

// `heavy` is a list of items with more rows than LIST, its length before it; cleared beforehand.
template <class T>
INLINE void light(const Rows &x, const Step *step, const u32 *all_marks, u32 words, const float *factors, const T *dy,
                  u64 dy_stride, u32 cols, float *dw, u64 dw_stride, u32 *heavy) {
    const u32 SIZE = Vector<T>::SIZE;
    Holder *list = (Holder *)shared_memory();
    float *partial = (float *)(list + LIST);
    u32 *scratch = (u32 *)(partial + THREADS * SIZE);
    u32 item = blockIdx.x;
    const u32 *marks = all_marks + u64(item) * words;

    u32 n = list_rows(x, step, marks, item, 0, words, (words + THREADS - 1) / THREADS, factors, LIST, list, scratch);
    if (n > LIST) {
        if (threadIdx.x == 0) heavy[1 + atomic_add(&heavy[0], 1)] = item;
        return;
    }
    u32 vectors = (cols + SIZE - 1) / SIZE;
#pragma unroll 1
    for (u32 from = 0; from < vectors; from += THREADS) {
        u32 wide = smaller(vectors - from, THREADS), teams = THREADS / wide;
        u32 team = threadIdx.x / wide, col = (from + threadIdx.x % wide) * SIZE;
        float sum[SIZE] = {};
        if (team < teams) add_rows(list, n, team, teams, dy, dy_stride, col, sum);
        finish(sum, partial, wide, n == 0 ? 0 : teams, dw + item * dw_stride + col, cols - col);
    }
}

// Columns that one block of the second kernel takes, in vectors.
static const u32 SLAB = 16;
// Words of marks that it lists at once.
static const u32 TILE = 64;

template <class T>
INLINE void heavy(const Rows &x, const Step *step, const u32 *all_marks, u32 words, const float *factors, const T *dy,
                  u64 dy_stride, u32 cols, float *dw, u64 dw_stride, const u32 *heavy) {
    const u32 SIZE = Vector<T>::SIZE;
    Holder *list = (Holder *)shared_memory();
    float *partial = (float *)(list + 32 * TILE);
    u32 *scratch = (u32 *)(partial + THREADS * SIZE);

    u32 vectors = (cols + SIZE - 1) / SIZE, slabs = (vectors + SLAB - 1) / SLAB;
#pragma unroll 1
    for (u32 task = blockIdx.x; task < heavy[0] * slabs; task += gridDim.x) {
        u32 item = heavy[1 + task / slabs], from = task % slabs * SLAB;
        const u32 *marks = all_marks + u64(item) * words;
        u32 wide = smaller(vectors - from, SLAB), teams = THREADS / wide;
        u32 team = threadIdx.x / wide, col = (from + threadIdx.x % wide) * SIZE;
        float sum[SIZE] = {};
#pragma unroll 1
        for (u32 tile = 0; tile < words; tile += TILE) {
            u32 to = smaller(tile + TILE, words);
            u32 n = list_rows(x, step, marks, item, tile, to, 1, factors, 32 * TILE, list, scratch);
            if (team < teams) add_rows(list, n, team, teams, dy, dy_stride, col, sum);
            sync_block();
        }
        finish(sum, partial, wide, teams, dw + item * dw_stride + col, cols - col);
    }
}

#define GRAD(TYPE)                                                                                                    \
    KERNEL(encode_sparse_grad_light_##TYPE, THREADS,                                                                  \
           (Rows x, const Step *step, const u32 *marks, u32 words, const float *factors, const TYPE *dy,              \
            u64 dy_stride, u32 cols, float *dw, u64 dw_stride, u32 *list)) {                                          \
        light<TYPE>(x, step, marks, words, factors, dy, dy_stride, cols, dw, dw_stride, list);                        \
    }                                                                                                                 \
    KERNEL(encode_sparse_grad_heavy_##TYPE, THREADS,                                                                  \
           (Rows x, const Step *step, const u32 *marks, u32 words, const float *factors, const TYPE *dy,              \
            u64 dy_stride, u32 cols, float *dw, u64 dw_stride, const u32 *list)) {                                    \
        heavy<TYPE>(x, step, marks, words, factors, dy, dy_stride, cols, dw, dw_stride, list);                        \
    }

GRAD(f32)
GRAD(f16)
#if __CUDA_ARCH__ >= 800
GRAD(bf16)
#endif
