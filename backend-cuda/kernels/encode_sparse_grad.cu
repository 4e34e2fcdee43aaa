// dw = d^T dy: the gradient of the first layer, every cell written, in the same order each time.
//
// The batch is transposed as bits: `marks` has a row of bits for each item, one bit for each row of the batch,
// set where the row holds the item and the noise keeps it. Setting bits commutes, so threads may do it in any
// order. Then one warp an item lists its rows, ascending, and sums theirs of dy: most items have few rows or none,
// and a whole block would mostly wait for itself. An item with more rows is left to a second kernel, in which
// blocks share it by columns.
#include "common.cuh"

static const u32 THREADS = 256;
static const u32 WARPS = THREADS / 32;
// Rows that one warp lists.
static const u32 LIST = 64;

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

// Writes to a list, from `at` on, the rows whose bits are set in words `from..to`, ascending.
INLINE void list_words(const u32 *marks, u32 from, u32 to, Holder *list, u32 at) {
    for (u32 w = from; w < to; ++w) {
        for (u32 bits = marks[w]; bits != 0; bits &= bits - 1) list[at++].row = 32 * w + lowest_bit(bits);
    }
}

INLINE u32 count_words(const u32 *marks, u32 from, u32 to) {
    u32 n = 0;
#pragma unroll 4
    for (u32 w = from; w < to; ++w) n += count_bits(marks[w]);
    return n;
}

// The coefficients of listed rows, by thread `first` of `threads`. Each comes from afar, so they are fetched
// beside each other, and not by whoever has listed the row.
INLINE void weigh(const Rows &x, const Step *step, u32 item, const float *factors, Holder *list, u32 n, u32 first,
                  u32 threads) {
    for (u32 i = first; i < n; i += threads) {
        u32 r = list[i].row;
        float factor = factors[r];
        if (x.values) {
            Row row = row_at(x, x.first + step->first + r);
            factor *= x.values[lower_bound(x, row, item)];
        }
        list[i].factor = factor;
    }
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
                  u64 dy_stride, u32 cols, float *dw, u64 dw_stride, u32 items, u32 *heavy) {
    const u32 SIZE = Vector<T>::SIZE;
    Holder *list = (Holder *)shared_memory() + warp_of() * LIST;
    u32 item = blockIdx.x * WARPS + warp_of();
    if (item >= items) return;
    const u32 *marks = all_marks + u64(item) * words;

    // A lane takes `each` words one after another.
    u32 each = (words + 31) / 32, start = smaller(lane_of() * each, words), end = smaller(start + each, words);
    u32 mine = count_words(marks, start, end), before = mine;
#pragma unroll
    for (u32 by = 1; by < 32; by *= 2) {
        u32 below = from_below(before, by);
        if (lane_of() >= by) before += below;
    }
    u32 n = from_lane(before, 31);
    if (n > LIST) {
        if (lane_of() == 0) heavy[1 + atomic_add(&heavy[0], 1)] = item;
        return;
    }
    if (mine > 0) list_words(marks, start, end, list, before - mine);
    sync_warp();
    weigh(x, step, item, factors, list, n, lane_of(), 32);
    sync_warp();
    float *out = dw + item * dw_stride;
#pragma unroll 1
    for (u32 col = lane_of() * SIZE; col < cols; col += 32 * SIZE) {
        float sum[SIZE] = {};
        add_rows(list, n, 0, 1, dy, dy_stride, col, sum);
#pragma unroll
        for (u32 i = 0; i < SIZE; i += 4) {
            Vector<float> four;
#pragma unroll
            for (u32 j = 0; j < 4; ++j) four.at[j] = sum[i + j];
            if (col + i < cols) store_vector(out + col + i, four, cols - col - i);
        }
    }
}

// Columns that one block of the second kernel takes, in vectors.
static const u32 SLAB = 16;
// Words of marks whose rows it has room for, however many there are.
static const u32 TILE = 64;

// Lists the rows of words `from..to` of an item, `each` of them a thread. Returns how many there are; a list longer
// than its room is not written.
INLINE u32 list_rows(const Rows &x, const Step *step, const u32 *marks, u32 item, u32 from, u32 to, u32 each,
                     const float *factors, Holder *list, u32 *scratch) {
    u32 start = smaller(from + threadIdx.x * each, to), end = smaller(start + each, to);
    u32 mine = count_words(marks, start, end);
    Place place = block_scan(mine, scratch);
    if (place.all > 32 * TILE) return place.all;
    if (mine > 0) list_words(marks, start, end, list, place.before);
    sync_block();
    weigh(x, step, item, factors, list, place.all, threadIdx.x, THREADS);
    sync_block();
    return place.all;
}

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
        // All rows at once, or where there is no room for them, tile by tile.
        u32 to = words, each = (words + THREADS - 1) / THREADS;
#pragma unroll 1
        for (u32 tile = 0; tile < words; tile = to, to = smaller(tile + TILE, words)) {
            u32 n = list_rows(x, step, marks, item, tile, to, each, factors, list, scratch);
            if (n > 32 * TILE) {
                to = 0;
                each = 1;
                continue;
            }
            if (team < teams) add_rows(list, n, team, teams, dy, dy_stride, col, sum);
            sync_block();
        }
        finish(sum, partial, wide, teams, dw + item * dw_stride + col, cols - col);
    }
}

#define GRAD(TYPE)                                                                                                    \
    KERNEL(encode_sparse_grad_light_##TYPE, THREADS,                                                                  \
           (Rows x, const Step *step, const u32 *marks, u32 words, const float *factors, const TYPE *dy,              \
            u64 dy_stride, u32 cols, float *dw, u64 dw_stride, u32 items, u32 *list)) {                               \
        light<TYPE>(x, step, marks, words, factors, dy, dy_stride, cols, dw, dw_stride, items, list);                 \
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
