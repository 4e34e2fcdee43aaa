// What prims.cuh gives kernels, on the CPU. A kernel's threads are fibers (scheduler.cpp); every access to
// memory that the compiler marks, and every one made here, goes through the watch (watch.cpp).
#pragma once

// The compiler turns some loops and copies into calls of these. Under another name they are watched too. The
// declarations must come before any header's.
#ifdef __SANITIZE_THREAD__
extern "C" {
void *memcpy(void *, const void *, __SIZE_TYPE__) noexcept __asm__("vaecf_watched_memcpy");
void *memmove(void *, const void *, __SIZE_TYPE__) noexcept __asm__("vaecf_watched_memmove");
void *memset(void *, int, __SIZE_TYPE__) noexcept __asm__("vaecf_watched_memset");
}
#endif

#include <math.h>

#include "border.h"

// The newest paths that an arch of the emulator's default has.
#define __CUDA_ARCH__ 900

#define INLINE inline __attribute__((always_inline))
#define KERNEL(NAME, THREADS, ARGUMENTS) VAECF_KERNEL(NAME, THREADS, ARGUMENTS)
#define VAECF_KERNEL(NAME, THREADS, ARGUMENTS)                                                                         \
    static void NAME ARGUMENTS;                                                                                        \
    static emulator::KernelEntry NAME##_entry(#NAME, THREADS, NAME);                                                   \
    static void NAME ARGUMENTS

#define INFINITY_F __builtin_inff()

#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_size())
#define gridDim (emulator::grid_size())

// Vectors are moved whole, as on the GPU, so that the watch sees one access of 8 or 16 bytes and its alignment.
#define VAECF_WHOLE(NAME, BYTES, PART)                                                                                 \
    PART whole __attribute__((vector_size(BYTES)));                                                                    \
    NAME() = default;                                                                                                  \
    INLINE NAME(const NAME &other) : whole(other.whole) {}                                                             \
    INLINE NAME &operator=(const NAME &other) { return whole = other.whole, *this; }
#define VAECF_PAIR(NAME, PART)                                                                                         \
    union alignas(8) NAME {                                                                                            \
        struct {                                                                                                       \
            PART x, y;                                                                                                 \
        };                                                                                                             \
        VAECF_WHOLE(NAME, 8, PART)                                                                                     \
        INLINE NAME(PART x, PART y) : whole{x, y} {}                                                                   \
    };                                                                                                                 \
    INLINE NAME make_##NAME(PART x, PART y) { return NAME(x, y); }
#define VAECF_QUAD(NAME, PART)                                                                                         \
    union alignas(16) NAME {                                                                                           \
        struct {                                                                                                       \
            PART x, y, z, w;                                                                                           \
        };                                                                                                             \
        VAECF_WHOLE(NAME, 16, PART)                                                                                    \
        INLINE NAME(PART x, PART y, PART z, PART w) : whole{x, y, z, w} {}                                             \
    };                                                                                                                 \
    INLINE NAME make_##NAME(PART x, PART y, PART z, PART w) { return NAME(x, y, z, w); }

VAECF_PAIR(uint2, u32)
VAECF_PAIR(float2, float)
VAECF_QUAD(uint4, u32)
VAECF_QUAD(float4, float)

INLINE u32 as_bits(float x) { return emulator::bits_of(x); }
INLINE float as_float(u32 bits) { return emulator::float_of(bits); }
INLINE u32 count_bits(u32 bits) { return u32(__builtin_popcount(bits)); }
INLINE u32 lowest_bit(u32 bits) { return u32(__builtin_ffs(int(bits))) - 1; }
INLINE u32 leading_zeros(u32 bits) { return bits == 0 ? 32 : u32(__builtin_clz(bits)); }

INLINE float widen(float x) { return x; }
INLINE float widen(tf32 x) { return x.value; }
INLINE float widen(f16 x) { return emulator::widen_f16(x.bits); }
INLINE float widen(bf16 x) { return emulator::widen_bf16(x.bits); }

template <class T> INLINE T narrow(float x);
template <> INLINE float narrow<float>(float x) { return x; }
template <> INLINE tf32 narrow<tf32>(float x) { return tf32{x}; }
template <> INLINE f16 narrow<f16>(float x) { return f16{emulator::narrow_f16(x)}; }
template <> INLINE bf16 narrow<bf16>(float x) { return bf16{emulator::narrow_bf16(x)}; }

// The machine's exponential knows no subnormal numbers.
INLINE float fast_exp(float x) {
    const float y = exp2f(x * 1.4426950408889634f);
    return y < 0x1p-126f ? 0.0f : y;
}

// The C library lacks these.
INLINE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
INLINE float sinpif(float x) { return float(sin(3.14159265358979323846 * fmod(double(x), 2.0))); }
INLINE float cospif(float x) { return float(cos(3.14159265358979323846 * fmod(double(x), 2.0))); }
INLINE void sincospif(float x, float *sine, float *cosine) {
    *sine = sinpif(x);
    *cosine = cospif(x);
}

INLINE void sync_block() { emulator::meet_block(); }
INLINE void sync_warp() { emulator::meet_warp(emulator::Together::sync, 0, 0); }
INLINE u32 swap_lanes(u32 x, u32 mask) { return emulator::meet_warp(emulator::Together::swap, x, mask); }
INLINE float swap_lanes(float x, u32 mask) { return as_float(swap_lanes(as_bits(x), mask)); }
INLINE u32 from_lane(u32 x, u32 lane) { return emulator::meet_warp(emulator::Together::from_lane, x, lane); }
INLINE float from_lane(float x, u32 lane) { return as_float(from_lane(as_bits(x), lane)); }
INLINE u32 from_below(u32 x, u32 by) { return emulator::meet_warp(emulator::Together::from_below, x, by); }
INLINE u32 vote(bool yes) { return emulator::meet_warp(emulator::Together::vote, yes, 0); }

INLINE void fence() { emulator::fence(); }
INLINE u32 atomic_or(u32 *at, u32 bits) { return emulator::fetch_or(at, bits); }
INLINE u32 atomic_swap(u32 *at, u32 value) { return emulator::exchange(at, value); }
INLINE u32 atomic_add(u32 *at, u32 n) { return emulator::fetch_add(at, n); }

INLINE u8 *shared_memory() { return emulator::shared_memory_start(); }
INLINE u32 shared_address(const void *at) { return u32(static_cast<const u8 *>(at) - shared_memory()); }

INLINE void copy_async(void *to, const void *from, u32 bytes) { emulator::start_copy(to, from, bytes); }
INLINE void copy_commit() { emulator::close_copies(); }
template <int PENDING> INLINE void copy_wait() { emulator::finish_copies(PENDING); }

// Fragments go by value, so that a kernel's stay in registers.
INLINE void load_tiles(u32 (&tiles)[4], const void *row) {
    const emulator::Four got = emulator::load_rows(emulator::Together::load, row);
    for (int i = 0; i < 4; ++i) tiles[i] = got.value[i];
}
INLINE void load_tiles_transposed(u32 (&tiles)[4], const void *row) {
    const emulator::Four got = emulator::load_rows(emulator::Together::load_transposed, row);
    for (int i = 0; i < 4; ++i) tiles[i] = got.value[i];
}
INLINE void vaecf_multiply(emulator::Together what, float (&c)[4], const u32 (&a)[4], const u32 *b) {
    const emulator::FourFloats sum =
        emulator::multiply_fragments(what, {{c[0], c[1], c[2], c[3]}}, {{a[0], a[1], a[2], a[3]}}, b[0], b[1]);
    for (int i = 0; i < 4; ++i) c[i] = sum.value[i];
}
INLINE void multiply(float (&c)[4], const u32 (&a)[4], const u32 *b, f16) {
    vaecf_multiply(emulator::Together::multiply_f16, c, a, b);
}
INLINE void multiply(float (&c)[4], const u32 (&a)[4], const u32 *b, bf16) {
    vaecf_multiply(emulator::Together::multiply_bf16, c, a, b);
}
INLINE void multiply(float (&c)[4], const u32 (&a)[4], const u32 *b, tf32) {
    vaecf_multiply(emulator::Together::multiply_tf32, c, a, b);
}
INLINE u32 round_tf32(float x) { return emulator::round_to_tf32(x); }
