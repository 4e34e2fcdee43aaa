// The emulator's own tests. A line a check: "ok NAME" or "FAILED NAME: why"; the exit status says whether all
// passed. With an argument, only checks whose names contain it; with --speed, measurements instead.
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "../numbers.h"

using emulator::float_of, emulator::bits_of;
using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

extern "C" {
int cuInit(unsigned);
int cuDriverGetVersion(int *);
int cuDeviceGetCount(int *);
int cuDeviceGetAttribute(int *, int, int);
int cuDevicePrimaryCtxRetain(void **, int);
int cuDevicePrimaryCtxRelease_v2(int);
int cuCtxSetCurrent(void *);
int cuCtxSynchronize();
int cuMemGetInfo_v2(size_t *, size_t *);
int cuMemAlloc_v2(u64 *, size_t);
int cuMemFree_v2(u64);
int cuMemHostAlloc(void **, size_t, unsigned);
int cuMemFreeHost(void *);
int cuMemHostRegister_v2(void *, size_t, unsigned);
int cuMemHostUnregister(void *);
int cuMemcpyHtoDAsync_v2(u64, const void *, size_t, void *);
int cuMemcpyDtoHAsync_v2(void *, u64, size_t, void *);
int cuMemcpyDtoDAsync_v2(u64, u64, size_t, void *);
int cuMemcpyHtoD_v2(u64, const void *, size_t);
int cuMemcpyDtoH_v2(void *, u64, size_t);
int cuMemsetD8Async(u64, unsigned char, size_t, void *);
int cuMemsetD32Async(u64, unsigned, size_t, void *);
int cuStreamCreate(void **, unsigned);
int cuStreamDestroy_v2(void *);
int cuStreamSynchronize(void *);
int cuStreamQuery(void *);
int cuStreamWaitEvent(void *, void *, unsigned);
int cuStreamBeginCapture_v2(void *, int);
int cuStreamEndCapture(void *, void **);
int cuStreamIsCapturing(void *, int *);
int cuThreadExchangeStreamCaptureMode(int *);
int cuGraphInstantiateWithFlags(void **, void *, u64);
int cuGraphLaunch(void *, void *);
int cuGraphDestroy(void *);
int cuGraphExecDestroy(void *);
int cuEventCreate(void **, unsigned);
int cuEventDestroy_v2(void *);
int cuEventRecord(void *, void *);
int cuEventSynchronize(void *);
int cuEventQuery(void *);
int cuEventElapsedTime_v2(float *, void *, void *);
int cuModuleLoadData(void **, const void *);
int cuModuleGetFunction(void **, void *, const char *);
int cuFuncSetAttribute(void *, int, int);
int cuFuncGetAttribute(int *, int, void *);
int cuLaunchKernel(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **,
                   void **);
int cuGetErrorName(int, const char **);
int cuGetProcAddress_v2(const char *, void **, int, u64, int *);
int cublasLtCreate(void **);
int cublasLtDestroy(void *);
size_t cublasLtGetVersion();
int cublasLtMatmulDescCreate(void **, int, int);
int cublasLtMatmulDescDestroy(void *);
int cublasLtMatmulDescSetAttribute(void *, int, const void *, size_t);
int cublasLtMatrixLayoutCreate(void **, int, u64, u64, long long);
int cublasLtMatrixLayoutDestroy(void *);
int cublasLtMatrixLayoutSetAttribute(void *, int, const void *, size_t);
int cublasLtMatmulPreferenceCreate(void **);
int cublasLtMatmulPreferenceDestroy(void *);
int cublasLtMatmulPreferenceSetAttribute(void *, int, const void *, size_t);
int cublasLtMatmulAlgoGetHeuristic(void *, void *, void *, void *, void *, void *, void *, int, void *, int *);
int cublasLtMatmul(void *, void *, const void *, u64, void *, u64, void *, const void *, u64, void *, u64, void *,
                   const void *, u64, size_t, void *);
struct UniqueId {
    char text[128];
};
int ncclGetVersion(int *);
const char *ncclGetErrorString(int);
int ncclGetUniqueId(UniqueId *);
int ncclCommInitRankConfig(void **, int, UniqueId, int, void *);
int ncclCommGetAsyncError(void *, int *);
int ncclCommFinalize(void *);
int ncclCommDestroy(void *);
int ncclCommAbort(void *);
int ncclAllReduce(u64, u64, size_t, int, int, void *, void *);
int ncclBroadcast(u64, u64, size_t, int, int, void *, void *);
u64 vaecf_emulator_live_bytes();
const char *vaecf_emulator_last_fault();
void vaecf_emulator_restart();
}

// ---- Checks ----

namespace {

int failures = 0;
std::string only;
std::string current_check;
bool current_failed;

void fail(const std::string &why) {
    if (current_failed) return;
    current_failed = true;
    ++failures;
    printf("FAILED %s: %s\n", current_check.c_str(), why.c_str());
}

void check(const std::string &name, const std::function<void()> &body) {
    if (!only.empty() && name.find(only) == std::string::npos) return;
    current_check = name;
    current_failed = false;
    body();
    if (!current_failed) printf("ok %s\n", name.c_str());
    fflush(stdout);
}

void expect(int result, int wanted, const char *what) {
    if (result == wanted) return;
    const char *got = nullptr, *want = nullptr;
    cuGetErrorName(result, &got);
    cuGetErrorName(wanted, &want);
    fail(std::string(what) + " gives " + (got ? got : std::to_string(result)) + ", and should " + (want ? want : "?"));
}
#define EXPECT(WANTED, CALL) expect(CALL, WANTED, #CALL)
#define DO(CALL) expect(CALL, 0, #CALL)
#define SURE(CONDITION)                                                                                                \
    if (!(CONDITION)) fail("not so: " #CONDITION)

void *module_ = nullptr;

void begin(u32 seed) {
    setenv("VAECF_EMULATOR_SEED", std::to_string(seed).c_str(), 1);
    vaecf_emulator_restart();
    DO(cuInit(0));
    void *context;
    DO(cuDevicePrimaryCtxRetain(&context, 0));
    DO(cuCtxSetCurrent(context));
    DO(cuModuleLoadData(&module_, "// a module of all kernels"));
}

void *kernel(const char *name) {
    void *function = nullptr;
    DO(cuModuleGetFunction(&function, module_, name));
    return function;
}

template <class... T> int launch(const char *name, u32 grid, u32 block, u32 shared, void *stream, T... arguments) {
    void *pointers[] = {&arguments..., nullptr};
    return cuLaunchKernel(kernel(name), grid, 1, 1, block, 1, 1, shared, stream, pointers, nullptr);
}

u64 allocate(u64 bytes) {
    u64 address = 0;
    DO(cuMemAlloc_v2(&address, bytes));
    return address;
}

template <class T> u64 upload(const std::vector<T> &values) {
    const u64 address = allocate(values.size() * sizeof(T));
    DO(cuMemcpyHtoD_v2(address, values.data(), values.size() * sizeof(T)));
    return address;
}

template <class T> std::vector<T> download(u64 address, size_t count) {
    std::vector<T> values(count);
    DO(cuMemcpyDtoH_v2(values.data(), address, count * sizeof(T)));
    return values;
}

struct Numbers {
    u64 state = 88172645463325252ull;
    u64 next() {
        state ^= state << 13;
        state ^= state >> 7;
        return state ^= state << 17;
    }
    float between(float low, float high) { return low + (high - low) * float(next() >> 40) * 0x1p-24f; }
};

// ---- Planted faults ----

struct Planted {
    const char *name;
    u32 grid, block, shared;
    bool reads;    // has a source of 4 * 64 words before `out`
    u32 out_words; // 0 for one each thread
    int code;
    const char *says; // what the sentence must contain
};

const Planted PLANTED[] = {
    {"barrier_before_read", 2, 256, 1024, false, 0, 719, "with no sync_block between"},
    {"barrier_before_reuse", 2, 256, 1024, false, 0, 719, "with no sync_block between"},
    {"barrier_of_warp", 2, 256, 1024, false, 0, 719, "with no sync_warp between"},
    {"barrier_too_small", 2, 256, 1024, false, 0, 719, "with no sync_block between"},
    {"barrier_for_global", 2, 256, 0, false, 0, 719, "with no sync_block between"},
    {"barrier_in_branch", 2, 256, 0, false, 0, 719, "waits at sync_block, which not all threads"},
    {"barrier_after_return", 2, 256, 0, false, 0, 719, "thread 77 has finished"},
    {"shuffle_in_branch", 2, 256, 0, false, 0, 719, "waits at swap_lanes, which not all lanes"},
    {"shuffle_before_barrier", 2, 256, 0, false, 0, 719, "waits at from_lane, which not all lanes"},
    {"two_collectives", 2, 256, 0, false, 0, 719, "two different collectives"},
    {"shared_write_past_end", 2, 256, 1024, false, 0, 700, "0 bytes past the end of the 1024 bytes of shared memory"},
    {"shared_read_before_start", 2, 256, 1024, false, 0, 700, "4 bytes before the 1024 bytes of shared memory"},
    {"global_write_past_end", 2, 256, 0, false, 0, 700, "0 bytes past the end of the allocation of 2048 bytes"},
    {"global_read_past_end", 2, 256, 0, false, 0, 700, "0 bytes past the end of the allocation of 2048 bytes"},
    {"global_read_before_start", 2, 256, 0, false, 0, 700, "before the allocation of 2048 bytes"},
    {"misaligned_vector", 2, 256, 0, true, 0, 700, "no multiple of 16"},
    {"misaligned_word", 2, 256, 0, true, 0, 700, "no multiple of 4"},
    {"misaligned_row", 2, 32, 1024, false, 0, 700, "no multiple of 16"},
    {"rows_of_global", 2, 32, 1024, false, 1024, 700, "rows come from shared memory"},
    {"blocks_write_same", 4, 256, 0, false, 0, 719, "nothing orders the blocks"},
    {"block_reads_other", 4, 256, 0, false, 0, 719, "nothing orders the blocks"},
    {"threads_write_same", 4, 256, 0, false, 4, 719, "with no sync_block between"},
    {"count_without_atomic", 4, 256, 0, false, 7, 719, "race"},
    {"plain_read_of_atomic", 2, 256, 0, false, 2, 719, "race"},
    {"told_without_fence", 4, 256, 0, false, 5, 719, "nothing orders the blocks"},
    {"heard_without_fence", 4, 256, 0, false, 5, 719, "nothing orders the blocks"},
    {"told_too_late", 4, 256, 0, false, 5, 719, "nothing orders the blocks"},
    {"copy_without_wait", 2, 64, 1024, true, 0, 719, "no copy_wait of its covers them"},
    {"copy_without_commit", 2, 64, 1024, true, 0, 719, "no copy_wait of its covers them"},
    {"copy_wait_too_weak", 2, 64, 2048, true, 0, 719, "no copy_wait of its covers them"},
    {"copy_without_barrier", 2, 64, 1024, true, 0, 719, "which "},
    {"copy_misaligned", 2, 64, 1024, true, 0, 700, "no multiple of 16"},
    {"copy_past_end", 2, 64, 1024, true, 0, 700, "past the end of the allocation of 1024 bytes"},
};

int run_planted(const Planted &planted, u32 right) {
    const u32 words = planted.out_words != 0 ? planted.out_words : planted.grid * planted.block;
    const u64 out = allocate(4 * words);
    DO(cuMemsetD8Async(out, 0, 4 * words, nullptr));
    if (planted.reads) {
        const u64 from = upload(std::vector<u32>(4 * 64, 1));
        DO(launch(planted.name, planted.grid, planted.block, planted.shared, nullptr, right, from, out));
    } else {
        DO(launch(planted.name, planted.grid, planted.block, planted.shared, nullptr, right, out));
    }
    return cuCtxSynchronize();
}

void planted_faults() {
    for (const Planted &planted : PLANTED) {
        check(std::string("finds ") + planted.name, [&] {
            for (u32 seed = 1; seed <= 20; ++seed) {
                begin(seed);
                EXPECT(planted.code, run_planted(planted, 0));
                const std::string said = vaecf_emulator_last_fault();
                if (said.find(planted.says) == std::string::npos ||
                    said.find(std::string("kernel ") + planted.name + ", block ") != 0) {
                    fail("it says: " + said);
                }
            }
        });
        check(std::string("passes right ") + planted.name, [&] {
            for (u32 seed = 1; seed <= 100; ++seed) {
                begin(seed);
                EXPECT(0, run_planted(planted, 1));
                if (current_failed) return fail(vaecf_emulator_last_fault());
            }
        });
    }
    const auto reads = [](u64 from, const char *says) {
        const u64 out = allocate(256);
        DO(launch("read_through", 1, 64, 0, nullptr, from, out));
        EXPECT(700, cuCtxSynchronize());
        const std::string said = vaecf_emulator_last_fault();
        if (said.find(says) == std::string::npos) fail("it says: " + said);
    };
    check("finds a null pointer", [&] {
        begin(1);
        reads(0, "a null pointer");
    });
    check("finds a pointer of the host", [&] {
        begin(1);
        std::vector<u32> here(64);
        reads(u64(here.data()), "which is no memory of the device");
    });
    check("finds use after free", [&] {
        begin(1);
        const u64 gone = allocate(256);
        DO(cuMemFree_v2(gone));
        reads(gone, "kernel read_through");
    });
    check("a fault is kept until the context goes", [&] {
        begin(1);
        EXPECT(719, run_planted(PLANTED[0], 0));
        u64 address;
        EXPECT(719, cuMemAlloc_v2(&address, 16));
        EXPECT(719, cuCtxSynchronize());
        void *stream;
        EXPECT(719, cuStreamCreate(&stream, 0));
        DO(cuDevicePrimaryCtxRelease_v2(0));
        void *context;
        DO(cuDevicePrimaryCtxRetain(&context, 0));
        DO(cuCtxSetCurrent(context));
        DO(cuMemAlloc_v2(&address, 16));
    });
}

// ---- Numbers ----

// What the 16 bits mean, by the definition of the format: `mantissa` bits of it, exponents from a bias.
double value_of(u32 bits, int mantissa, int exponent_bits) {
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const int exponent = int(bits >> mantissa) & ((1 << exponent_bits) - 1);
    const double fraction = double(bits & ((1u << mantissa) - 1));
    const double sign = bits >> (mantissa + exponent_bits) & 1 ? -1.0 : 1.0;
    if (exponent == (1 << exponent_bits) - 1) return fraction != 0 ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - mantissa);
    return sign * std::ldexp(1.0 + std::ldexp(fraction, -mantissa), exponent - bias);
}

// x to the nearest number of the format, as a number: ties to even, or away from zero.
double rounded(double x, int mantissa, int exponent_bits, bool ties_away) {
    if (std::isnan(x) || std::isinf(x)) return x;
    const int bias = (1 << (exponent_bits - 1)) - 1;
    int exponent;
    std::frexp(x, &exponent);
    exponent = std::max(exponent - 1, 1 - bias);
    const double unit = std::ldexp(1.0, exponent - mantissa);
    const double y = (ties_away ? std::round(x / unit) : std::nearbyint(x / unit)) * unit;
    const double most = std::ldexp(2.0 - std::ldexp(1.0, -mantissa), bias);
    return std::fabs(y) > most ? std::copysign(INFINITY, x) : y;
}

bool same(double a, double b) {
    return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b));
}

void numbers() {
    check("every f16 and bf16 widens to its value", [] {
        begin(1);
        const u64 f16s = allocate(4 << 16), bf16s = allocate(4 << 16);
        DO(launch("widen_each", 256, 256, 0, nullptr, f16s, bf16s));
        const auto f16 = download<float>(f16s, 1 << 16), bf16 = download<float>(bf16s, 1 << 16);
        for (u32 i = 0; i < 1 << 16; ++i) {
            if (!same(f16[i], value_of(i, 10, 5))) return fail("f16 " + std::to_string(i));
            if (!same(bf16[i], value_of(i, 7, 8))) return fail("bf16 " + std::to_string(i));
        }
    });
    check("f32 narrows to the nearest f16, bf16 and tf32", [] {
        begin(1);
        std::vector<float> x;
        Numbers numbers;
        for (u32 i = 0; i < 1 << 18; ++i) x.push_back(float_of(u32(numbers.next() >> 20)));
        // All halves, what lies in the middle of two, and the f32 next to these.
        for (u32 i = 0; i < 1 << 16; ++i) {
            for (u32 bits : {bits_of(float(value_of(i, 10, 5))), i << 16}) {
                for (u32 middle : {0u, 0x1000u, 0x8000u}) {
                    for (int by = -1; by <= 1; ++by) x.push_back(float_of((bits | middle) + u32(by)));
                }
            }
            if (i < 0x800) x.push_back(float((i + 0.5) * 0x1p-24)); // in the middle of two subnormal f16
        }
        const u32 n = u32(x.size());
        const u64 from = upload(x), f16s = allocate(2 * n), bf16s = allocate(2 * n), tf32s = allocate(4 * n);
        DO(launch("narrow_each", (n + 255) / 256, 256, 0, nullptr, n, from, f16s, bf16s, tf32s));
        const auto f16 = download<u16>(f16s, n), bf16 = download<u16>(bf16s, n);
        const auto tf32 = download<u32>(tf32s, n);
        for (u32 i = 0; i < n; ++i) {
            char bits[32];
            snprintf(bits, sizeof bits, "0x%08x", bits_of(x[i]));
            if (!same(value_of(f16[i], 10, 5), rounded(x[i], 10, 5, false))) return fail(std::string("f16 of ") + bits);
            if (!same(value_of(bf16[i], 7, 8), rounded(x[i], 7, 8, false))) return fail(std::string("bf16 of ") + bits);
            if (tf32[i] % 0x2000 != 0 && !std::isnan(x[i])) return fail(std::string("tf32 has more bits, of ") + bits);
            if (!same(float_of(tf32[i]), rounded(x[i], 10, 8, true))) return fail(std::string("tf32 of ") + bits);
        }
    });
}

// ---- Warps and fragments ----

void fragments() {
    check("lanes exchange as the PTX manual says", [] {
        for (u32 seed = 1; seed <= 20; ++seed) {
            begin(seed);
            const u64 out = allocate(4 * 192);
            DO(launch("collectives", 1, 32, 0, nullptr, out));
            const auto got = download<u32>(out, 192);
            u32 votes = 0;
            for (u32 i = 0; i < 32; ++i) votes |= u32(i % 3 == 0) << i;
            for (u32 i = 0; i < 32; ++i) {
                SURE(got[i] == 100 + (i ^ 5));
                SURE(got[32 + i] == 100 + (3 * i + 1) % 32);
                SURE(got[64 + i] == 100 + (i < 3 ? i : i - 3));
                SURE(got[96 + i] == votes);
                SURE(float_of(got[128 + i]) == 496.0f);
                SURE(float_of(got[160 + i]) == 31.0f);
            }
        }
    });
    // PTX manual, ldmatrix: thread T receives of each matrix row T / 4, the elements T % 4 * 2 and the next; with
    // .trans the matrix is read in column order.
    for (u32 transposed : {0u, 1u}) {
        check(transposed ? "load_tiles_transposed" : "load_tiles", [transposed] {
            begin(3);
            std::vector<u16> numbers(256);
            for (u32 i = 0; i < 256; ++i) numbers[i] = u16(i);
            const u64 from = upload(numbers), out = allocate(4 * 128);
            DO(launch("tiles_of_lanes", 1, 32, 512, nullptr, transposed, from, out));
            const auto got = download<u32>(out, 128);
            for (u32 lane = 0; lane < 32; ++lane) {
                for (u32 tile = 0; tile < 4; ++tile) {
                    for (u32 half = 0; half < 2; ++half) {
                        const u32 row = lane / 4, column = lane % 4 * 2 + half;
                        const u32 wanted = 64 * tile + (transposed ? 8 * column + row : 8 * row + column);
                        SURE((got[4 * lane + tile] >> 16 * half & 0xffff) == wanted);
                    }
                }
            }
        });
    }

    // PTX manual, "Matrix Fragments for mma.m16n8k16 with floating point types" and ".m16n8k8": where element i of a
    // thread's fragment lies, with groupID = lane >> 2 and threadID_in_group = lane % 4.
    struct Type {
        const char *name;
        u32 k;
        std::function<u32(float)> narrow;
        std::function<float(u32)> widen;
    };
    const Type TYPES[] = {
        {"multiply_f16", 16, [](float x) -> u32 { return emulator::narrow_f16(x); },
         [](u32 bits) { return float(value_of(bits, 10, 5)); }},
        {"multiply_bf16", 16, [](float x) -> u32 { return emulator::narrow_bf16(x); },
         [](u32 bits) { return float(value_of(bits, 7, 8)); }},
        {"multiply_tf32", 8, [](float x) -> u32 { return bits_of(x); },
         [](u32 bits) { return float_of(bits & 0xffffe000); }},
    };
    for (const Type &type : TYPES) {
        check(type.name, [&] {
            Numbers numbers;
            for (u32 round = 0; round < 50; ++round) {
                begin(round + 1);
                const u32 k = type.k;
                std::vector<u32> a(16 * k), b(k * 8);
                std::vector<float> c(16 * 8);
                // Small whole numbers, whose sums are exact, and then any.
                const auto draw = [&] {
                    return round < 25 ? float(int(numbers.next() % 15) - 7) : numbers.between(-2, 2);
                };
                for (u32 &x : a) x = type.narrow(draw());
                for (u32 &x : b) x = type.narrow(draw());
                for (float &x : c) x = draw();
                std::vector<u32> a_lanes(128, 0), b_lanes(64, 0);
                std::vector<float> c_lanes(128);
                for (u32 lane = 0; lane < 32; ++lane) {
                    const u32 group = lane >> 2, in_group = lane % 4;
                    if (k == 16) {
                        for (u32 i = 0; i < 8; ++i) {
                            const u32 row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
                            const u32 column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
                            a_lanes[4 * lane + i / 2] |= a[row * 16 + column] << 16 * (i % 2);
                        }
                        for (u32 i = 0; i < 4; ++i) {
                            const u32 row = in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0);
                            b_lanes[2 * lane + i / 2] |= b[row * 8 + group] << 16 * (i % 2);
                        }
                    } else {
                        for (u32 i = 0; i < 4; ++i) {
                            const u32 row = i == 0 || i == 2 ? group : group + 8;
                            const u32 column = i < 2 ? in_group : in_group + 4;
                            a_lanes[4 * lane + i] = a[row * 8 + column];
                        }
                        for (u32 i = 0; i < 2; ++i) b_lanes[2 * lane + i] = b[(in_group + 4 * i) * 8 + group];
                    }
                    for (u32 i = 0; i < 4; ++i) {
                        c_lanes[4 * lane + i] = c[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)];
                    }
                }
                const u64 a_at = upload(a_lanes), b_at = upload(b_lanes), c_at = upload(c_lanes);
                DO(launch(type.name, 1, 32, 0, nullptr, a_at, b_at, c_at));
                const auto got = download<float>(c_at, 128);
                for (u32 lane = 0; lane < 32; ++lane) {
                    for (u32 i = 0; i < 4; ++i) {
                        const u32 row = (lane >> 2) + (i < 2 ? 0 : 8), column = lane % 4 * 2 + (i & 1);
                        double sum = c[row * 8 + column], size = std::fabs(sum);
                        for (u32 j = 0; j < k; ++j) {
                            const double term =
                                double(type.widen(a[row * k + j])) * double(type.widen(b[j * 8 + column]));
                            sum += term;
                            size += std::fabs(term);
                        }
                        const double off = std::fabs(got[4 * lane + i] - sum);
                        if (!(off <= (round < 25 ? 0 : 1e-6 * size))) return fail("row " + std::to_string(row));
                    }
                }
            }
        });
    }
    check("product of matrices through all of it", [] {
        for (u32 seed = 1; seed <= 10; ++seed) {
            begin(seed);
            const u32 m = 128, n = 64, k = 48;
            Numbers numbers;
            std::vector<u16> a(m * k), b(k * n);
            for (u16 &x : a) x = emulator::narrow_f16(float(int(numbers.next() % 9) - 4));
            for (u16 &x : b) x = emulator::narrow_f16(float(int(numbers.next() % 9) - 4));
            const u64 a_at = upload(a), b_at = upload(b), c_at = allocate(4 * m * n);
            void *arguments[] = {(void *)&n, (void *)&k, (void *)&a_at, (void *)&b_at, (void *)&c_at};
            DO(cuLaunchKernel(kernel("product"), n / 64, m / 64, 1, 128, 1, 1, 8192, nullptr, arguments, nullptr));
            const auto c = download<float>(c_at, m * n);
            for (u32 i = 0; i < m; ++i) {
                for (u32 j = 0; j < n; ++j) {
                    double sum = 0;
                    for (u32 l = 0; l < k; ++l) sum += value_of(a[i * k + l], 10, 5) * value_of(b[l * n + j], 10, 5);
                    SURE(sum == c[i * n + j]);
                }
            }
        }
    });
    check("a softmax of rows", [] {
        for (u32 seed = 1; seed <= 10; ++seed) {
            begin(seed);
            Numbers numbers;
            const u32 n = 333, rows = 5;
            std::vector<float> x(n * rows);
            for (float &each : x) each = numbers.between(-9, 9);
            const u64 at = upload(x);
            DO(launch("softmax_rows", rows, 256, 32, nullptr, n, at));
            const auto y = download<float>(at, n * rows);
            for (u32 i = 0; i < rows; ++i) {
                double sum = 0;
                for (u32 j = 0; j < n; ++j) sum += std::exp(double(x[i * n + j]));
                for (u32 j = 0; j < n; ++j)
                    SURE(std::fabs(y[i * n + j] * sum / std::exp(double(x[i * n + j])) - 1) < 1e-5);
            }
        }
    });
    check("a constant table and vectors", [] {
        begin(1);
        const u64 out = allocate(128);
        DO(launch("read_table", 1, 32, 0, nullptr, out));
        const auto got = download<u32>(out, 32);
        for (u32 i = 0; i < 32; ++i) SURE(got[i] == std::vector<u32>({3, 1, 4, 1})[i % 4]);
        const u64 x = upload(std::vector<float>(4000, 2)), y = upload(std::vector<float>(4000, 3));
        DO(launch("add_scaled", 2, 256, 0, nullptr, 1000u, 0.5f, x, y));
        for (float each : download<float>(y, 4000)) SURE(each == 4);
    });
}

// ---- The driver ----

void driver() {
    check("arguments of every size, grids of three dimensions", [] {
        begin(1);
        const u64 out = allocate(4 * (5 + 30));
        u8 a = 7;
        u16 b = 700;
        float c = 1.5f;
        u64 d = 5ull << 32, e_out = out;
        struct {
            u32 a, b, c;
        } e{1, 2, 3};
        void *arguments[] = {&a, &b, &c, &d, &e, &e_out};
        DO(cuLaunchKernel(kernel("arguments"), 2, 3, 5, 32, 1, 1, 0, nullptr, arguments, nullptr));
        EXPECT(719, cuCtxSynchronize()); // every block writes the first five
        begin(1);
        e_out = allocate(4 * 35);
        DO(cuLaunchKernel(kernel("arguments"), 1, 1, 1, 32, 1, 1, 0, nullptr, arguments, nullptr));
        const auto got = download<u32>(e_out, 35);
        SURE(got[0] == 7 && got[1] == 700 && float_of(got[2]) == 1.5f && got[3] == 5 && got[4] == 6 && got[5] == 0);
        SURE(got[6] == (u32(emulator::GARBAGE) << 16 | emulator::GARBAGE)); // fresh memory is garbage
    });
    check("launches that the driver refuses", [] {
        begin(1);
        void *f = kernel("add_one");
        const u64 x = allocate(1024);
        u32 n = 256;
        void *arguments[] = {&n, (void *)&x};
        const auto go = [&](u32 gx, u32 gy, u32 gz, u32 bx, u32 by, u32 shared) {
            return cuLaunchKernel(f, gx, gy, gz, bx, by, 1, shared, nullptr, arguments, nullptr);
        };
        EXPECT(1, go(0, 1, 1, 256, 1, 0));
        EXPECT(1, go(1, 1, 1, 0, 1, 0));
        EXPECT(1, go(1, 65536, 1, 256, 1, 0));
        EXPECT(1, go(1, 1, 65536, 256, 1, 0));
        EXPECT(1, go(1, 1, 1, 257, 1, 0)); // its own limit
        EXPECT(1, go(1, 1, 1, 16, 17, 0));
        EXPECT(1, go(1, 1, 1, 256, 1, (48 << 10) + 1));
        EXPECT(1, cuFuncSetAttribute(f, 8, (227 << 10) + 1));
        DO(cuFuncSetAttribute(f, 8, 227 << 10));
        DO(go(1, 1, 1, 256, 1, 227 << 10));
        void *unknown;
        EXPECT(500, cuModuleGetFunction(&unknown, module_, "no_such_kernel"));
        EXPECT(200, cuModuleLoadData(&unknown, "neither ELF nor PTX"));
        EXPECT(218, cuModuleLoadData(&unknown, ".version 8.8\n.target sm_100\n.visible .entry add_one(\n)"));
        void *ptx = nullptr;
        DO(cuModuleLoadData(&ptx, ".version 8.8\n.target sm_80\n.visible .entry add_one(\n)"));
        DO(cuModuleGetFunction(&unknown, ptx, "add_one"));
        EXPECT(500, cuModuleGetFunction(&unknown, ptx, "add_scaled"));
        DO(cuCtxSynchronize());
    });
    check("a block uses as much shared memory as the device has", [] {
        begin(1);
        DO(cuFuncSetAttribute(kernel("fill_shared"), 8, 227 << 10));
        const u64 out = allocate(1024);
        DO(launch("fill_shared", 1, 256, 227 << 10, nullptr, (227u << 10) / 4, out));
        DO(cuCtxSynchronize());
    });
    check("memory: bounds, double free, leaks, all of it", [] {
        setenv("VAECF_EMULATOR_MEMORY", "1048576", 1);
        begin(1);
        const u64 x = allocate(1000);
        std::vector<u8> bytes(2000);
        SURE(x % 512 == 0);
        EXPECT(1, cuMemcpyHtoD_v2(x, bytes.data(), 1001));
        EXPECT(1, cuMemcpyDtoH_v2(bytes.data(), x + 1, 1000));
        EXPECT(1, cuMemsetD8Async(x, 0, 1001, nullptr));
        EXPECT(1, cuMemsetD32Async(x + 2, 0, 1, nullptr));
        EXPECT(1, cuMemcpyDtoDAsync_v2(x, x + 999, 2, nullptr));
        SURE(vaecf_emulator_live_bytes() == 1000);
        size_t free = 0, total = 0;
        DO(cuMemGetInfo_v2(&free, &total));
        SURE(total == 1048576 && free == total - 1024);
        u64 all = 0, more = 0;
        EXPECT(2, cuMemAlloc_v2(&all, free + 1));
        DO(cuMemAlloc_v2(&all, free));
        EXPECT(2, cuMemAlloc_v2(&more, 1));
        DO(cuMemFree_v2(all));
        DO(cuMemFree_v2(x));
        EXPECT(1, cuMemFree_v2(x));
        EXPECT(1, cuMemAlloc_v2(&more, 0));
        SURE(vaecf_emulator_live_bytes() == 0);
        unsetenv("VAECF_EMULATOR_MEMORY");
    });
    check("what the environment asks for", [] {
        const auto with = [](const char *name, const char *value, const std::function<void()> &body) {
            setenv(name, value, 1);
            vaecf_emulator_restart();
            body();
            unsetenv(name);
        };
        with("VAECF_EMULATOR_DEVICES", "0", [] { EXPECT(100, cuInit(0)); });
        with("VAECF_EMULATOR_INIT_ERROR", "803", [] { EXPECT(803, cuInit(0)); });
        with("VAECF_EMULATOR_DRIVER", "11040", [] {
            int version = 0;
            DO(cuInit(0));
            DO(cuDriverGetVersion(&version));
            SURE(version == 11040);
        });
        with("VAECF_EMULATOR_CAPABILITY", "7.5", [] {
            int major = 0, minor = 0, shared = 0;
            DO(cuInit(0));
            DO(cuDeviceGetAttribute(&major, 75, 0));
            DO(cuDeviceGetAttribute(&minor, 76, 0));
            DO(cuDeviceGetAttribute(&shared, 97, 0));
            SURE(major == 7 && minor == 5 && shared == 65536);
        });
        with("VAECF_EMULATOR_DEVICES", "2", [] {
            int count = 0;
            DO(cuInit(0));
            DO(cuDeviceGetCount(&count));
            SURE(count == 2);
        });
        with("VAECF_EMULATOR_LOST_AFTER", "2", [] {
            begin(1);
            const u64 x = upload(std::vector<u32>(256));
            for (int i = 0; i < 2; ++i) DO(launch("add_one", 1, 256, 0, nullptr, 256u, x));
            DO(cuCtxSynchronize());
            DO(launch("add_one", 1, 256, 0, nullptr, 256u, x));
            EXPECT(700, cuCtxSynchronize());
            EXPECT(700, cuMemFree_v2(x));
        });
    });
    check("pinned memory used again too early shows under some seed, and never where one waits", [] {
        bool early_differs = false;
        for (u32 seed = 1; seed <= 100; ++seed) {
            for (bool wait : {false, true}) {
                begin(seed);
                void *host, *stream, *event;
                DO(cuMemHostAlloc(&host, 4, 0));
                DO(cuStreamCreate(&stream, 1));
                DO(cuEventCreate(&event, 2));
                const u64 x = allocate(4);
                *static_cast<u32 *>(host) = 1;
                DO(cuMemcpyHtoDAsync_v2(x, host, 4, stream));
                DO(cuEventRecord(event, stream));
                if (wait) DO(cuEventSynchronize(event));
                *static_cast<u32 *>(host) = 2;
                DO(cuStreamSynchronize(stream));
                const bool right = download<u32>(x, 1)[0] == 1;
                if (wait) SURE(right);
                early_differs |= !wait && !right;
            }
        }
        SURE(early_differs);
    });
    check("pageable memory is taken at once", [] {
        begin(1);
        u32 host = 1;
        const u64 x = allocate(4);
        DO(cuMemcpyHtoDAsync_v2(x, &host, 4, nullptr));
        host = 2;
        SURE(download<u32>(x, 1)[0] == 1);
        u32 back = 0;
        DO(cuMemcpyDtoHAsync_v2(&back, x, 4, nullptr));
        SURE(back == 1);
        DO(cuMemHostRegister_v2(&host, 4, 0));
        EXPECT(712, cuMemHostRegister_v2(&host, 4, 0));
        DO(cuMemHostUnregister(&host));
        EXPECT(713, cuMemHostUnregister(&host));
    });
    check("a missing wait between streams shows under some seed, and a wait is kept under all", [] {
        bool differs = false;
        for (u32 seed = 1; seed <= 100; ++seed) {
            for (bool wait : {false, true}) {
                begin(seed);
                void *first, *second, *event;
                DO(cuStreamCreate(&first, 1));
                DO(cuStreamCreate(&second, 1));
                DO(cuEventCreate(&event, 2));
                const u64 x = upload(std::vector<u32>(256, 0)), y = allocate(1024);
                DO(launch("add_one", 1, 256, 0, first, 256u, x));
                DO(cuEventRecord(event, first));
                if (wait) DO(cuStreamWaitEvent(second, event, 0));
                DO(cuMemcpyDtoDAsync_v2(y, x, 1024, second));
                DO(cuCtxSynchronize());
                const bool right = download<u32>(y, 256)[9] == 1;
                if (wait) SURE(right);
                differs |= !wait && !right;
            }
        }
        SURE(differs);
    });
    check("the legacy stream is ordered with blocking streams and with no others", [] {
        bool differs = false;
        for (u32 seed = 1; seed <= 100; ++seed) {
            for (u32 flags : {0u, 1u}) {
                begin(seed);
                void *stream;
                DO(cuStreamCreate(&stream, flags));
                const u64 x = upload(std::vector<u32>(256, 0));
                DO(launch("add_one", 1, 256, 0, stream, 256u, x));
                const bool right = download<u32>(x, 256)[0] == 1;
                if (flags == 0) SURE(right);
                differs |= flags == 1 && !right;
            }
        }
        SURE(differs);
    });
    check("events: queries end, times are asked of what is timed and done", [] {
        begin(5);
        void *stream, *from, *to, *untimed;
        DO(cuStreamCreate(&stream, 0));
        DO(cuEventCreate(&from, 0));
        DO(cuEventCreate(&to, 0));
        DO(cuEventCreate(&untimed, 2));
        const u64 x = upload(std::vector<u32>(256, 0));
        float milliseconds = -1;
        EXPECT(400, cuEventElapsedTime_v2(&milliseconds, from, to));
        DO(cuEventRecord(from, stream));
        for (int i = 0; i < 40; ++i) DO(launch("add_one", 1, 256, 0, stream, 256u, x));
        DO(cuEventRecord(to, stream));
        EXPECT(600, cuEventElapsedTime_v2(&milliseconds, from, to));
        int queries = 0;
        while (cuEventQuery(to) == 600) ++queries;
        SURE(queries > 0);
        DO(cuEventElapsedTime_v2(&milliseconds, from, to));
        SURE(milliseconds > 0);
        DO(cuEventRecord(untimed, stream));
        DO(cuEventSynchronize(untimed));
        EXPECT(400, cuEventElapsedTime_v2(&milliseconds, from, untimed));
        DO(cuEventDestroy_v2(from));
        EXPECT(400, cuEventDestroy_v2(from));
        EXPECT(0, cuStreamQuery(stream));
    });
    check("a graph replays what was captured, across streams", [] {
        for (u32 seed = 1; seed <= 50; ++seed) {
            begin(seed);
            void *first, *second, *fork, *join, *graph, *executable;
            DO(cuStreamCreate(&first, 1));
            DO(cuStreamCreate(&second, 1));
            DO(cuEventCreate(&fork, 2));
            DO(cuEventCreate(&join, 2));
            const u64 x = upload(std::vector<u32>(256, 0)), y = upload(std::vector<u32>(256, 0));
            DO(cuStreamBeginCapture_v2(first, 0));
            DO(launch("add_one", 1, 256, 0, first, 256u, x));
            DO(cuEventRecord(fork, first));
            DO(cuStreamWaitEvent(second, fork, 0));
            DO(cuMemcpyDtoDAsync_v2(y, x, 1024, second));
            DO(cuEventRecord(join, second));
            DO(cuStreamWaitEvent(first, join, 0));
            DO(launch("add_one", 1, 256, 0, first, 256u, x));
            int status = 0;
            DO(cuStreamIsCapturing(second, &status));
            SURE(status == 1);
            DO(cuStreamEndCapture(first, &graph));
            DO(cuStreamIsCapturing(second, &status));
            SURE(status == 0);
            DO(cuGraphInstantiateWithFlags(&executable, graph, 0));
            DO(cuGraphDestroy(graph));
            SURE(download<u32>(x, 1)[0] == 0);
            for (int i = 0; i < 3; ++i) DO(cuGraphLaunch(executable, first));
            DO(cuGraphExecDestroy(executable));
            EXPECT(400, cuGraphLaunch(executable, first));
            DO(cuStreamSynchronize(first));
            SURE(download<u32>(x, 1)[0] == 6 && download<u32>(y, 1)[0] == 5);
        }
    });
    check("what a capture forbids ends it", [] {
        begin(1);
        void *stream, *other, *event, *graph = nullptr;
        DO(cuStreamCreate(&stream, 1));
        DO(cuStreamCreate(&other, 1));
        DO(cuEventCreate(&event, 2));
        const u64 x = upload(std::vector<u32>(256, 0));
        EXPECT(401, cuStreamEndCapture(stream, &graph));
        EXPECT(900, cuStreamBeginCapture_v2(nullptr, 0));
        const auto during = [&](int mode, int wanted, const std::function<int()> &call, int after) {
            DO(cuStreamBeginCapture_v2(stream, mode));
            EXPECT(401, cuStreamBeginCapture_v2(stream, mode));
            EXPECT(wanted, call());
            EXPECT(after, cuStreamEndCapture(stream, &graph));
            SURE((graph == nullptr) == (after != 0));
        };
        u64 made;
        u32 word;
        during(0, 900, [&] { return cuStreamSynchronize(stream); }, 901);
        during(2, 900, [&] { return cuStreamQuery(stream); }, 901);
        during(0, 900, [&] { return cuCtxSynchronize(); }, 901);
        during(0, 900, [&] { return cuMemAlloc_v2(&made, 16); }, 901);
        during(1, 900, [&] { return cuMemFree_v2(x); }, 901);
        during(2, 0, [&] { return cuMemAlloc_v2(&made, 16); }, 0);
        during(0, 900, [&] { return cuMemcpyDtoH_v2(&word, x, 4); }, 901);
        during(0, 900, [&] { return cuStreamSynchronize(other); }, 901);
        during(0, 0, [&] { return cuMemsetD8Async(x, 0, 4, nullptr); }, 0); // not ordered with this stream
        DO(cuEventRecord(event, other));
        during(0, 905, [&] { return cuStreamWaitEvent(stream, event, 0); }, 901);
        int mode = 2;
        DO(cuThreadExchangeStreamCaptureMode(&mode));
        SURE(mode == 0);
        during(0, 0, [&] { return cuMemAlloc_v2(&made, 16); }, 0);
        DO(cuThreadExchangeStreamCaptureMode(&mode));
        // Work in another stream that never comes back.
        DO(cuStreamBeginCapture_v2(stream, 0));
        DO(launch("add_one", 1, 256, 0, stream, 256u, x));
        DO(cuEventRecord(event, stream));
        DO(cuStreamWaitEvent(other, event, 0));
        DO(launch("add_one", 1, 256, 0, other, 256u, x));
        EXPECT(907, cuEventQuery(event) == 900 ? 907 : cuEventQuery(event));
        cuStreamEndCapture(stream, &graph);
        DO(cuStreamBeginCapture_v2(stream, 2));
        DO(launch("add_one", 1, 256, 0, stream, 256u, x));
        DO(cuEventRecord(event, stream));
        DO(cuStreamWaitEvent(other, event, 0));
        DO(launch("add_one", 1, 256, 0, other, 256u, x));
        EXPECT(904, cuStreamEndCapture(stream, &graph));
        // A blocking stream's capture and the legacy stream.
        void *blocking;
        DO(cuStreamCreate(&blocking, 0));
        DO(cuStreamBeginCapture_v2(blocking, 2));
        EXPECT(906, cuMemsetD8Async(x, 0, 4, nullptr));
        EXPECT(901, launch("add_one", 1, 256, 0, blocking, 256u, x));
        EXPECT(901, cuStreamEndCapture(blocking, &graph));
        DO(cuCtxSynchronize());
    });
    check("entry points by name", [] {
        void *found = nullptr;
        int status = 7;
        DO(cuGetProcAddress_v2("cuMemAlloc", &found, 13000, 0, &status));
        SURE(found == (void *)cuMemAlloc_v2 && status == 0);
        EXPECT(500, cuGetProcAddress_v2("cuNoSuchThing", &found, 13000, 0, &status));
    });
    check("several threads at a time, each with its stream", [] {
        begin(1);
        std::vector<std::thread> threads;
        std::atomic<int> wrong{0};
        void *function = kernel("add_one"), *context = nullptr;
        DO(cuDevicePrimaryCtxRetain(&context, 0));
        for (int i = 0; i < 4; ++i) {
            threads.emplace_back([&, i] {
                void *stream;
                u64 x;
                std::vector<u32> host(256, u32(i));
                u32 n = 256;
                void *arguments[] = {&n, &x};
                wrong += cuCtxSetCurrent(context) + cuStreamCreate(&stream, 1) + cuMemAlloc_v2(&x, 1024);
                for (int round = 0; round < 50; ++round) {
                    wrong += cuMemcpyHtoDAsync_v2(x, host.data(), 1024, stream);
                    wrong += cuLaunchKernel(function, 1, 1, 1, 256, 1, 1, 0, stream, arguments, nullptr);
                    wrong += cuMemcpyDtoHAsync_v2(host.data(), x, 1024, stream);
                    wrong += cuStreamSynchronize(stream);
                }
                for (u32 each : host) wrong += each != u32(i) + 50;
                wrong += cuStreamDestroy_v2(stream) + cuMemFree_v2(x);
            });
        }
        for (std::thread &thread : threads) thread.join();
        SURE(wrong == 0);
    });
    check("the same seed gives the same result, and another another", [] {
        const auto order = [](u32 seed) {
            begin(seed);
            EXPECT(719, run_planted(PLANTED[19], 0));
            const std::string said = vaecf_emulator_last_fault();
            return said.substr(0, said.find(" of the allocation")) + said.substr(said.find(", which"));
        };
        SURE(order(4) == order(4));
        bool differs = false;
        for (u32 seed = 5; seed < 15; ++seed) differs |= order(seed) != order(4);
        SURE(differs);
    });
}

// ---- Products of matrices ----

constexpr int F32 = 0, F16 = 2, BF16 = 14, TF32 = 77, ALL_F32 = 68;

struct Result {
    u64 algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

// A product by the library: m x n from m x k and k x n, each matrix packed, in rows or columns.
struct Product {
    int compute = ALL_F32, type = F32, d_type = F32;
    int transpose_a = 0, transpose_b = 0;
    int order[3] = {0, 0, 0}; // of A, B and D
    int epilogue = 1;
    u64 m = 1, n = 1, k = 1;
    int extra = 0; // numbers between the lines

    void *handle = nullptr, *description = nullptr, *a = nullptr, *b = nullptr, *d = nullptr, *preference = nullptr;

    long long leading(int order_, u64 rows, u64 columns) const {
        return (long long)(order_ == 0 ? rows : columns) + extra;
    }
    u64 rows(int which) const { return which == 0 ? (transpose_a ? k : m) : which == 1 ? (transpose_b ? n : k) : m; }
    u64 columns(int which) const { return which == 0 ? (transpose_a ? m : k) : which == 1 ? (transpose_b ? k : n) : n; }
    u64 size(int which) const {
        const u64 lines = order[which] == 0 ? columns(which) : rows(which);
        return lines * u64(leading(order[which], rows(which), columns(which)));
    }
    u64 at(int which, u64 row, u64 column) const {
        const u64 line = u64(leading(order[which], rows(which), columns(which)));
        return order[which] == 0 ? column * line + row : row * line + column;
    }

    void make(u64 bias) {
        DO(cublasLtCreate(&handle));
        DO(cublasLtMatmulDescCreate(&description, compute, 0));
        DO(cublasLtMatmulDescSetAttribute(description, 3, &transpose_a, 4));
        DO(cublasLtMatmulDescSetAttribute(description, 4, &transpose_b, 4));
        DO(cublasLtMatmulDescSetAttribute(description, 7, &epilogue, 4));
        DO(cublasLtMatmulDescSetAttribute(description, 8, &bias, 8));
        void **layouts[] = {&a, &b, &d};
        for (int i = 0; i < 3; ++i) {
            DO(cublasLtMatrixLayoutCreate(layouts[i], i < 2 ? type : d_type, rows(i), columns(i),
                                          leading(order[i], rows(i), columns(i))));
            DO(cublasLtMatrixLayoutSetAttribute(*layouts[i], 1, &order[i], 4));
        }
        DO(cublasLtMatmulPreferenceCreate(&preference));
    }
    int heuristic(Result *results, int wanted, int *count) {
        return cublasLtMatmulAlgoGetHeuristic(handle, description, a, b, d, d, preference, wanted, results, count);
    }
    int run(float alpha, u64 a_at, u64 b_at, float beta, u64 d_at, const Result *result, u64 workspace, void *stream) {
        return cublasLtMatmul(handle, description, &alpha, a_at, a, b_at, b, &beta, d_at, d, d_at, d,
                              result ? result->algorithm : nullptr, workspace, result ? result->workspace : 0, stream);
    }
    void destroy() {
        for (void *layout : {a, b, d}) DO(cublasLtMatrixLayoutDestroy(layout));
        DO(cublasLtMatmulDescDestroy(description));
        DO(cublasLtMatmulPreferenceDestroy(preference));
        DO(cublasLtDestroy(handle));
    }
};

double number_of(const std::vector<u8> &bytes, int type, u64 at) {
    if (type == F32) {
        float x;
        memcpy(&x, &bytes[4 * at], 4);
        return x;
    }
    u16 x;
    memcpy(&x, &bytes[2 * at], 2);
    return type == F16 ? value_of(x, 10, 5) : value_of(x, 7, 8);
}

std::vector<u8> drawn(Numbers &numbers, int type, u64 count) {
    std::vector<u8> bytes;
    for (u64 i = 0; i < count; ++i) {
        const float x = numbers.between(-2, 2);
        const u32 bits = type == F32 ? bits_of(x) : type == F16 ? emulator::narrow_f16(x) : emulator::narrow_bf16(x);
        for (int j = 0; j < (type == F32 ? 4 : 2); ++j) bytes.push_back(u8(bits >> 8 * j));
    }
    return bytes;
}

void products() {
    check("products of every type, order, transposition and epilogue", [] {
        Numbers numbers;
        const int types[][3] = {{ALL_F32, F32, F32}, {TF32, F32, F32},      {ALL_F32, F16, F16},
                                {ALL_F32, F16, F32}, {ALL_F32, BF16, BF16}, {ALL_F32, BF16, F32}};
        const u64 sizes[] = {1, 2, 3, 8, 31, 33, 64};
        for (u32 round = 0; round < 600; ++round) {
            begin(round + 1);
            Product product;
            const int *chosen = types[round % 6];
            product.compute = chosen[0];
            product.type = chosen[1];
            product.d_type = chosen[2];
            product.transpose_a = int(numbers.next() % 2);
            product.transpose_b = int(numbers.next() % 2);
            product.epilogue = std::vector<int>{1, 2, 4, 6, 256, 512}[numbers.next() % 6];
            for (int &order : product.order) order = int(numbers.next() % 2);
            if (product.epilogue > 2) product.order[2] = 0;
            product.m = sizes[numbers.next() % 7];
            product.n = sizes[numbers.next() % 7];
            product.k = sizes[numbers.next() % 7];
            product.extra = int(numbers.next() % 3) * 8;
            const float alpha = numbers.between(-2, 2), beta = numbers.next() % 2 ? numbers.between(-2, 2) : 0;
            const auto a = drawn(numbers, product.type, product.size(0)),
                       b = drawn(numbers, product.type, product.size(1));
            const auto c = drawn(numbers, product.d_type, product.size(2));
            const u64 bias_length = product.epilogue == 512 ? product.n : product.m;
            const auto bias = drawn(numbers, product.d_type, bias_length);
            const u64 a_at = upload(a), b_at = upload(b), d_at = upload(c), bias_at = upload(bias);
            const u64 workspace = allocate(2 << 20);
            product.make(bias_at);
            u64 most = 2 << 20;
            DO(cublasLtMatmulPreferenceSetAttribute(product.preference, 1, &most, 8));
            Result results[3];
            int count = 0;
            DO(product.heuristic(results, 3, &count));
            SURE(count == 3);
            if (current_failed) return;
            DO(product.run(alpha, a_at, b_at, beta, d_at, &results[numbers.next() % 3], (workspace + 255) / 256 * 256,
                           nullptr));
            const auto d = download<u8>(d_at, c.size()), gradient = download<u8>(bias_at, bias.size());
            const double unit = product.d_type == F32 ? 0x1p-24 : product.d_type == F16 ? 0x1p-11 : 0x1p-8;
            const double inner = product.compute == TF32 ? 0x1p-10 : 1e-6;
            for (u64 i = 0; i < product.m; ++i) {
                for (u64 j = 0; j < product.n; ++j) {
                    double sum = 0, size = 0;
                    for (u64 l = 0; l < product.k; ++l) {
                        const double x =
                            number_of(a, product.type, product.transpose_a ? product.at(0, l, i) : product.at(0, i, l));
                        const double y =
                            number_of(b, product.type, product.transpose_b ? product.at(1, j, l) : product.at(1, l, j));
                        sum += x * y;
                        size += std::fabs(x * y);
                    }
                    const u64 at = product.at(2, i, j);
                    double wanted = double(alpha) * sum + double(beta) * number_of(c, product.d_type, at);
                    if (product.epilogue == 4 || product.epilogue == 6) wanted += number_of(bias, product.d_type, i);
                    if ((product.epilogue == 2 || product.epilogue == 6) && wanted < 0) wanted = 0;
                    const double off = std::fabs(wanted - number_of(d, product.d_type, at));
                    if (!(off <= unit * std::fabs(wanted) + inner * (2 * size + 5) + 0x1p-24)) {
                        return fail("round " + std::to_string(round) + ", off by " + std::to_string(off));
                    }
                }
            }
            if (product.epilogue >= 256) {
                for (u64 i = 0; i < bias_length; ++i) {
                    double wanted = 0;
                    for (u64 l = 0; l < product.k; ++l) {
                        wanted += product.epilogue == 256
                                      ? number_of(a, product.type,
                                                  product.transpose_a ? product.at(0, l, i) : product.at(0, i, l))
                                      : number_of(b, product.type,
                                                  product.transpose_b ? product.at(1, i, l) : product.at(1, l, i));
                    }
                    const double off = std::fabs(wanted - number_of(gradient, product.d_type, i));
                    SURE(off <= unit * std::fabs(wanted) + inner * 2 * double(product.k) + 0x1p-24);
                }
            }
            product.destroy();
        }
    });
    check("products that the library refuses", [] {
        begin(1);
        const u64 x = upload(std::vector<float>(4096, 1));
        const auto asked = [&](int status, const std::function<void(Product &)> &change) {
            Product product;
            product.m = product.n = product.k = 8;
            change(product);
            product.make(x);
            Result result;
            int count = -1;
            EXPECT(status, product.heuristic(&result, 1, &count));
            SURE(count == (status == 0 ? 1 : 0));
            product.destroy();
        };
        asked(0, [](Product &) {});
        asked(15, [](Product &product) { product.m = 0; });
        asked(15, [](Product &product) { product.d_type = F16; });
        asked(15, [](Product &product) { product.type = F16, product.d_type = BF16; });
        asked(15, [](Product &product) { product.compute = TF32, product.type = F16; });
        asked(15, [](Product &product) { product.compute = 64; });
        asked(15, [](Product &product) { product.epilogue = 4, product.order[2] = 1; });
        asked(15, [](Product &product) { product.epilogue = 32; });
        Product product;
        product.type = product.d_type = F16;
        product.m = product.n = product.k = 8;
        product.make(x);
        Result result, other;
        int count = 0;
        DO(product.heuristic(&result, 1, &count));
        EXPECT(7, product.run(1, x + 2, x + 1024, 0, x + 2048, &result, 0, nullptr)); // not as aligned as promised
        DO(product.run(1, x, x + 1024, 0, x + 2048, &result, 0, nullptr));
        for (int i = 5; i <= 8; ++i) {
            const u32 two = 2;
            DO(cublasLtMatmulPreferenceSetAttribute(product.preference, i, &two, 4));
        }
        DO(product.heuristic(&other, 1, &count));
        DO(product.run(1, x + 2, x + 1024, 0, x + 2048, &other, 0, nullptr));
        other.algorithm[0] ^= 1; // for other shapes
        EXPECT(7, product.run(1, x, x + 1024, 0, x + 2048, &other, 0, nullptr));
        DO(cuCtxSynchronize());
        // One number past the end of D.
        EXPECT(0, product.run(1, x, x + 1024, 0, x + 16384 - 112, &result, 0, nullptr));
        EXPECT(700, cuCtxSynchronize());
        SURE(strstr(vaecf_emulator_last_fault(), "cublasLtMatmul: D has 128 bytes") != nullptr);
        EXPECT(13, product.run(1, x, x + 1024, 0, x + 2048, &result, 0, nullptr));
        product.destroy();
    });
    check("a product keeps its place in a stream and in a graph", [] {
        for (u32 seed = 1; seed <= 20; ++seed) {
            begin(seed);
            void *stream, *graph, *executable;
            DO(cuStreamCreate(&stream, 1));
            const u64 x = upload(std::vector<float>(64, 1)), y = upload(std::vector<float>(64, 0));
            Product product;
            product.m = product.n = product.k = 8;
            product.make(0);
            DO(cuStreamBeginCapture_v2(stream, 0));
            DO(product.run(1, x, x, 0, y, nullptr, 0, stream));
            DO(launch("add_scaled", 1, 32, 0, stream, 16u, 1.0f, y, x));
            DO(cuStreamEndCapture(stream, &graph));
            DO(cuGraphInstantiateWithFlags(&executable, graph, 0));
            for (int i = 0; i < 2; ++i) DO(cuGraphLaunch(executable, stream));
            DO(cuStreamSynchronize(stream));
            SURE(download<float>(x, 64)[5] == 9 + 8 * 81);
            product.destroy();
        }
    });
}

// ---- Sums over several devices ----

// As many devices, each with two streams and a place in a group, used by one thread.
struct Devices {
    struct Each {
        void *context, *stream, *other, *comm;
        u64 x;
    };
    std::vector<Each> all;

    void enter(u32 rank) { DO(cuCtxSetCurrent(all[rank].context)); }

    static int settle(void *comm) {
        int state = 7;
        while (state == 7) DO(ncclCommGetAsyncError(comm, &state));
        return state;
    }

    Devices(u32 seed, u32 world, std::vector<std::vector<float>> values) : all(world) {
        setenv("VAECF_EMULATOR_DEVICES", std::to_string(world).c_str(), 1);
        begin(seed);
        struct {
            size_t size = 24;
            u32 magic = 0xcafebeef, version = 21400;
            int blocking = 0, padding = 0;
        } config;
        UniqueId id;
        DO(ncclGetUniqueId(&id));
        for (u32 rank = 0; rank < world; ++rank) {
            Each &each = all[rank];
            DO(cuDevicePrimaryCtxRetain(&each.context, int(rank)));
            enter(rank);
            DO(cuStreamCreate(&each.stream, 1));
            DO(cuStreamCreate(&each.other, 1));
            each.x = upload(values[rank]);
            EXPECT(7, ncclCommInitRankConfig(&each.comm, int(world), id, int(rank), &config));
        }
        for (Each &each : all) EXPECT(0, settle(each.comm));
        unsetenv("VAECF_EMULATOR_DEVICES");
    }

    void sum(u32 rank, size_t count, int type = 7) {
        enter(rank);
        EXPECT(7, ncclAllReduce(all[rank].x, all[rank].x, count, type, 0, all[rank].comm, all[rank].stream));
        EXPECT(0, settle(all[rank].comm));
    }

    ~Devices() {
        for (Each &each : all) {
            if (!current_failed) EXPECT(0, ncclCommFinalize(each.comm));
            DO(ncclCommDestroy(each.comm));
        }
    }
};

void sums() {
    check("a sum is in the order of ranks, and of the type that it travels in", [] {
        for (u32 seed = 1; seed <= 20; ++seed) {
            Devices devices(seed, 3, {{1e8f, 1, 2}, {1, 2, 3}, {-1e8f, 4, 5}});
            for (u32 rank = 0; rank < 3; ++rank) devices.sum(rank, 2);
            for (u32 rank = 0; rank < 3; ++rank) {
                devices.enter(rank);
                DO(cuCtxSynchronize());
                SURE(download<float>(devices.all[rank].x, 3) == std::vector<float>({0, 7, rank == 2 ? 5.0f : 2.0f + rank}));
            }
        }
        // 2048 + 1 is 2048 in half precision, and 256 + 1 is 256 in that of 8 bits.
        const auto pair = [](u16 low, u16 high) { return float_of(u32(high) << 16 | low); };
        for (int type : {6, 9}) {
            const u16 large = type == 6 ? 0x6800 : 0x4380, one = type == 6 ? 0x3c00 : 0x3f80;
            Devices devices(1, 3, {{pair(large, one)}, {pair(one, one)}, {pair(one, one)}});
            for (u32 rank = 0; rank < 3; ++rank) devices.sum(rank, 2, type);
            devices.enter(1);
            DO(cuCtxSynchronize());
            SURE(download<u16>(devices.all[1].x, 2) == std::vector<u16>({large, u16(type == 6 ? 0x4200 : 0x4040)}));
        }
    });
    check("what is passed on is that of its root", [] {
        for (int root = 0; root < 2; ++root) {
            Devices devices(3, 2, {{1, 2}, {3, 4}});
            for (u32 rank = 0; rank < 2; ++rank) {
                const auto &each = devices.all[rank];
                devices.enter(rank);
                EXPECT(7, ncclBroadcast(each.x, each.x, 4, 0, root, each.comm, each.stream));
                EXPECT(0, Devices::settle(each.comm));
            }
            for (u32 rank = 0; rank < 2; ++rank) {
                devices.enter(rank);
                DO(cuCtxSynchronize());
                SURE(download<float>(devices.all[rank].x, 2) ==
                     std::vector<float>({root == 0 ? 1.0f : 3.0f, rank == 0 ? 2.0f : 4.0f}));
            }
        }
    });
    check("sums within graphs, one thread a device", [] {
        for (u32 seed = 1; seed <= 10; ++seed) {
            Devices devices(seed, 2, {std::vector<float>(16, 1), std::vector<float>(16, 2)});
            std::vector<std::thread> threads;
            std::atomic<int> wrong{0};
            for (u32 rank = 0; rank < 2; ++rank) {
                threads.emplace_back([&, rank] {
                    const auto &each = devices.all[rank];
                    void *fork, *join, *graph, *executable;
                    wrong += cuCtxSetCurrent(each.context) + cuEventCreate(&fork, 2) + cuEventCreate(&join, 2);
                    wrong += cuStreamBeginCapture_v2(each.other, 2) + cuEventRecord(fork, each.other) +
                             cuStreamWaitEvent(each.stream, fork, 0);
                    wrong += ncclAllReduce(each.x, each.x, 16, 7, 0, each.comm, each.stream) != 7;
                    wrong += Devices::settle(each.comm);
                    wrong += cuEventRecord(join, each.stream) + cuStreamWaitEvent(each.other, join, 0);
                    wrong += cuStreamEndCapture(each.other, &graph) + cuGraphInstantiateWithFlags(&executable, graph, 0);
                    for (int turn = 0; turn < 3; ++turn) wrong += cuGraphLaunch(executable, each.other);
                    wrong += cuStreamSynchronize(each.other);
                    std::vector<float> all(16);
                    wrong += cuMemcpyDtoH_v2(all.data(), each.x, 64);
                    // 1 + 2, then twice the double.
                    for (float x : all) wrong += x != 12;
                    // The library waits for both of them where the communicator is destroyed.
                    wrong += cuGraphExecDestroy(executable) + cuGraphDestroy(graph);
                });
            }
            for (std::thread &thread : threads) thread.join();
            SURE(wrong == 0);
        }
    });
    check("a missing wait for a sum shows under some seed, and a wait is kept under all", [] {
        bool written = false, none = false, unsummed = false;
        for (u32 seed = 1; seed <= 100; ++seed) {
            for (bool waits : {false, true}) {
                Devices devices(seed, 1, {{5}});
                const auto &each = devices.all[0];
                void *event;
                const u64 y = allocate(4);
                DO(cuEventCreate(&event, 2));
                DO(cuMemsetD32Async(each.x, 0x40000000, 1, each.other)); // 2
                DO(cuEventRecord(event, each.other));
                if (waits) DO(cuStreamWaitEvent(each.stream, event, 0));
                devices.sum(0, 1);
                DO(cuEventRecord(event, each.stream));
                if (waits) DO(cuStreamWaitEvent(each.other, event, 0));
                DO(cuMemcpyDtoDAsync_v2(y, each.x, 4, each.other));
                const int result = cuCtxSynchronize();
                if (waits) {
                    EXPECT(0, result);
                    SURE(download<float>(y, 1)[0] == 2);
                } else if (result != 0) {
                    SURE(result == 719 && strstr(vaecf_emulator_last_fault(), "while it was under way") != nullptr);
                    written = true;
                }
            }
            // Of two members, whose sum is 7.
            Devices devices(seed, 2, {{5}, {2}});
            const u64 y = allocate(4);
            devices.sum(0, 1);
            devices.sum(1, 1);
            DO(cuMemcpyDtoDAsync_v2(y, devices.all[1].x, 4, devices.all[1].other));
            DO(cuCtxSynchronize());
            const float read = download<float>(y, 1)[0];
            none |= read != read;
            unsummed |= read == 2;
            SURE(read != read || read == 2 || read == 7);
        }
        SURE(written && none && unsummed);
    });
    check("a call is in no queue before it has ended", [] {
        bool differs = false;
        for (u32 seed = 1; seed <= 20; ++seed) {
            Devices devices(seed, 1, {{5}});
            const auto &each = devices.all[0];
            EXPECT(7, ncclAllReduce(each.x, each.x, 1, 7, 0, each.comm, each.stream));
            EXPECT(4, ncclAllReduce(each.x, each.x, 1, 7, 0, each.comm, each.stream));
            differs |= cuStreamQuery(each.stream) == 0;
            EXPECT(0, Devices::settle(each.comm));
            DO(cuCtxSynchronize());
        }
        SURE(differs);
    });
    check("what the library finds wrong", [] {
        {
            Devices devices(1, 2, {{1, 2}, {3, 4}});
            devices.sum(0, 2);
            devices.sum(1, 1);
            EXPECT(719, cuCtxSynchronize());
            SURE(strstr(vaecf_emulator_last_fault(), "meets another collective of rank") != nullptr);
        }
        {
            Devices devices(1, 1, {{1, 2}});
            devices.sum(0, 3);
            EXPECT(700, cuCtxSynchronize());
            SURE(strstr(vaecf_emulator_last_fault(), "ncclAllReduce: 12 bytes from") != nullptr);
        }
        Devices devices(1, 1, {{1, 2}});
        const auto &each = devices.all[0];
        EXPECT(4, ncclAllReduce(each.x, each.x, 1, 7, 1, each.comm, each.stream));
        EXPECT(4, ncclAllReduce(each.x, each.x, 1, 2, 0, each.comm, each.stream));
        EXPECT(4, ncclBroadcast(each.x, each.x, 1, 7, 1, each.comm, each.stream));
        void *comm;
        int config[6] = {24, 0, 0, 21400, 0, 0};
        EXPECT(4, ncclCommInitRankConfig(&comm, 1, UniqueId(), 0, config));
    });
    check("an abort ends what waits for others", [] {
        Devices devices(1, 2, {{1}, {2}});
        devices.sum(0, 1);
        for (int i = 0; i < 100; ++i) SURE(cuStreamQuery(devices.all[0].stream) == 600);
        DO(ncclCommAbort(devices.all[0].comm));
        DO(cuCtxSynchronize());
        devices.all[0].comm = nullptr;
        devices.all.erase(devices.all.begin());
    });
}

// ---- Speed ----

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void speed() {
    for (const char *watch : {"1", "0"}) {
        setenv("VAECF_EMULATOR_WATCH", watch, 1);
        begin(1);
        const auto timed = [&](const char *what, double units, const char *unit, const std::function<void()> &body) {
            double best = 1e9;
            for (int i = 0; i < 3; ++i) {
                const double start = seconds();
                body();
                DO(cuCtxSynchronize());
                best = std::min(best, seconds() - start);
            }
            printf("watch %s: %-38s %8.2f ms, %8.2f million %s a second\n", *watch == '1' ? "on " : "off", what,
                   best * 1e3, units / best * 1e-6, unit);
        };
        const u32 n = 1024;
        const u64 x = upload(std::vector<float>(n * n, 1));
        timed("softmax of 1024 rows of 1024", n * n, "numbers",
              [&] { DO(launch("softmax_rows", n, 256, 32, nullptr, n, x)); });
        const u64 y = upload(std::vector<float>(n * n, 1));
        timed("y += s x, float4, 1024 x 1024", n * n, "numbers",
              [&] { DO(launch("add_scaled", 64, 256, 0, nullptr, n * n / 4, 0.5f, x, y)); });
        const u32 m = 512;
        const u64 a = upload(std::vector<u16>(m * m, 0x3c00)), b = upload(std::vector<u16>(m * m, 0x3c00));
        timed("f16 product of 512 x 512 x 512", double(m) * m * m / (16 * 8 * 16), "mma", [&] {
            void *arguments[] = {(void *)&m, (void *)&m, (void *)&a, (void *)&b, (void *)&y};
            DO(cuLaunchKernel(kernel("product"), m / 64, m / 64, 1, 128, 1, 1, 8192, nullptr, arguments, nullptr));
        });
        const u64 out = allocate(4 * 192);
        timed("collectives of one warp, 1000 times", 1000 * 14, "collectives", [&] {
            for (int i = 0; i < 1000; ++i) DO(launch("collectives", 1, 32, 0, nullptr, out));
        });
        Product product;
        product.m = product.n = product.k = 512;
        product.make(0);
        timed("cublasLtMatmul of f32, 512 x 512 x 512", 2.0 * m * m * m, "flop",
              [&] { DO(product.run(1, x, x, 0, y, nullptr, 0, nullptr)); });
        product.destroy();
    }
}

} // namespace

int main(int count, char **arguments) {
    if (count > 1) only = arguments[1];
    if (only == "--speed") {
        speed();
        return failures != 0;
    }
    planted_faults();
    numbers();
    fragments();
    driver();
    products();
    sums();
    return failures != 0;
}
