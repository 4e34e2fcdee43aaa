// c = a b on the tensor cores, sums in f32: what the products run on where cuBLASLt is not there.
//
// A block makes a tile of 128 x 128 of c in steps of 64 bytes along k. The tiles of a and b for the next steps
// are on their way to shared memory while one is multiplied. Each operand comes with its k either along its rows in
// memory (`ALONG`: 64 bytes of 128 rows) or across them (`ACROSS`: 128 elements of as many rows as 64 bytes have
// elements); chunks of 16 bytes are stored at places that no two lanes of a load want from the same bank.
//
// Single precision without tensor cores goes the same way and multiplies by hand.
#include "common.cuh"

static const u32 THREADS = 256;
static const u32 SIDE = 128;
static const u32 STAGES = 3;
// Bytes of one operand's tile.
static const u32 TILE = SIDE * 64;

enum Layout : u32 { ALONG = 0, ACROSS = 1 };

struct Product {
    const void *a;
    const void *b;
    u64 a_stride;
    u64 b_stride;
    u32 m;
    u32 n;
    u32 k;
    // Elements of k that one block sums; block z begins at z times this.
    u32 k_each;
    // c = curve(a b + bias) * slope(x): bias and x may be null, and then are left out.
    void *c;
    u64 c_stride;
    const void *bias;
    u32 curve;
    u32 x_curve;
    const void *x;
    u64 x_stride;
    // Where k is shared among blocks, their sums: [z][m][n], rows padded to whole groups.
    float *parts;
};

// Sums that a thread finishes together.
static const u32 GROUP = 8;

INLINE u64 part_stride(const Product &p) { return (p.n + GROUP - 1) / GROUP * GROUP; }

// ---- tiles in shared memory ----

template <class T, u32 LAYOUT> struct Tile {
    static const u32 PER_CHUNK = 16 / sizeof(T);
    static const u32 DEPTH = 64 / sizeof(T);
    // Chunks in a row of the tile, as it lies in memory.
    static const u32 WIDE = LAYOUT == ALONG ? 4 : SIDE / PER_CHUNK;

    // Byte of a chunk.
    INLINE static u32 place(u32 row, u32 chunk) {
        if (LAYOUT == ALONG) return (row * WIDE + (chunk ^ (row >> 1 & 3))) * 16;
        // Tensor cores read eight rows of a 16-bit tile at once, and four of a 32-bit tile.
        return (row * WIDE + (chunk ^ (sizeof(T) == 2 ? row & 7 : (row & 3) * 2))) * 16;
    }

    // Element (side, k).
    INLINE static const T *element(const u8 *tile, u32 side, u32 k) {
        u32 row = LAYOUT == ALONG ? side : k, col = LAYOUT == ALONG ? k : side;
        return (const T *)(tile + place(row, col / PER_CHUNK)) + col % PER_CHUNK;
    }

    // Sends for the tile that begins at (side, k); what lies beyond the matrix is zero.
    INLINE static void fetch(u8 *tile, const T *from, u64 stride, u32 side, u32 sides, u32 k, u32 ks) {
        u32 first_row = LAYOUT == ALONG ? side : k, rows = LAYOUT == ALONG ? sides : ks;
        u32 first_col = LAYOUT == ALONG ? k : side, cols = LAYOUT == ALONG ? ks : sides;
#pragma unroll
        for (u32 i = 0; i < TILE / 16 / THREADS; ++i) {
            u32 chunk = threadIdx.x + i * THREADS, row = chunk / WIDE, col = chunk % WIDE * PER_CHUNK;
            u32 r = first_row + row, c = first_col + col;
            u32 there = r < rows && c < cols ? smaller(cols - c, PER_CHUNK) : 0;
            copy_async(tile + place(row, chunk % WIDE), there ? from + r * stride + c : from, there * sizeof(T));
        }
    }
};

// ---- how the tiles are multiplied ----

// A warp makes 64 x 32: four by four tiles of 16 x 8.
template <class T, u32 A, u32 B> struct Tensor {
    float sums[4][4][4];

    INLINE void start() {
        for (u32 i = 0; i < 64; ++i) (&sums[0][0][0])[i] = 0.0f;
    }

    INLINE static u32 row() { return warp_of() / 4 * 64; }
    INLINE static u32 col() { return warp_of() % 4 * 32; }

    // 16 of m from `side` on, by the 32 bytes of k that `half` names.
    INLINE static void load_a(u32 (&a)[4], const u8 *tile, u32 side, u32 half) {
        u32 which = lane_of() / 8, r = lane_of() % 8;
        if (A == ALONG) {
            load_tiles(a, tile + Tile<T, A>::place(side + which % 2 * 8 + r, half * 2 + which / 2));
        } else if (sizeof(T) == 2) {
            u32 k = half * 16 + which / 2 * 8 + r;
            load_tiles_transposed(a, tile + Tile<T, A>::place(k, side / 8 + which % 2));
        } else {
            u32 g = lane_of() / 4, t = lane_of() % 4;
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                a[i] = *(const u32 *)Tile<T, A>::element(tile, side + g + i % 2 * 8, half * 8 + t + i / 2 * 4);
            }
        }
    }

    // 16 of n from `side` on: two tiles of 8, the second in b[2], b[3].
    INLINE static void load_b(u32 (&b)[4], const u8 *tile, u32 side, u32 half) {
        u32 which = lane_of() / 8, r = lane_of() % 8;
        if (B == ALONG) {
            load_tiles(b, tile + Tile<T, B>::place(side + which / 2 * 8 + r, half * 2 + which % 2));
        } else if (sizeof(T) == 2) {
            u32 k = half * 16 + which % 2 * 8 + r;
            load_tiles_transposed(b, tile + Tile<T, B>::place(k, side / 8 + which / 2));
        } else {
            u32 g = lane_of() / 4, t = lane_of() % 4;
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                b[i] = *(const u32 *)Tile<T, B>::element(tile, side + g + i / 2 * 8, half * 8 + t + i % 2 * 4);
            }
        }
    }

    INLINE static void round(u32 (&)[4], f16) {}
#if __CUDA_ARCH__ >= 800
    INLINE static void round(u32 (&)[4], bf16) {}
    INLINE static void round(u32 (&words)[4], tf32) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) words[i] = round_tf32(as_float(words[i]));
    }
#endif

    INLINE void add(const u8 *tile_a, const u8 *tile_b) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            u32 a[4][4], b[2][4];
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                load_a(a[i], tile_a, row() + 16 * i, half);
                round(a[i], T());
            }
#pragma unroll
            for (u32 j = 0; j < 2; ++j) {
                load_b(b[j], tile_b, col() + 16 * j, half);
                round(b[j], T());
            }
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
#pragma unroll
                for (u32 j = 0; j < 4; ++j) multiply(sums[i][j], a[i], &b[j / 2][j % 2 * 2], T());
            }
        }
    }

    // Calls f(row, col, sum) for the sums this thread has, pairs side by side.
    template <class F> INLINE void each(F f) const {
        u32 g = lane_of() / 4, t = lane_of() % 4;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
#pragma unroll
                for (u32 s = 0; s < 4; ++s) {
                    f(row() + 16 * i + g + s / 2 * 8, col() + 8 * j + 2 * t + s % 2, sums[i][j][s]);
                }
            }
        }
    }
};

// A thread makes 8 x 8: rows 16 apart, and columns 16 apart.
template <u32 A, u32 B> struct Tensor<float, A, B> {
    float sums[8][8];

    INLINE void start() {
        for (u32 i = 0; i < 64; ++i) (&sums[0][0])[i] = 0.0f;
    }

    INLINE void add(const u8 *tile_a, const u8 *tile_b) {
        u32 y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll 1
        for (u32 k = 0; k < Tile<float, A>::DEPTH; ++k) {
            float a[8], b[8];
#pragma unroll
            for (u32 i = 0; i < 8; ++i) {
                a[i] = *Tile<float, A>::element(tile_a, y + 16 * i, k);
                b[i] = *Tile<float, B>::element(tile_b, x + 16 * i, k);
            }
#pragma unroll
            for (u32 i = 0; i < 8; ++i) {
#pragma unroll
                for (u32 j = 0; j < 8; ++j) sums[i][j] += a[i] * b[j];
            }
        }
    }

    template <class F> INLINE void each(F f) const {
        u32 y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
#pragma unroll
            for (u32 j = 0; j < 8; ++j) f(y + 16 * i, x + 16 * j, sums[i][j]);
        }
    }
};

// ---- what becomes of a sum ----

// tf32 is a way to multiply, not to store.
template <class T> struct Stored {
    typedef T Type;
};
template <> struct Stored<tf32> {
    typedef float Type;
};

// Elements (row, col..) of c from their sums. `T` is what biases and activations are stored in, `Out` what is made.
template <class T, class Out> INLINE void finish(const Product &p, u32 row, u32 col, float (&sums)[GROUP]) {
    const u32 IN = Vector<T>::SIZE, OUT = Vector<Out>::SIZE;
    if (p.bias) {
#pragma unroll
        for (u32 i = 0; i < GROUP; i += IN) {
            if (col + i >= p.n) break;
            Vector<T> bias = load_vector((const T *)p.bias + col + i);
#pragma unroll
            for (u32 j = 0; j < IN; ++j) sums[i + j] += widen(bias.at[j]);
        }
    }
    if (p.curve != IDENTITY) {
#pragma unroll
        for (u32 i = 0; i < GROUP; ++i) sums[i] = bend(p.curve, sums[i]);
    }
    if (p.x) {
#pragma unroll
        for (u32 i = 0; i < GROUP; i += IN) {
            if (col + i >= p.n) break;
            Vector<T> x = load_vector((const T *)p.x + row * p.x_stride + col + i);
#pragma unroll
            for (u32 j = 0; j < IN; ++j) sums[i + j] *= slope(p.x_curve, widen(x.at[j]));
        }
    }
    Out *at = (Out *)p.c + row * p.c_stride + col;
#pragma unroll
    for (u32 i = 0; i < GROUP; i += OUT) {
        if (col + i >= p.n) break;
        Vector<Out> out;
#pragma unroll
        for (u32 j = 0; j < OUT; ++j) out.at[j] = narrow<Out>(sums[i + j]);
        store_vector(at + i, out, p.n - col - i);
    }
}

template <class T, class Out, u32 A, u32 B> INLINE void gemm(const Product &p) {
    u8 *tiles = shared_memory();
    u32 row = blockIdx.y * SIDE, col = blockIdx.x * SIDE;
    u32 k_first = blockIdx.z * p.k_each, k_end = smaller(k_first + p.k_each, p.k);
    const u32 DEPTH = Tile<T, A>::DEPTH;
    u32 steps = (k_end - k_first + DEPTH - 1) / DEPTH;

    auto fetch = [&](u32 step) {
        if (step < steps) {
            u8 *tile = tiles + step % STAGES * (2 * TILE);
            u32 k = k_first + step * DEPTH;
            Tile<T, A>::fetch(tile, (const T *)p.a, p.a_stride, row, p.m, k, k_end);
            Tile<T, B>::fetch(tile + TILE, (const T *)p.b, p.b_stride, col, p.n, k, k_end);
        }
        copy_commit();
    };

    Tensor<T, A, B> product;
    product.start();
#pragma unroll
    for (u32 step = 0; step < STAGES - 1; ++step) fetch(step);
#pragma unroll 1
    for (u32 step = 0; step < steps; ++step) {
        copy_wait<STAGES - 2>();
        // All copies of this tile are there, and all are done with the one that is fetched over.
        sync_block();
        fetch(step + STAGES - 1);
        const u8 *tile = tiles + step % STAGES * (2 * TILE);
        product.add(tile, tile + TILE);
    }

    // Half of the sums at a time through shared memory, so that whole vectors of a row are finished and written.
    const u32 HALF = SIDE / 2, PITCH = SIDE + 4;
    float *sums = (float *)tiles;
#pragma unroll 1
    for (u32 half = 0; half < SIDE; half += HALF) {
        sync_block();
        product.each([&](u32 r, u32 c, float sum) {
            if (r / HALF * HALF == half) sums[r % HALF * PITCH + c] = sum;
        });
        sync_block();
#pragma unroll 1
        for (u32 i = threadIdx.x; i < HALF * SIDE / GROUP; i += THREADS) {
            u32 r = i / (SIDE / GROUP), c = i % (SIDE / GROUP) * GROUP;
            if (row + half + r >= p.m || col + c >= p.n) continue;
            float group[GROUP];
#pragma unroll
            for (u32 j = 0; j < GROUP; ++j) group[j] = sums[r * PITCH + c + j];
            if (p.parts) {
                float *part = p.parts + (u64(blockIdx.z) * p.m + row + half + r) * part_stride(p) + col + c;
#pragma unroll
                for (u32 j = 0; j < GROUP; j += 4) store_vector(part + j, *(Vector<float> *)&group[j], 4);
            } else {
                finish<typename Stored<T>::Type, Out>(p, row + half + r, col + c, group);
            }
        }
    }
}

#define GEMM(TYPE, OUT)                                                                                               \
    /* Forward: x w. */                                                                                               \
    KERNEL(gemm_##TYPE##_forward, THREADS, (Product p)) { gemm<TYPE, OUT, ALONG, ACROSS>(p); }                        \
    /* Gradient of the weights: x^T dy, in f32. */                                                                    \
    KERNEL(gemm_##TYPE##_grad_weight, THREADS, (Product p)) { gemm<TYPE, float, ACROSS, ACROSS>(p); }                 \
    /* Gradient of the input: dy w^T. */                                                                              \
    KERNEL(gemm_##TYPE##_grad_input, THREADS, (Product p)) { gemm<TYPE, OUT, ALONG, ALONG>(p); }

GEMM(f32, f32)
GEMM(f16, f16)
#if __CUDA_ARCH__ >= 800
GEMM(tf32, f32)
GEMM(bf16, bf16)
#endif

// Adds up what the blocks that shared k have, in the order of k; or finishes what a product by cuBLASLt left in f32.
template <class T> INLINE void join(const Product &p, u32 parts) {
    u32 groups = (p.n + GROUP - 1) / GROUP;
    u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= u64(p.m) * groups) return;
    u32 row = u32(i / groups), col = u32(i % groups) * GROUP;
    float sums[GROUP] = {};
#pragma unroll 1
    for (u32 z = 0; z < parts; ++z) {
        const float *part = p.parts + (u64(z) * p.m + row) * part_stride(p) + col;
#pragma unroll
        for (u32 j = 0; j < GROUP; j += 4) {
            Vector<float> v = load_vector(part + j);
#pragma unroll
            for (u32 l = 0; l < 4; ++l) sums[j + l] += v.at[l];
        }
    }
    finish<T, T>(p, row, col, sums);
}

#define JOIN(TYPE)                                                                                                    \
    KERNEL(join_##TYPE, THREADS, (Product p, u32 parts)) { join<TYPE>(p, parts); }
JOIN(f32)
JOIN(f16)
#if __CUDA_ARCH__ >= 800
JOIN(bf16)
#endif
