// What several kernels share: the structures that the host fills, rows of the sparse batch, noise, sums
// over a block, and vectors of numbers.
#pragma once
#include "prims.cuh"

// ---- what the host passes; the same structures are in src/kernels.rs and src/memory.rs ----

// A window of rows of a CSR matrix: see `Rows` of the contract. Absent arrays are null.
struct Rows {
    const u32 *indptr;
    const u32 *indices;
    const float *values;
    const u32 *users;
    u32 first;
    u32 count;
};

struct Noise {
    u32 seed_low;
    u32 seed_high;
    u32 stream;
    float keep;
    float inverse_keep;
    // keep * 2^32: a draw below it keeps.
    u64 threshold;
};

// What changes from update to update: a buffer of the device.
struct Step {
    u32 update;
    u32 first;
    float beta;
    float grad_factor;
    float l2;
    float beta1;
    float beta2;
    float gain1;
    float gain2;
    float eps;
    float rate;
    float root;
};

// The dynamic loss scale: a buffer of the device.
struct Scale {
    float scale;
    u32 good;
    u32 skipped;
    u32 finite;
};

enum Curve : u32 { IDENTITY = 0, TANH = 1, RELU = 2 };

INLINE float bend(u32 curve, float x) {
    switch (curve) {
    case TANH: return tanhf(x);
    case RELU: return x < 0.0f ? 0.0f : x;
    default: return x;
    }
}

// The slope of a curve where its output is y.
INLINE float slope(u32 curve, float y) {
    switch (curve) {
    case TANH: return 1.0f - y * y;
    case RELU: return y > 0.0f ? 1.0f : 0.0f;
    default: return 1.0f;
    }
}

// ---- vectors: what 16 bytes hold ----

template <class T> struct Vector {
    static const u32 SIZE = 16 / sizeof(T);
    T at[SIZE];
};

// A vector of a row. Rows begin at multiples of 16 bytes and end in padding, so there is always a whole one to
// read; of what lies beyond a row's columns nothing may be made use of.
template <class T> INLINE Vector<T> load_vector(const T *at) {
    Vector<T> v;
    *(uint4 *)&v = *(const uint4 *)at;
    return v;
}

// The first `count` numbers of a vector.
template <class T> INLINE void store_vector(T *at, const Vector<T> &v, u32 count) {
    if (count >= Vector<T>::SIZE) {
        *(uint4 *)at = *(const uint4 *)&v;
        return;
    }
#pragma unroll
    for (u32 i = 0; i < Vector<T>::SIZE; ++i) {
        if (i < count) at[i] = v.at[i];
    }
}

// ---- rows of the batch ----

struct Row {
    // Row of the matrix: the user that noise is counted by.
    u32 user;
    u32 start;
    u32 end;
};

// Row `position` of the list, which is `first + r` for row r of the batch.
INLINE Row row_at(const Rows &x, u32 position) {
    u32 user = x.users ? x.users[position] : position;
    if (!x.indptr) return Row{user, 0, 0};
    return Row{user, x.indptr[user], x.indptr[user + 1]};
}

INLINE float value_at(const Rows &x, u32 event) { return x.values ? x.values[event] : 1.0f; }

// The first event of a row whose item is not below `item`.
INLINE u32 lower_bound(const Rows &x, Row row, u32 item) {
    u32 from = row.start, to = row.end;
    while (from < to) {
        u32 middle = from + (to - from) / 2;
        if (x.indices[middle] < item) {
            from = middle + 1;
        } else {
            to = middle;
        }
    }
    return from;
}

// ---- noise: core/src/random.rs, restated ----

struct Words {
    u32 at[4];
};

INLINE Words philox(u32 c0, u32 c1, u32 c2, u32 c3, u32 k0, u32 k1) {
#pragma unroll
    for (u32 round = 0; round < 10; ++round) {
        u32 high_a = multiply_high(c0, 0xD2511F53u), low_a = c0 * 0xD2511F53u;
        u32 high_b = multiply_high(c2, 0xCD9E8D57u), low_b = c2 * 0xCD9E8D57u;
        c0 = high_b ^ c1 ^ k0;
        c1 = low_b;
        c2 = high_a ^ c3 ^ k1;
        c3 = low_a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return Words{{c0, c1, c2, c3}};
}

INLINE Words draw(const Noise &noise, u32 update, u32 user, u32 block) {
    return philox(update, user, block, noise.seed_high, noise.seed_low, noise.stream);
}

// Whether the input of a user keeps an item in this update.
INLINE bool keeps(const Noise &noise, u32 update, u32 user, u32 item) {
    if (noise.keep >= 1.0f) return true;
    Words words = draw(noise, update, user, item / 4);
    u32 low = item & 1 ? words.at[1] : words.at[0], high = item & 1 ? words.at[3] : words.at[2];
    return u64(item & 2 ? high : low) < noise.threshold;
}

// Four standard normal draws, those of units 4 block .. 4 block + 4: Box and Muller on the upper 24 bits.
INLINE void normals(float (&out)[4], const Noise &noise, u32 update, u32 user, u32 block) {
    Words words = draw(noise, update, user, block);
#pragma unroll
    for (u32 half = 0; half < 4; half += 2) {
        u32 a = words.at[half] >> 8, b = words.at[half + 1] >> 8;
        float radius = sqrtf(-2.0f * logf(float(a + 1) / 16777216.0f));
        float sine, cosine;
        sincospif(float(b) / 8388608.0f, &sine, &cosine);
        out[half] = radius * cosine;
        out[half + 1] = radius * sine;
    }
}

// ---- over a block ----

// The sum of a block's values, by every thread, in the same order each time. `scratch` holds a float a warp.
INLINE float block_sum(float x, float *scratch) {
    x = warp_sum(x);
    sync_block();
    if (lane_of() == 0) scratch[warp_of()] = x;
    sync_block();
    float sum = 0.0f;
#pragma unroll 1
    for (u32 warp = 0; warp < blockDim.x / 32; ++warp) sum += scratch[warp];
    return sum;
}

INLINE float block_max(float x, float *scratch) {
    x = warp_max(x);
    sync_block();
    if (lane_of() == 0) scratch[warp_of()] = x;
    sync_block();
    float most = scratch[0];
#pragma unroll 1
    for (u32 warp = 1; warp < blockDim.x / 32; ++warp) most = larger(most, scratch[warp]);
    return most;
}

// The sum of what the threads before this one have, and of all of them. `scratch` holds a word a warp.
struct Place {
    u32 before;
    u32 all;
};
INLINE Place block_scan(u32 n, u32 *scratch) {
    u32 sum = n;
#pragma unroll
    for (u32 by = 1; by < 32; by *= 2) {
        u32 below = from_below(sum, by);
        if (lane_of() >= by) sum += below;
    }
    sync_block();
    if (lane_of() == 31) scratch[warp_of()] = sum;
    sync_block();
    u32 before = 0, all = 0;
#pragma unroll 1
    for (u32 warp = 0; warp < blockDim.x / 32; ++warp) {
        if (warp < warp_of()) before += scratch[warp];
        all += scratch[warp];
    }
    return Place{before + sum - n, all};
}

// 1 / |x| of a row, by every thread of the block; zero for an empty row.
INLINE float inverse_norm(const Rows &x, Row row, float *scratch) {
    float square = float(row.end - row.start);
    if (x.values) {
        float sum = 0.0f;
        for (u32 e = row.start + threadIdx.x; e < row.end; e += blockDim.x) sum += x.values[e] * x.values[e];
        square = block_sum(sum, scratch);
    }
    return square > 0.0f ? rsqrtf(square) : 0.0f;
}
