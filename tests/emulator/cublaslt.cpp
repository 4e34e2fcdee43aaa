// A stand-in for libcublasLt.so.13 on the one for the driver: matrix products in a stream's order, and the
// refusals that the library documents. What it does not know it refuses, too.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "driver.h"
#include "numbers.h"

using namespace emulator;

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
#define FASTER __attribute__((target_clones("default", "arch=x86-64-v3")))
#else
#define FASTER
#endif

namespace {

// By the numbers of cublasLt.h and library_types.h.
enum Status : int {
    SUCCESS = 0,
    NOT_INITIALIZED = 1,
    INVALID_VALUE = 7,
    EXECUTION_FAILED = 13,
    NOT_SUPPORTED = 15,
};
enum Type : int { F32 = 0, F16 = 2, BF16 = 14 };
enum Compute : int { COMPUTE_32F = 68, COMPUTE_32F_FAST_TF32 = 77 };
enum Order : int { COLUMNS = 0, ROWS = 1 };
enum Epilogue : int { DEFAULT = 1, RELU = 2, BIAS = 4, RELU_BIAS = 6, BGRADA = 256, BGRADB = 512 };

struct Handle {
    u32 made_here = 0x76616563;
};
struct Layout {
    int type;
    int order;
    u64 rows, columns;
    long long leading;
    int batches;
    long long batch_stride;

    u64 size() const { return type == F32 ? 4 : 2; }
    // From the first number to past the last.
    u64 bytes() const {
        const u64 lines = order == COLUMNS ? columns : rows, length = order == COLUMNS ? rows : columns;
        return (u64(batches - 1) * u64(batch_stride) + (lines - 1) * u64(leading) + length) * size();
    }
};
struct Description {
    int compute, scale_type;
    int pointer_mode = 0;
    int transpose_a = 0, transpose_b = 0, transpose_c = 0;
    int epilogue = DEFAULT;
    int bias_type = -1; // that of D
    const void *bias = nullptr;
};
struct Preference {
    u64 workspace = 0;
    u32 alignment[4] = {256, 256, 256, 256}; // that the pointers to A, B, C and D are promised to have
};
// What cublasLtMatmulAlgo_t, 64 bytes that its user copies around, holds here.
struct Algorithm {
    u64 problem; // of which shapes and types it is for
    u64 workspace;
    u32 alignment[4];
    u32 parts; // k is summed in so many, as different algorithms round differently
    u32 made_here;
    u64 unused[3];
};
static_assert(sizeof(Algorithm) == 64, "as large as in cublasLt.h");
struct HeuristicResult {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

constexpr u32 MADE_HERE = 0x656d756c;
constexpr u64 LARGE_WORKSPACE = 1 << 20;

// A product whose parts fit together.
struct Problem {
    Description description;
    Layout a, b, c, d;
    u64 m, n, k;

    // The same for two products that an algorithm can serve alike.
    u64 name() const {
        u64 hash = 14695981039346656037ull;
        const auto add = [&](u64 value) { hash = (hash ^ value) * 1099511628211ull; };
        for (const Layout *layout : {&a, &b, &c, &d}) {
            for (u64 value : {u64(layout->type), u64(layout->order), layout->rows, layout->columns,
                              u64(layout->leading), u64(layout->batches), u64(layout->batch_stride)}) {
                add(value);
            }
        }
        for (int value : {description.compute, description.transpose_a, description.transpose_b, description.epilogue,
                          description.pointer_mode}) {
            add(u64(value));
        }
        return hash;
    }
};

// What the library takes, by its tables of types and its text on layouts and epilogues.
Status fit(const Description *description, const Layout *a, const Layout *b, const Layout *c, const Layout *d,
           Problem *problem) {
    if (!description || !a || !b || !c || !d) return INVALID_VALUE;
    for (const Layout *layout : {a, b, c, d}) {
        if (layout->rows == 0 || layout->columns == 0) return NOT_SUPPORTED;
        if (layout->type != F32 && layout->type != F16 && layout->type != BF16) return NOT_SUPPORTED;
        if (layout->order != COLUMNS && layout->order != ROWS) return NOT_SUPPORTED;
        if (u64(layout->leading) < (layout->order == COLUMNS ? layout->rows : layout->columns)) return INVALID_VALUE;
        if (layout->batches < 1 || layout->batches != d->batches) return INVALID_VALUE;
    }
    *problem = {*description, *a, *b, *c, *d, 0, 0, 0};
    problem->m = description->transpose_a ? a->columns : a->rows;
    problem->k = description->transpose_a ? a->rows : a->columns;
    problem->n = description->transpose_b ? b->rows : b->columns;
    const u64 b_k = description->transpose_b ? b->columns : b->rows;
    if (b_k != problem->k || d->rows != problem->m || d->columns != problem->n) return INVALID_VALUE;
    if (c->rows != d->rows || c->columns != d->columns) return INVALID_VALUE;

    if (description->scale_type != F32 || description->transpose_c != 0) return NOT_SUPPORTED;
    if (description->transpose_a > 1 || description->transpose_b > 1) return NOT_SUPPORTED;
    if (a->type != b->type || c->type != d->type || c->order != d->order) return NOT_SUPPORTED;
    if (description->compute == COMPUTE_32F_FAST_TF32 && a->type != F32) return NOT_SUPPORTED;
    if (description->compute != COMPUTE_32F && description->compute != COMPUTE_32F_FAST_TF32) return NOT_SUPPORTED;
    if (d->type != F32 && d->type != a->type) return NOT_SUPPORTED;
    switch (description->epilogue) {
    case DEFAULT:
    case RELU: break;
    case BIAS:
    case RELU_BIAS:
    case BGRADA:
    case BGRADB:
        if (d->order != COLUMNS) return NOT_SUPPORTED;
        if (description->bias_type != -1 && description->bias_type != d->type) return NOT_SUPPORTED;
        break;
    default: return NOT_SUPPORTED;
    }
    return SUCCESS;
}

Algorithm algorithm_for(const Problem &problem, const Preference &preference, u32 candidate) {
    Algorithm algorithm{};
    algorithm.problem = problem.name();
    algorithm.parts = candidate + 1;
    algorithm.workspace = candidate == 0 ? LARGE_WORKSPACE : 0;
    algorithm.made_here = MADE_HERE;
    const Layout *layouts[] = {&problem.a, &problem.b, &problem.c, &problem.d};
    for (int i = 0; i < 4; ++i) {
        // As wide as loads can be: what is promised, and what each line's start keeps.
        u64 alignment = std::min(16u, preference.alignment[i]);
        const u64 line = u64(layouts[i]->leading) * layouts[i]->size();
        while (line % alignment != 0) alignment /= 2;
        algorithm.alignment[i] = u32(std::max(alignment, layouts[i]->size()));
    }
    return algorithm;
}

float read(const void *from, int type, u64 at) {
    if (type == F32) return static_cast<const float *>(from)[at];
    const u16 bits = static_cast<const u16 *>(from)[at];
    return type == F16 ? widen_f16(bits) : widen_bf16(bits);
}

void write(void *to, int type, u64 at, float x) {
    if (type == F32) {
        static_cast<float *>(to)[at] = x;
    } else {
        static_cast<u16 *>(to)[at] = type == F16 ? narrow_f16(x) : narrow_bf16(x);
    }
}

u64 place(const Layout &layout, u64 row, u64 column) {
    return layout.order == COLUMNS ? column * u64(layout.leading) + row : row * u64(layout.leading) + column;
}

constexpr u64 ACROSS = 32, DOWN = 4; // of the sums kept in registers

// sums[i][j] += a[i][l] b[l][j] for l in [from, to): a in rows, b in strips of ACROSS columns.
FASTER void add_product(u64 m, u64 n, u64 k, u64 from, u64 to, const float *a, const float *b, float *sums) {
    for (u64 j = 0; j < n; j += ACROSS) {
        const float *strip = b + j * k;
        for (u64 i = 0; i < m; i += DOWN) {
            float sum[DOWN][ACROSS] = {};
            for (u64 l = from; l < to; ++l) {
                for (u64 down = 0; down < DOWN; ++down) {
                    const float x = a[(i + down) * k + l];
                    for (u64 across = 0; across < ACROSS; ++across) sum[down][across] += x * strip[l * ACROSS + across];
                }
            }
            for (u64 down = 0; down < DOWN; ++down) {
                for (u64 across = 0; across < ACROSS; ++across) sums[(i + down) * n + j + across] += sum[down][across];
            }
        }
    }
}

struct Pointers {
    const void *a, *b, *c;
    void *d;
    void *workspace;
};

void multiply(const Problem &problem, const Algorithm &algorithm, const Pointers &pointers, float alpha, float beta) {
    const Description &description = problem.description;
    const u64 m = problem.m, n = problem.n, k = problem.k;
    const u64 wide_m = (m + DOWN - 1) / DOWN * DOWN, wide_n = (n + ACROSS - 1) / ACROSS * ACROSS;
    std::vector<float> a(wide_m * k), b(k * wide_n), sums(wide_m * wide_n);
    const bool tf32 = description.compute == COMPUTE_32F_FAST_TF32;
    const auto operand = [&](const void *from, int type, u64 at) {
        const float x = read(from, type, at);
        return tf32 ? float_of(round_to_tf32(x)) : x;
    };
    for (int batch = 0; batch < problem.d.batches; ++batch) {
        const auto first = [&](const Layout &layout) { return u64(batch) * u64(layout.batch_stride); };
        for (u64 i = 0; i < m; ++i) {
            for (u64 l = 0; l < k; ++l) {
                const u64 at = description.transpose_a ? place(problem.a, l, i) : place(problem.a, i, l);
                a[i * k + l] = operand(pointers.a, problem.a.type, first(problem.a) + at);
            }
        }
        for (u64 l = 0; l < k; ++l) {
            for (u64 j = 0; j < n; ++j) {
                const u64 at = description.transpose_b ? place(problem.b, j, l) : place(problem.b, l, j);
                b[j / ACROSS * ACROSS * k + l * ACROSS + j % ACROSS] =
                    operand(pointers.b, problem.b.type, first(problem.b) + at);
            }
        }
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (u64 part = 0; part < algorithm.parts; ++part) {
            add_product(wide_m, wide_n, k, k * part / algorithm.parts, k * (part + 1) / algorithm.parts, a.data(),
                        b.data(), sums.data());
        }
        const bool biased = description.epilogue == BIAS || description.epilogue == RELU_BIAS;
        const bool rectified = description.epilogue == RELU || description.epilogue == RELU_BIAS;
        for (u64 i = 0; i < m; ++i) {
            for (u64 j = 0; j < n; ++j) {
                float x = alpha * sums[i * wide_n + j];
                // Where beta is zero C is not read, and may be anything.
                if (beta != 0) x += beta * read(pointers.c, problem.c.type, first(problem.c) + place(problem.c, i, j));
                if (biased) x += read(description.bias, problem.d.type, i);
                if (rectified && x < 0) x = 0;
                write(pointers.d, problem.d.type, first(problem.d) + place(problem.d, i, j), x);
            }
        }
        void *gradient = const_cast<void *>(description.bias);
        if (description.epilogue == BGRADA) {
            for (u64 i = 0; i < m; ++i) {
                float sum = 0;
                for (u64 l = 0; l < k; ++l) sum += a[i * k + l];
                write(gradient, problem.d.type, i, sum);
            }
        }
        if (description.epilogue == BGRADB) {
            for (u64 j = 0; j < n; ++j) {
                float sum = 0;
                for (u64 l = 0; l < k; ++l) sum += b[j / ACROSS * ACROSS * k + l * ACROSS + j % ACROSS];
                write(gradient, problem.d.type, j, sum);
            }
        }
    }
}

u64 bias_bytes(const Problem &problem) {
    switch (problem.description.epilogue) {
    case BIAS:
    case RELU_BIAS:
    case BGRADA: return problem.m * problem.d.size();
    case BGRADB: return problem.n * problem.d.size();
    default: return 0;
    }
}

// The fault of a product that reads or writes outside of what is allocated.
Fault outside(const char *what, const void *start, u64 bytes) {
    char where[256];
    if (bytes == 0 || vaecf_emulator_holds(start, bytes, where)) return {};
    char sentence[512];
    snprintf(sentence, sizeof sentence, "cublasLtMatmul: %s has %llu bytes from %s on, which no allocation holds", what,
             bytes, where);
    return {700, sentence};
}

} // namespace

#define CUBLASLT extern "C" __attribute__((visibility("default")))

CUBLASLT int cublasLtCreate(Handle **handle) {
    if (handle == nullptr) return INVALID_VALUE;
    if (vaecf_emulator_context() != 0) return NOT_INITIALIZED;
    *handle = new Handle;
    return SUCCESS;
}

CUBLASLT int cublasLtDestroy(Handle *handle) {
    if (handle == nullptr) return NOT_INITIALIZED;
    delete handle;
    return SUCCESS;
}

CUBLASLT size_t cublasLtGetVersion() { return 130002; }

CUBLASLT const char *cublasLtGetStatusName(int status) {
    switch (status) {
    case SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "CUBLAS_STATUS_UNKNOWN";
    }
}

CUBLASLT const char *cublasLtGetStatusString(int status) {
    switch (status) {
    case SUCCESS: return "the operation completed successfully";
    case NOT_INITIALIZED: return "the library was not initialized";
    case INVALID_VALUE: return "an unsupported value or parameter was passed to the function";
    case EXECUTION_FAILED: return "the GPU program failed to execute";
    case NOT_SUPPORTED: return "the functionality requested is not supported";
    default: return "unknown status";
    }
}

CUBLASLT int cublasLtMatmulDescCreate(Description **description, int compute, int scale_type) {
    if (description == nullptr) return INVALID_VALUE;
    *description = new Description{compute, scale_type};
    return SUCCESS;
}

CUBLASLT int cublasLtMatmulDescDestroy(Description *description) {
    delete description;
    return SUCCESS;
}

namespace {

// Copies an attribute's value in, whose size must be the right one.
template <class T> Status take(T &to, const void *from, size_t bytes) {
    if (from == nullptr || bytes != sizeof(T)) return INVALID_VALUE;
    memcpy(&to, from, sizeof(T));
    return SUCCESS;
}

template <class T> Status give(const T &from, void *to, size_t bytes, size_t *written) {
    if (written != nullptr) *written = sizeof(T);
    if (bytes == 0 && written != nullptr) return SUCCESS;
    if (to == nullptr || bytes < sizeof(T)) return INVALID_VALUE;
    memcpy(to, &from, sizeof(T));
    return SUCCESS;
}

} // namespace

CUBLASLT int cublasLtMatmulDescSetAttribute(Description *description, int attribute, const void *value, size_t bytes) {
    if (description == nullptr) return INVALID_VALUE;
    switch (attribute) {
    case 0: return take(description->compute, value, bytes);
    case 1: return take(description->scale_type, value, bytes);
    case 2: {
        int mode;
        if (const Status status = take(mode, value, bytes)) return status;
        if (mode != 0 && mode != 1) return NOT_SUPPORTED;
        description->pointer_mode = mode;
        return SUCCESS;
    }
    case 3: return take(description->transpose_a, value, bytes);
    case 4: return take(description->transpose_b, value, bytes);
    case 5: return take(description->transpose_c, value, bytes);
    case 7: return take(description->epilogue, value, bytes);
    case 8: return take(description->bias, value, bytes);
    case 26: return take(description->bias_type, value, bytes);
    default: return INVALID_VALUE;
    }
}

CUBLASLT int cublasLtMatmulDescGetAttribute(const Description *description, int attribute, void *value, size_t bytes,
                                            size_t *written) {
    if (description == nullptr) return INVALID_VALUE;
    switch (attribute) {
    case 0: return give(description->compute, value, bytes, written);
    case 1: return give(description->scale_type, value, bytes, written);
    case 2: return give(description->pointer_mode, value, bytes, written);
    case 3: return give(description->transpose_a, value, bytes, written);
    case 4: return give(description->transpose_b, value, bytes, written);
    case 5: return give(description->transpose_c, value, bytes, written);
    case 7: return give(description->epilogue, value, bytes, written);
    case 8: return give(description->bias, value, bytes, written);
    case 26: return give(description->bias_type, value, bytes, written);
    default: return INVALID_VALUE;
    }
}

CUBLASLT int cublasLtMatrixLayoutCreate(Layout **layout, int type, u64 rows, u64 columns, long long leading) {
    if (layout == nullptr) return INVALID_VALUE;
    *layout = new Layout{type, COLUMNS, rows, columns, leading, 1, 0};
    return SUCCESS;
}

CUBLASLT int cublasLtMatrixLayoutDestroy(Layout *layout) {
    delete layout;
    return SUCCESS;
}

CUBLASLT int cublasLtMatrixLayoutSetAttribute(Layout *layout, int attribute, const void *value, size_t bytes) {
    if (layout == nullptr) return INVALID_VALUE;
    switch (attribute) {
    case 0: return take(layout->type, value, bytes);
    case 1: return take(layout->order, value, bytes);
    case 2: return take(layout->rows, value, bytes);
    case 3: return take(layout->columns, value, bytes);
    case 4: return take(layout->leading, value, bytes);
    case 5: return take(layout->batches, value, bytes);
    case 6: return take(layout->batch_stride, value, bytes);
    default: return INVALID_VALUE;
    }
}

CUBLASLT int cublasLtMatrixLayoutGetAttribute(const Layout *layout, int attribute, void *value, size_t bytes,
                                              size_t *written) {
    if (layout == nullptr) return INVALID_VALUE;
    switch (attribute) {
    case 0: return give(layout->type, value, bytes, written);
    case 1: return give(layout->order, value, bytes, written);
    case 2: return give(layout->rows, value, bytes, written);
    case 3: return give(layout->columns, value, bytes, written);
    case 4: return give(layout->leading, value, bytes, written);
    case 5: return give(layout->batches, value, bytes, written);
    case 6: return give(layout->batch_stride, value, bytes, written);
    default: return INVALID_VALUE;
    }
}

CUBLASLT int cublasLtMatmulPreferenceCreate(Preference **preference) {
    if (preference == nullptr) return INVALID_VALUE;
    *preference = new Preference;
    return SUCCESS;
}

CUBLASLT int cublasLtMatmulPreferenceDestroy(Preference *preference) {
    delete preference;
    return SUCCESS;
}

CUBLASLT int cublasLtMatmulPreferenceSetAttribute(Preference *preference, int attribute, const void *value,
                                                  size_t bytes) {
    if (preference == nullptr) return INVALID_VALUE;
    if (attribute == 1) return take(preference->workspace, value, bytes);
    if (attribute >= 5 && attribute <= 8) {
        u32 alignment;
        if (const Status status = take(alignment, value, bytes)) return status;
        if (alignment == 0 || (alignment & (alignment - 1)) != 0) return INVALID_VALUE;
        preference->alignment[attribute - 5] = alignment;
        return SUCCESS;
    }
    // Hints that change no result.
    return attribute == 0 || attribute == 3 || attribute == 9 || attribute == 12 ? SUCCESS : INVALID_VALUE;
}

CUBLASLT int cublasLtMatmulAlgoGetHeuristic(Handle *handle, Description *description, Layout *a, Layout *b, Layout *c,
                                            Layout *d, Preference *preference, int requested, HeuristicResult *results,
                                            int *returned) {
    if (returned != nullptr) *returned = 0;
    if (handle == nullptr) return NOT_INITIALIZED;
    if (preference == nullptr || requested <= 0 || results == nullptr || returned == nullptr) return INVALID_VALUE;
    Problem problem;
    if (const Status status = fit(description, a, b, c, d, &problem)) return status;
    for (u32 candidate = 0; candidate < 3 && *returned < requested; ++candidate) {
        const Algorithm algorithm = algorithm_for(problem, *preference, candidate);
        if (algorithm.workspace > preference->workspace) continue;
        results[(*returned)++] = {algorithm, size_t(algorithm.workspace), SUCCESS, 1.0f, {}};
    }
    return SUCCESS;
}

CUBLASLT int cublasLtMatmulAlgoCheck(Handle *handle, Description *description, Layout *a, Layout *b, Layout *c,
                                     Layout *d, const Algorithm *algorithm, HeuristicResult *result) {
    if (handle == nullptr) return NOT_INITIALIZED;
    if (algorithm == nullptr || result == nullptr) return INVALID_VALUE;
    Problem problem;
    if (const Status status = fit(description, a, b, c, d, &problem)) return status;
    if (algorithm->made_here != MADE_HERE) return INVALID_VALUE;
    if (algorithm->problem != problem.name()) return NOT_SUPPORTED;
    *result = {*algorithm, size_t(algorithm->workspace), SUCCESS, 1.0f, {}};
    return SUCCESS;
}

CUBLASLT int cublasLtMatmul(Handle *handle, Description *description, const float *alpha, const void *a_start,
                            Layout *a, const void *b_start, Layout *b, const float *beta, const void *c_start,
                            Layout *c, void *d_start, Layout *d, const Algorithm *algorithm, void *workspace,
                            size_t workspace_bytes, void *stream) {
    if (handle == nullptr || handle->made_here != Handle().made_here) return NOT_INITIALIZED;
    Problem problem;
    if (const Status status = fit(description, a, b, c, d, &problem)) return status;
    Algorithm chosen;
    if (algorithm != nullptr) {
        chosen = *algorithm;
        if (chosen.made_here != MADE_HERE || chosen.problem != problem.name()) return INVALID_VALUE;
    } else {
        chosen = algorithm_for(problem, Preference(), workspace_bytes >= LARGE_WORKSPACE ? 0 : 1);
    }
    if (!alpha || !beta || !a_start || !b_start || !d_start) return INVALID_VALUE;
    const bool of_device = description->pointer_mode == 1;
    const bool reads_c = of_device || *beta != 0;
    if (reads_c && c_start == nullptr) return INVALID_VALUE;
    if (c_start == d_start && c->leading != d->leading) return INVALID_VALUE;
    if (bias_bytes(problem) > 0 && description->bias == nullptr) return INVALID_VALUE;
    const Pointers pointers{a_start, b_start, c_start, d_start, workspace};
    const void *starts[] = {a_start, b_start, c_start, d_start};
    for (int i = 0; i < 4; ++i) {
        if (reinterpret_cast<u64>(starts[i]) % chosen.alignment[i] != 0) return INVALID_VALUE;
    }
    if (reinterpret_cast<u64>(description->bias) % problem.d.size() != 0) return INVALID_VALUE;
    if (chosen.workspace > workspace_bytes) return INVALID_VALUE;
    if (chosen.workspace > 0 && (workspace == nullptr || reinterpret_cast<u64>(workspace) % 256 != 0))
        return INVALID_VALUE;
    const float host_alpha = of_device ? 0 : *alpha, host_beta = of_device ? 0 : *beta;

    const int result = vaecf_emulator_enqueue(stream, [=]() -> Fault {
        struct {
            const char *what;
            const void *start;
            u64 bytes;
        } const parts[] = {
            {"A", pointers.a, problem.a.bytes()},
            {"B", pointers.b, problem.b.bytes()},
            {"C", pointers.c, reads_c ? problem.c.bytes() : 0},
            {"D", pointers.d, problem.d.bytes()},
            {"the bias", problem.description.bias, bias_bytes(problem)},
            {"the workspace", pointers.workspace, chosen.workspace},
            {"alpha", alpha, of_device ? sizeof(float) : 0},
            {"beta", beta, of_device ? sizeof(float) : 0},
        };
        for (const auto &part : parts) {
            Fault fault = outside(part.what, part.start, part.bytes);
            if (fault.code != 0) return fault;
        }
        // What lies in the workspace does not stay.
        std::fill_n(static_cast<u16 *>(pointers.workspace), chosen.workspace / 2, GARBAGE);
        multiply(problem, chosen, pointers, of_device ? *alpha : host_alpha, of_device ? *beta : host_beta);
        return {};
    });
    return result == 0 ? SUCCESS : EXECUTION_FAILED;
}
