// The narrow numbers of the GPU and their conversions, by their bits, as the PTX manual's cvt defines them.
#pragma once

namespace emulator {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

inline u32 bits_of(float x) { return __builtin_bit_cast(u32, x); }
inline float float_of(u32 bits) { return __builtin_bit_cast(float, bits); }

// A NaN in each of f32, f16 and bf16, and far too large as an index: what fresh memory is filled with.
constexpr u16 GARBAGE = 0x7fbf;

inline float widen_f16(u16 bits) {
    const u32 magnitude = u32(bits & 0x7fff) << 13;
    const u32 sign = u32(bits & 0x8000) << 16;
    // The exponent moves from a bias of 15 to one of 127; the product takes care of subnormal numbers.
    const float finite = float_of(magnitude) * 0x1p112f;
    const u32 special = magnitude == 0x0f800000 ? 0x7f800000 : 0x7fffffff;
    return float_of((magnitude >= 0x0f800000 ? special : bits_of(finite)) | sign);
}

// To the nearest, ties to even; every NaN becomes 0x7fff.
inline u16 narrow_f16(float x) {
    const u32 sign = bits_of(x) >> 16 & 0x8000;
    const u32 magnitude = bits_of(x) & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0x7fff;
    if (magnitude >= 0x47800000) return u16(sign | 0x7c00); // 65536 and above, infinity with it
    if (magnitude < 0x38800000) {
        // Below the smallest normal number the spacing is 2^-24: adding 0.5 lets the FPU round to it.
        return u16(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000));
    }
    const u32 odd = magnitude >> 13 & 1;
    return u16(sign | ((magnitude - 0x38000000 + 0xfff + odd) >> 13));
}

inline float widen_bf16(u16 bits) { return float_of(u32(bits) << 16); }

// To the nearest, ties to even; every NaN becomes 0x7fff.
inline u16 narrow_bf16(float x) {
    const u32 bits = bits_of(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// To 10 bits of mantissa, to the nearest, ties away from zero (cvt.rna.tf32.f32).
inline u32 round_to_tf32(float x) {
    const u32 bits = bits_of(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fffffff;
    return (bits + 0x1000) & ~0x1fffu;
}

} // namespace emulator
