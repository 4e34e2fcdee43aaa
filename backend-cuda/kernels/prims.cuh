// What the kernels take from the machine: each instruction that is not plain C++ behind one function.
// No header of the toolkit is included, so a compiler with no include path builds them, and where
// VAECF_EMULATED is defined, emulator.h gives the same names a meaning on the CPU.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef float f32;

// Numbers of 16 bits, as they are stored. Nothing is computed in them but products of matrices.
struct f16 {
    u16 bits;
};
struct bf16 {
    u16 bits;
};
// Single precision whose products are those of operands rounded to 11 bits.
struct tf32 {
    float value;
};

#ifdef VAECF_EMULATED

#include "emulator.h"

#else

#define INLINE __device__ __forceinline__
// Blocks that a processor is to have room for: what registers are given out by. The shared memory of sm_75 has
// room for one tile of a product only.
#if __CUDA_ARCH__ >= 800
#define BLOCKS_AT_ONCE 2
#else
#define BLOCKS_AT_ONCE 1
#endif
// A kernel that C can name, for blocks of at most THREADS threads: KERNEL(name, 256, (u32 n, float *x)) { ... }
#define KERNEL(NAME, THREADS, ARGUMENTS) extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE) NAME ARGUMENTS

#define INFINITY_F __int_as_float(0x7f800000)

INLINE u32 as_bits(float x) { return __float_as_uint(x); }
INLINE float as_float(u32 bits) { return __uint_as_float(bits); }
INLINE u32 count_bits(u32 bits) { return __popc(bits); }
// Position of the lowest bit that is set; there must be one.
INLINE u32 lowest_bit(u32 bits) { return __ffs(bits) - 1; }
INLINE u32 leading_zeros(u32 bits) { return __clz(bits); }

INLINE float widen(float x) { return x; }
INLINE float widen(tf32 x) { return x.value; }
INLINE float widen(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
INLINE float widen(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

template <class T> INLINE T narrow(float x);
template <> INLINE float narrow<float>(float x) { return x; }
template <> INLINE tf32 narrow<tf32>(float x) { return tf32{x}; }
template <> INLINE f16 narrow<f16>(float x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
#if __CUDA_ARCH__ >= 800
template <> INLINE bf16 narrow<bf16>(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
#else
// Older devices compute nothing in it, and send sums in it all the same: to the nearest, ties to even.
template <> INLINE bf16 narrow<bf16>(float x) {
    u32 bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16{0x7fff};
    return bf16{u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
#endif

// e^x by the machine's own base-2 exponential: two units in the last place, more where |x| is large.
INLINE float fast_exp(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
    return y;
}

INLINE void sync_block() { __syncthreads(); }
// What this thread wrote before is seen by whoever sees what it writes after.
INLINE void fence() { __threadfence(); }
INLINE void sync_warp() { __syncwarp(); }
// From the lane whose number is this one's with the bits of `mask` turned. All 32 lanes take part.
INLINE float swap_lanes(float x, u32 mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
INLINE u32 swap_lanes(u32 x, u32 mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
INLINE float from_lane(float x, u32 lane) { return __shfl_sync(0xffffffffu, x, lane); }
INLINE u32 from_lane(u32 x, u32 lane) { return __shfl_sync(0xffffffffu, x, lane); }
// From the lane `by` below; lanes below `by` get their own.
INLINE u32 from_below(u32 x, u32 by) { return __shfl_up_sync(0xffffffffu, x, by); }
// The lanes where it is true, as bits.
INLINE u32 vote(bool yes) { return __ballot_sync(0xffffffffu, yes); }

INLINE u32 atomic_or(u32 *at, u32 bits) { return atomicOr(at, bits); }
INLINE u32 atomic_swap(u32 *at, u32 value) { return atomicExch(at, value); }
INLINE u32 atomic_add(u32 *at, u32 n) { return atomicAdd(at, n); }

// The block's dynamic shared memory.
INLINE u8 *shared_memory() {
    extern __shared__ __align__(128) u8 memory[];
    return memory;
}
INLINE u32 shared_address(const void *at) { return u32(__cvta_generic_to_shared(at)); }

// 16 bytes from device memory to shared memory, of which `bytes` are read and the rest is zero. Both
// addresses are multiples of 16. It has happened once `copy_wait` has passed, for this thread.
INLINE void copy_async(void *to, const void *from, u32 bytes) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
#else
    uint4 value = make_uint4(0, 0, 0, 0);
    if (bytes == 16) {
        value = *(const uint4 *)from;
    } else {
        u16 *words = (u16 *)&value;
        for (u32 i = 0; i < 8; ++i) {
            if (2 * i < bytes) words[i] = ((const u16 *)from)[i];
        }
    }
    *(uint4 *)to = value;
#endif
}
// Closes a group of copies.
INLINE void copy_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most PENDING groups are under way.
template <int PENDING> INLINE void copy_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// Four 8x8 tiles of 16-bit numbers from shared memory: lane 8 t + r has the address of row r of tile t
// (16 bytes), and gets of each tile the numbers 2 (lane % 4) and one more of row lane / 4.
INLINE void load_tiles(u32 (&tiles)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// The same, each tile transposed on the way.
INLINE void load_tiles_transposed(u32 (&tiles)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// c += a b on the tensor cores, 16x16 times 16x8, sums in f32. Fragments as in the PTX manual, mma.m16n8k16:
// with g = lane / 4, t = lane % 4, a holds rows g and g + 8 by columns 2t.. and 2t + 8..; b rows 2t.. and
// 2t + 8.. of column g; c rows g and g + 8 by columns 2t and 2t + 1.
INLINE void multiply(float (&c)[4], const u32 (&a)[4], const u32 *b, f16) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    for (int half = 0; half < 2; ++half) {
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
                     "{%0, %1, %2, %3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
    }
#endif
}
#if __CUDA_ARCH__ >= 800
INLINE void multiply(float (&c)[4], const u32 (&a)[4], const u32 *b, bf16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// To 11 bits, to the nearest, for the product below.
INLINE u32 round_tf32(float x) {
    u32 y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
}
// c += a b, 16x8 times 8x8, mma.m16n8k8: a holds rows g, g + 8 by columns t and (a[2], a[3]) t + 4; b rows t
// and t + 4 of column g; c as above.
INLINE void multiply(float (&c)[4], const u32 (&a)[4], const u32 *b, tf32) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

#endif // VAECF_EMULATED

INLINE u32 lane_of() { return threadIdx.x % 32; }
INLINE u32 warp_of() { return threadIdx.x / 32; }

// The high half of a product.
INLINE u32 multiply_high(u32 a, u32 b) { return u32((u64(a) * b) >> 32); }

template <class T> INLINE T smaller(T a, T b) { return a < b ? a : b; }
template <class T> INLINE T larger(T a, T b) { return a > b ? a : b; }

INLINE bool is_finite(float x) { return (as_bits(x) & 0x7f800000u) != 0x7f800000u; }

// Sum and maximum over a warp: every lane gets the result, in the same order each time.
INLINE float warp_sum(float x) {
    for (u32 mask = 16; mask > 0; mask /= 2) x += swap_lanes(x, mask);
    return x;
}
INLINE float warp_max(float x) {
    for (u32 mask = 16; mask > 0; mask /= 2) x = larger(x, swap_lanes(x, mask));
    return x;
}
