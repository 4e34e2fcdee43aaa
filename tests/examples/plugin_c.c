// A backend of vaecf in plain C: one thread, f32, the shortest loops that do it. Copy it and replace the
// loops. docs/plugin.md says how it is built and tried; vaecf_backend.h is the contract.
//
//     cc -std=c99 -O2 -shared -fPIC -ffp-contract=off -I core/include -o libplugin_c.so plugin_c.c -lm

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vaecf_backend.h"

// ---- state ----

typedef struct {
    uint32_t role;
    uint64_t len;
    void *data; // NULL once it is freed
} buffer;

// What `ctx` points to. Handle h is buffers[h - 1]; a slot is never used again, so that a handle that was
// freed stays wrong for ever.
typedef struct {
    buffer *buffers;
    uint32_t count, room;
    double *scratch;
    size_t scratch_len;
    char error[256];
} backend;

// Why the last opening failed. Two threads that fail to open one at the same moment may mix their texts.
static char opening_error[256];

static int32_t fail(backend *b, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(b->error, sizeof b->error, format, arguments);
    va_end(arguments);
    return VAECF_CODE_OTHER;
}

// Leaves the function with the code of what has failed; its text is already there.
#define TRY(expression) \
    do { \
        int32_t code_ = (expression); \
        if (code_ != VAECF_CODE_OK) return code_; \
    } while (0)

// ---- memory ----

// Bytes that can be had without swapping; UINT64_MAX where the system does not tell.
static uint64_t available(void)
{
    unsigned long long kilobytes = 0;
    char line[128];
    FILE *file = fopen("/proc/meminfo", "r");
    if (!file) return UINT64_MAX;
    while (fgets(line, sizeof line, file) && sscanf(line, "MemAvailable: %llu", &kilobytes) != 1) {}
    fclose(file);
    return kilobytes > 0 ? 1024 * (uint64_t)kilobytes : UINT64_MAX;
}

static size_t element_size(uint32_t role)
{
    switch (role) {
    case VAECF_ROLE_INDEX: return sizeof(uint32_t);
    case VAECF_ROLE_STEP: return sizeof(vaecf_step_params);
    case VAECF_ROLE_SCALE: return sizeof(vaecf_scale_state);
    default: return sizeof(float);
    }
}

static int32_t alloc_(void *ctx, uint32_t role, uint64_t len, vaecf_buf *buf)
{
    backend *b = ctx;
    if (role > VAECF_ROLE_SCALE) return fail(b, "%u is no role", role);
    // The system promises more than it has and ends the process that uses it, so calloc is not asked for
    // what cannot be there. The division avoids a product that overflows.
    uint64_t size = element_size(role), most = available();
    if (most > SIZE_MAX / 2) most = SIZE_MAX / 2;
    if (len > most / size) return VAECF_CODE_OUT_OF_MEMORY;
    if (b->count == b->room) {
        if (b->count > UINT32_MAX / 2 - 8) return fail(b, "out of handles");
        uint32_t room = 2 * b->room + 8;
        buffer *more = realloc(b->buffers, room * sizeof *more);
        if (!more) return VAECF_CODE_OUT_OF_MEMORY;
        b->buffers = more;
        b->room = room;
    }
    void *data = calloc(len > 0 ? (size_t)len : 1, (size_t)size);
    if (!data) return VAECF_CODE_OUT_OF_MEMORY;
    buffer made = {role, len, data};
    b->buffers[b->count++] = made;
    *buf = b->count;
    return VAECF_CODE_OK;
}

// The live buffer of a handle, or NULL.
static buffer *find(backend *b, vaecf_buf buf)
{
    buffer *found = buf > 0 && buf <= b->count ? &b->buffers[buf - 1] : NULL;
    return found && found->data ? found : NULL;
}

static void free_(void *ctx, vaecf_buf buf)
{
    buffer *found = find(ctx, buf);
    if (!found) return;
    free(found->data);
    found->data = NULL;
}

// The elements at..at + len of a buffer of a role. Every access to memory goes through here.
static int32_t range(backend *b, vaecf_buf buf, uint32_t role, uint64_t at, uint64_t len, void *out)
{
    buffer *found = find(b, buf);
    if (!found) return fail(b, "%u is not a live handle", buf);
    if (found->role != role) return fail(b, "handle %u has role %u, and role %u was wanted", buf, found->role, role);
    if (at > found->len || len > found->len - at)
        return fail(b, "%llu elements from %llu on, of the %llu that handle %u has", (unsigned long long)len,
                    (unsigned long long)at, (unsigned long long)found->len, buf);
    char *start = (char *)found->data + (size_t)at * element_size(role);
    memcpy(out, &start, sizeof start); // `out` is the address of a pointer of the type that the role says
    return VAECF_CODE_OK;
}

// A matrix of rows x cols.
static int32_t matrix(backend *b, const vaecf_mat *m, uint32_t role, uint32_t rows, uint32_t cols, float **out)
{
    if (m->rows != rows || m->cols != cols || (rows > 1 && m->stride < cols))
        return fail(b, "a matrix of %u x %u, %u apart, where %u x %u was wanted", m->rows, m->cols, m->stride, rows,
                    cols);
    uint64_t len = rows > 0 && cols > 0 ? (uint64_t)(rows - 1) * m->stride + cols : 0;
    return range(b, m->buf, role, m->offset, len, out);
}

// Row r of a matrix that starts at `data`.
static float *row_of(float *data, const vaecf_mat *m, uint64_t r)
{
    return data + r * m->stride;
}

static int32_t scratch(backend *b, size_t len, double **out)
{
    if (len > b->scratch_len) {
        double *more = realloc(b->scratch, len * sizeof *more);
        if (!more) return VAECF_CODE_OUT_OF_MEMORY;
        b->scratch = more;
        b->scratch_len = len;
    }
    *out = b->scratch;
    return VAECF_CODE_OK;
}

static int32_t upload(void *ctx, vaecf_buf dst, uint64_t at, uint32_t host_type, const void *src, uint64_t len)
{
    backend *b = ctx;
    buffer *found = find(b, dst);
    uint32_t role = found ? found->role : VAECF_ROLE_ACT;
    float *floats;
    void *bytes;
    switch (host_type) {
    case VAECF_HOST_TYPE_F32:
    case VAECF_HOST_TYPE_F64:
        if (role > VAECF_ROLE_VALUE) return fail(b, "handle %u holds no floats", dst);
        TRY(range(b, dst, role, at, len, &floats));
        for (uint64_t i = 0; i < len; i++)
            floats[i] = host_type == VAECF_HOST_TYPE_F32 ? ((const float *)src)[i] : (float)((const double *)src)[i];
        return VAECF_CODE_OK;
    case VAECF_HOST_TYPE_U32: role = VAECF_ROLE_INDEX; break;
    case VAECF_HOST_TYPE_STEP: role = VAECF_ROLE_STEP; break;
    case VAECF_HOST_TYPE_SCALE: role = VAECF_ROLE_SCALE; break;
    default: return fail(b, "%u is no type of host memory", host_type);
    }
    TRY(range(b, dst, role, at, len, &bytes));
    if (len > 0) memcpy(bytes, src, (size_t)len * element_size(role));
    return VAECF_CODE_OK;
}

static int32_t download(void *ctx, vaecf_buf src, uint64_t at, uint32_t host_type, void *dst, uint64_t len)
{
    backend *b = ctx;
    buffer *found = find(b, src);
    uint32_t role = found ? found->role : VAECF_ROLE_ACT;
    const float *floats;
    const void *bytes;
    switch (host_type) {
    case VAECF_HOST_TYPE_F32:
    case VAECF_HOST_TYPE_F64:
        if (role > VAECF_ROLE_VALUE) return fail(b, "handle %u holds no floats", src);
        TRY(range(b, src, role, at, len, &floats));
        for (uint64_t i = 0; i < len; i++) {
            if (host_type == VAECF_HOST_TYPE_F32) ((float *)dst)[i] = floats[i];
            else ((double *)dst)[i] = floats[i];
        }
        return VAECF_CODE_OK;
    case VAECF_HOST_TYPE_U32: role = VAECF_ROLE_INDEX; break;
    case VAECF_HOST_TYPE_SCALE: role = VAECF_ROLE_SCALE; break;
    default: return fail(b, "%u is no type of host memory to copy to", host_type);
    }
    TRY(range(b, src, role, at, len, &bytes));
    if (len > 0) memcpy(dst, bytes, (size_t)len * element_size(role));
    return VAECF_CODE_OK;
}

// ---- the sparse rows of a batch ----

typedef struct {
    const uint32_t *indptr, *indices, *users; // users is NULL where row first + r is meant
    const float *values;                      // NULL where all are ones
    uint64_t indptr_len, events, first;
} sparse;

typedef struct {
    const uint32_t *items;
    const float *values;
    uint32_t len;
} history;

// All of an optional buffer.
static int32_t whole(backend *b, vaecf_buf buf, uint32_t role, void *out, uint64_t *len)
{
    *len = 0;
    if (buf == VAECF_NONE) return VAECF_CODE_OK;
    buffer *found = find(b, buf);
    if (found) *len = found->len;
    return range(b, buf, role, 0, *len, out);
}

// The rows of a window; `step_first` is that of the step buffer, or 0.
static int32_t open_rows(backend *b, const vaecf_rows *rows, uint32_t step_first, sparse *x)
{
    uint64_t users = 0, values = 0;
    memset(x, 0, sizeof *x);
    x->first = (uint64_t)rows->first + step_first;
    TRY(whole(b, rows->indptr, VAECF_ROLE_INDEX, &x->indptr, &x->indptr_len));
    TRY(whole(b, rows->indices, VAECF_ROLE_INDEX, &x->indices, &x->events));
    TRY(whole(b, rows->users, VAECF_ROLE_INDEX, &x->users, &users));
    TRY(whole(b, rows->values, VAECF_ROLE_VALUE, &x->values, &values));
    if (x->users && (x->first > users || rows->count > users - x->first))
        return fail(b, "rows up to %llu of a list of %llu users", (unsigned long long)(x->first + rows->count),
                    (unsigned long long)users);
    if (x->values && values < x->events) return fail(b, "fewer weights than events");
    return VAECF_CODE_OK;
}

// The row of the data set that row r of the batch is.
static uint32_t user_of(const sparse *x, uint64_t r)
{
    return x->users ? x->users[x->first + r] : (uint32_t)(x->first + r);
}

// The history of row r, whose items are below n_items.
static int32_t open_row(backend *b, const sparse *x, uint64_t r, uint32_t n_items, history *row)
{
    memset(row, 0, sizeof *row);
    if (!x->indptr) return VAECF_CODE_OK;
    uint64_t user = user_of(x, r);
    if (user + 1 >= x->indptr_len) return fail(b, "there is no row %llu", (unsigned long long)user);
    uint32_t start = x->indptr[user], end = x->indptr[user + 1];
    if (start > end || end > x->events) return fail(b, "row %llu ends outside", (unsigned long long)user);
    if (start == end) return VAECF_CODE_OK;
    row->items = x->indices + start;
    row->values = x->values ? x->values + start : NULL;
    row->len = end - start;
    for (uint32_t i = 0; i < row->len; i++)
        if (row->items[i] >= n_items) return fail(b, "item %u of %u", row->items[i], n_items);
    return VAECF_CODE_OK;
}

static double weight(const history *row, uint32_t i)
{
    return row->values ? row->values[i] : 1.0;
}

// ---- noise ----

static void block(const vaecf_noise *noise, uint32_t update, uint32_t user, uint32_t number, uint32_t c[4])
{
    uint32_t k0 = (uint32_t)noise->seed, k1 = noise->stream;
    c[0] = update;
    c[1] = user;
    c[2] = number;
    c[3] = (uint32_t)(noise->seed >> 32);
    for (int round = 0; round < 10; round++) {
        if (round > 0) {
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        uint64_t first = (uint64_t)c[0] * 0xD2511F53u, second = (uint64_t)c[2] * 0xCD9E8D57u;
        c[0] = (uint32_t)(second >> 32) ^ c[1] ^ k0;
        c[1] = (uint32_t)second;
        c[2] = (uint32_t)(first >> 32) ^ c[3] ^ k1;
        c[3] = (uint32_t)first;
    }
}

// What event i of a row counts after normalisation and dropout; `norm` is that of the whole row.
static double input(const vaecf_noise *noise, uint32_t update, uint32_t user, const history *row, uint32_t i,
                    double norm)
{
    uint32_t words[4], item = row->items[i];
    if (norm == 0.0) return 0.0;
    if (noise->keep < 1.0f) {
        block(noise, update, user, item / 4, words);
        if (words[item % 4] >= (uint64_t)((double)noise->keep * 4294967296.0)) return 0.0;
    }
    return weight(row, i) / (norm * noise->keep);
}

static double norm_of(const history *row)
{
    double sum = 0.0;
    for (uint32_t i = 0; i < row->len; i++) sum += weight(row, i) * weight(row, i);
    return sqrt(sum);
}

// The standard normal draw of latent unit k; zero where there is no noise.
static double normal(const vaecf_noise *noise, uint32_t update, uint32_t user, uint32_t k)
{
    const double turn = 6.283185307179586;
    uint32_t words[4], half = k % 4 / 2 * 2;
    if (!(noise->keep > 0.0f)) return 0.0;
    block(noise, update, user, k / 4, words);
    double radius = sqrt(-2.0 * log(((words[half] >> 8) + 1) / 16777216.0));
    double angle = turn * ((words[half + 1] >> 8) / 16777216.0);
    return radius * (k % 2 == 0 ? cos(angle) : sin(angle));
}

// ---- curves ----

static int32_t check_curve(backend *b, uint32_t curve)
{
    return curve <= VAECF_CURVE_RELU ? VAECF_CODE_OK : fail(b, "%u is no curve", curve);
}

static double curve_of(uint32_t curve, double a)
{
    if (curve == VAECF_CURVE_TANH) return tanh(a);
    if (curve == VAECF_CURVE_RELU && a < 0.0) return 0.0;
    return a;
}

// The slope of a curve where its output is y.
static double slope_of(uint32_t curve, double y)
{
    if (curve == VAECF_CURVE_TANH) return 1.0 - y * y;
    if (curve == VAECF_CURVE_RELU) return y > 0.0 ? 1.0 : 0.0;
    return 1.0;
}

// ---- operations, in the order of the contract ----

static int32_t encode_sparse(void *ctx, const vaecf_rows *rows, const vaecf_mat *w, const vaecf_mat *bias,
                             uint32_t curve, const vaecf_noise *noise, vaecf_buf step_buf, const vaecf_mat *y)
{
    backend *b = ctx;
    const vaecf_step_params *step;
    sparse x;
    float *w_data, *b_data, *y_data;
    double *sum;
    TRY(check_curve(b, curve));
    TRY(range(b, step_buf, VAECF_ROLE_STEP, 0, 1, &step));
    TRY(open_rows(b, rows, step->first, &x));
    TRY(matrix(b, w, VAECF_ROLE_WEIGHT, w->rows, y->cols, &w_data));
    TRY(matrix(b, bias, VAECF_ROLE_WEIGHT, 1, y->cols, &b_data));
    TRY(matrix(b, y, VAECF_ROLE_ACT, rows->count, y->cols, &y_data));
    TRY(scratch(b, y->cols, &sum));
    for (uint32_t r = 0; r < y->rows; r++) {
        history row;
        TRY(open_row(b, &x, r, w->rows, &row));
        double norm = norm_of(&row);
        for (uint32_t c = 0; c < y->cols; c++) sum[c] = b_data[c];
        for (uint32_t i = 0; i < row.len; i++) {
            double d = input(noise, step->update, user_of(&x, r), &row, i, norm);
            if (d == 0.0) continue;
            const float *from = row_of(w_data, w, row.items[i]);
            for (uint32_t c = 0; c < y->cols; c++) sum[c] += d * from[c];
        }
        float *to = row_of(y_data, y, r);
        for (uint32_t c = 0; c < y->cols; c++) to[c] = (float)curve_of(curve, sum[c]);
    }
    return VAECF_CODE_OK;
}

// db = colsum(dy).
static int32_t column_sums(backend *b, const vaecf_mat *dy, const vaecf_mat *db)
{
    float *from, *to;
    TRY(matrix(b, dy, VAECF_ROLE_ACT, dy->rows, dy->cols, &from));
    TRY(matrix(b, db, VAECF_ROLE_GRAD, 1, dy->cols, &to));
    for (uint32_t c = 0; c < dy->cols; c++) {
        double sum = 0.0;
        for (uint32_t r = 0; r < dy->rows; r++) sum += row_of(from, dy, r)[c];
        to[c] = (float)sum;
    }
    return VAECF_CODE_OK;
}

static int32_t encode_sparse_grad(void *ctx, const vaecf_rows *rows, const vaecf_mat *dy, const vaecf_noise *noise,
                                  vaecf_buf step_buf, const vaecf_mat *dw, const vaecf_mat *db)
{
    backend *b = ctx;
    const vaecf_step_params *step;
    sparse x;
    float *dy_data, *dw_data;
    TRY(range(b, step_buf, VAECF_ROLE_STEP, 0, 1, &step));
    TRY(open_rows(b, rows, step->first, &x));
    TRY(matrix(b, dy, VAECF_ROLE_ACT, rows->count, dy->cols, &dy_data));
    TRY(matrix(b, dw, VAECF_ROLE_GRAD, dw->rows, dy->cols, &dw_data));
    for (uint32_t item = 0; item < dw->rows; item++)
        for (uint32_t c = 0; c < dw->cols; c++) row_of(dw_data, dw, item)[c] = 0.0f;
    for (uint32_t r = 0; r < dy->rows; r++) {
        history row;
        TRY(open_row(b, &x, r, dw->rows, &row));
        double norm = norm_of(&row);
        const float *from = row_of(dy_data, dy, r);
        for (uint32_t i = 0; i < row.len; i++) {
            double d = input(noise, step->update, user_of(&x, r), &row, i, norm);
            if (d == 0.0) continue;
            float *to = row_of(dw_data, dw, row.items[i]);
            for (uint32_t c = 0; c < dw->cols; c++) to[c] = (float)(to[c] + d * from[c]);
        }
    }
    return column_sums(b, dy, db);
}

static int32_t linear(void *ctx, const vaecf_mat *x, const vaecf_mat *w, const vaecf_mat *bias, uint32_t curve,
                      const vaecf_mat *y)
{
    backend *b = ctx;
    float *x_data, *w_data, *b_data, *y_data;
    double *sum;
    TRY(check_curve(b, curve));
    TRY(matrix(b, x, VAECF_ROLE_ACT, y->rows, w->rows, &x_data));
    TRY(matrix(b, w, VAECF_ROLE_WEIGHT, w->rows, y->cols, &w_data));
    TRY(matrix(b, bias, VAECF_ROLE_WEIGHT, 1, y->cols, &b_data));
    TRY(matrix(b, y, VAECF_ROLE_ACT, y->rows, y->cols, &y_data));
    TRY(scratch(b, y->cols, &sum));
    for (uint32_t r = 0; r < y->rows; r++) {
        const float *from = row_of(x_data, x, r);
        float *to = row_of(y_data, y, r);
        for (uint32_t c = 0; c < y->cols; c++) sum[c] = b_data[c];
        for (uint32_t m = 0; m < w->rows; m++)
            for (uint32_t c = 0; c < y->cols; c++) sum[c] += (double)from[m] * row_of(w_data, w, m)[c];
        for (uint32_t c = 0; c < y->cols; c++) to[c] = (float)curve_of(curve, sum[c]);
    }
    return VAECF_CODE_OK;
}

static int32_t linear_grad_weight(void *ctx, const vaecf_mat *x, const vaecf_mat *dy, const vaecf_mat *dw,
                                  const vaecf_mat *db)
{
    backend *b = ctx;
    float *x_data, *dy_data, *dw_data;
    double *sum;
    TRY(matrix(b, x, VAECF_ROLE_ACT, dy->rows, dw->rows, &x_data));
    TRY(matrix(b, dy, VAECF_ROLE_ACT, dy->rows, dw->cols, &dy_data));
    TRY(matrix(b, dw, VAECF_ROLE_GRAD, dw->rows, dw->cols, &dw_data));
    TRY(scratch(b, dw->cols, &sum));
    for (uint32_t m = 0; m < dw->rows; m++) {
        for (uint32_t c = 0; c < dw->cols; c++) sum[c] = 0.0;
        for (uint32_t r = 0; r < dy->rows; r++) {
            double factor = row_of(x_data, x, r)[m];
            const float *from = row_of(dy_data, dy, r);
            for (uint32_t c = 0; c < dw->cols; c++) sum[c] += factor * from[c];
        }
        for (uint32_t c = 0; c < dw->cols; c++) row_of(dw_data, dw, m)[c] = (float)sum[c];
    }
    return column_sums(b, dy, db);
}

static int32_t linear_grad_input(void *ctx, const vaecf_mat *dy, const vaecf_mat *w, const vaecf_mat *x,
                                 uint32_t curve, const vaecf_mat *dx)
{
    backend *b = ctx;
    float *dy_data, *w_data, *x_data, *dx_data;
    TRY(check_curve(b, curve));
    TRY(matrix(b, dy, VAECF_ROLE_ACT, dx->rows, w->cols, &dy_data));
    TRY(matrix(b, w, VAECF_ROLE_WEIGHT, dx->cols, w->cols, &w_data));
    TRY(matrix(b, x, VAECF_ROLE_ACT, dx->rows, dx->cols, &x_data));
    TRY(matrix(b, dx, VAECF_ROLE_ACT, dx->rows, dx->cols, &dx_data));
    for (uint32_t r = 0; r < dx->rows; r++) {
        for (uint32_t m = 0; m < dx->cols; m++) {
            const float *left = row_of(dy_data, dy, r), *right = row_of(w_data, w, m);
            double sum = 0.0;
            for (uint32_t c = 0; c < w->cols; c++) sum += (double)left[c] * right[c];
            row_of(dx_data, dx, r)[m] = (float)(sum * slope_of(curve, row_of(x_data, x, r)[m]));
        }
    }
    return VAECF_CODE_OK;
}

// The rows first + r of a per-user output.
static int32_t per_user(backend *b, const vaecf_mat *m, const sparse *x, uint32_t count, float **out)
{
    if (x->first > m->rows || count > m->rows - x->first) return fail(b, "more users than rows of the output");
    TRY(matrix(b, m, VAECF_ROLE_VALUE, m->rows, 1, out));
    if (count > 0) *out = row_of(*out, m, x->first);
    return VAECF_CODE_OK;
}

static int32_t sample_latent(void *ctx, const vaecf_rows *rows, const vaecf_mat *stats, const vaecf_noise *noise,
                             vaecf_buf step_buf, const vaecf_mat *z, const vaecf_mat *kl)
{
    backend *b = ctx;
    const vaecf_step_params *step;
    sparse x;
    float *stats_data, *z_data, *kl_data;
    uint32_t units = z->cols;
    if (units > UINT32_MAX / 2) return fail(b, "%u latent units", units);
    TRY(range(b, step_buf, VAECF_ROLE_STEP, 0, 1, &step));
    TRY(open_rows(b, rows, step->first, &x));
    TRY(matrix(b, stats, VAECF_ROLE_ACT, rows->count, 2 * units, &stats_data));
    TRY(matrix(b, z, VAECF_ROLE_ACT, rows->count, units, &z_data));
    TRY(per_user(b, kl, &x, rows->count, &kl_data));
    for (uint32_t r = 0; r < rows->count; r++) {
        const float *mu = row_of(stats_data, stats, r), *logvar = mu + units;
        double sum = 0.0;
        for (uint32_t k = 0; k < units; k++) {
            double m = mu[k], v = logvar[k];
            row_of(z_data, z, r)[k] = (float)(m + exp(0.5 * v) * normal(noise, step->update, user_of(&x, r), k));
            sum += 0.5 * (exp(v) + m * m - 1.0 - v);
        }
        *row_of(kl_data, kl, r) = (float)sum;
    }
    return VAECF_CODE_OK;
}

static int32_t sample_latent_grad(void *ctx, const vaecf_rows *rows, const vaecf_mat *stats, const vaecf_mat *dz,
                                  const vaecf_noise *noise, vaecf_buf step_buf, vaecf_buf scale_buf,
                                  const vaecf_mat *dstats)
{
    backend *b = ctx;
    const vaecf_step_params *step;
    const vaecf_scale_state *scale;
    sparse x;
    float *stats_data, *dz_data, *dstats_data;
    uint32_t units = dz->cols;
    if (units > UINT32_MAX / 2) return fail(b, "%u latent units", units);
    TRY(range(b, step_buf, VAECF_ROLE_STEP, 0, 1, &step));
    TRY(range(b, scale_buf, VAECF_ROLE_SCALE, 0, 1, &scale));
    TRY(open_rows(b, rows, step->first, &x));
    TRY(matrix(b, stats, VAECF_ROLE_ACT, rows->count, 2 * units, &stats_data));
    TRY(matrix(b, dz, VAECF_ROLE_ACT, rows->count, units, &dz_data));
    TRY(matrix(b, dstats, VAECF_ROLE_ACT, rows->count, 2 * units, &dstats_data));
    double beta = step->beta * scale->scale;
    for (uint32_t r = 0; r < rows->count; r++) {
        const float *mu = row_of(stats_data, stats, r), *logvar = mu + units, *d = row_of(dz_data, dz, r);
        float *dmu = row_of(dstats_data, dstats, r), *dlogvar = dmu + units;
        for (uint32_t k = 0; k < units; k++) {
            double deviation = exp(0.5 * logvar[k]), eps = normal(noise, step->update, user_of(&x, r), k);
            dmu[k] = (float)(d[k] + beta * mu[k]);
            dlogvar[k] = (float)(0.5 * (d[k] * eps * deviation + beta * (deviation * deviation - 1.0)));
        }
    }
    return VAECF_CODE_OK;
}

// The loss of one user; the logits f become its gradient, times scale.
static double multinomial(const history *row, float *f, uint32_t n, double scale)
{
    double top = -INFINITY, sum = 0.0, total = 0.0, loss = 0.0;
    for (uint32_t c = 0; c < n; c++)
        if (f[c] > top) top = f[c];
    for (uint32_t c = 0; c < n; c++) sum += exp(f[c] - top);
    for (uint32_t i = 0; i < row->len; i++) {
        total += weight(row, i);
        loss += weight(row, i) * (log(sum) - (f[row->items[i]] - top));
    }
    for (uint32_t c = 0, i = 0; c < n; c++) {
        double x = i < row->len && row->items[i] == c ? weight(row, i++) : 0.0;
        f[c] = (float)(scale * (total * exp(f[c] - top) / sum - x));
    }
    return loss;
}

static double gaussian(const history *row, float *f, uint32_t n, double scale, const vaecf_likelihood *kind)
{
    double loss = 0.0;
    for (uint32_t c = 0, i = 0; c < n; c++) {
        int seen = i < row->len && row->items[i] == c;
        double x = seen ? weight(row, i++) : 0.0, confidence = seen ? kind->seen : kind->unseen, off = f[c] - x;
        loss += 0.5 * confidence * off * off;
        f[c] = (float)(scale * confidence * off);
    }
    return loss;
}

static double logistic(const history *row, float *f, uint32_t n, double scale)
{
    double loss = 0.0;
    for (uint32_t c = 0, i = 0; c < n; c++) {
        double x = i < row->len && row->items[i] == c ? weight(row, i++) : 0.0, a = f[c], e = exp(-fabs(a));
        loss += (a > 0.0 ? a : 0.0) + log1p(e) - x * a; // e is at most 1, whatever a is
        f[c] = (float)(scale * ((a < 0.0 ? e : 1.0) / (1.0 + e) - x));
    }
    return loss;
}

static int32_t likelihood(void *ctx, const vaecf_rows *rows, const vaecf_likelihood *kind, const vaecf_mat *logits,
                          vaecf_buf step_buf, vaecf_buf scale_buf, const vaecf_mat *loss)
{
    backend *b = ctx;
    const vaecf_step_params *step;
    const vaecf_scale_state *scale;
    sparse x;
    float *logits_data, *loss_data;
    uint32_t n = logits->cols;
    if (kind->kind > VAECF_LIKELIHOOD_KIND_LOGISTIC) return fail(b, "%u is no likelihood", kind->kind);
    TRY(range(b, step_buf, VAECF_ROLE_STEP, 0, 1, &step));
    TRY(range(b, scale_buf, VAECF_ROLE_SCALE, 0, 1, &scale));
    TRY(open_rows(b, rows, step->first, &x));
    TRY(matrix(b, logits, VAECF_ROLE_ACT, rows->count, n, &logits_data));
    TRY(per_user(b, loss, &x, rows->count, &loss_data));
    for (uint32_t r = 0; r < rows->count; r++) {
        history row;
        TRY(open_row(b, &x, r, n, &row));
        float *f = row_of(logits_data, logits, r);
        double sum;
        switch (kind->kind) {
        case VAECF_LIKELIHOOD_KIND_MULTINOMIAL: sum = multinomial(&row, f, n, scale->scale); break;
        case VAECF_LIKELIHOOD_KIND_GAUSSIAN: sum = gaussian(&row, f, n, scale->scale, kind); break;
        default: sum = logistic(&row, f, n, scale->scale); break;
        }
        *row_of(loss_data, loss, r) = (float)sum;
    }
    return VAECF_CODE_OK;
}

static int32_t adam(void *ctx, vaecf_buf w_buf, vaecf_buf dw_buf, vaecf_buf m_buf, vaecf_buf v_buf, uint64_t len,
                    uint64_t decayed, vaecf_buf step_buf, vaecf_buf scale_buf)
{
    backend *b = ctx;
    float *w, *dw, *m, *v;
    const vaecf_step_params *step;
    vaecf_scale_state *scale;
    if (decayed > len) return fail(b, "more weights decay than there are");
    TRY(range(b, w_buf, VAECF_ROLE_WEIGHT, 0, len, &w));
    TRY(range(b, dw_buf, VAECF_ROLE_GRAD, 0, len, &dw));
    TRY(range(b, m_buf, VAECF_ROLE_MOMENT, 0, len, &m));
    TRY(range(b, v_buf, VAECF_ROLE_MOMENT, 0, len, &v));
    TRY(range(b, step_buf, VAECF_ROLE_STEP, 0, 1, &step));
    TRY(range(b, scale_buf, VAECF_ROLE_SCALE, 0, 1, &scale));
    for (uint64_t i = 0; i < len; i++) {
        if (!isfinite(dw[i])) { // the update is skipped; a backend that scales would halve the scale here
            scale->skipped++;
            scale->finite = 0;
            return VAECF_CODE_OK;
        }
    }
    for (uint64_t i = 0; i < len; i++) {
        double g = dw[i] * (step->grad_factor / scale->scale) + (i < decayed ? step->l2 * w[i] : 0.0);
        double mean = step->beta1 * m[i] + (1.0 - step->beta1) * g;
        double square = step->beta2 * v[i] + (1.0 - step->beta2) * g * g;
        m[i] = (float)mean;
        v[i] = (float)square;
        w[i] = (float)(w[i] - step->lr * (mean / step->correction1) / (sqrt(square / step->correction2) + step->eps));
    }
    scale->good++;
    scale->finite = 1;
    return VAECF_CODE_OK;
}

// Whether a score comes before another; NaN comes last.
static int better(float a, float b)
{
    return a > b || (isnan(b) && !isnan(a));
}

static int32_t top_k(void *ctx, const vaecf_mat *scores, const vaecf_rows *seen, uint32_t k, vaecf_buf items_buf,
                     vaecf_buf values_buf)
{
    backend *b = ctx;
    sparse x;
    float *data, *values;
    uint32_t *items;
    uint64_t len = (uint64_t)scores->rows * k;
    if (seen->count != scores->rows) return fail(b, "%u rows of seen items for %u rows", seen->count, scores->rows);
    TRY(open_rows(b, seen, 0, &x));
    TRY(matrix(b, scores, VAECF_ROLE_ACT, scores->rows, scores->cols, &data));
    TRY(range(b, items_buf, VAECF_ROLE_INDEX, 0, len, &items));
    TRY(range(b, values_buf, VAECF_ROLE_VALUE, 0, len, &values));
    for (uint32_t r = 0; r < scores->rows; r++, items += k, values += k) {
        history row;
        uint32_t have = 0;
        const float *score = row_of(data, scores, r);
        TRY(open_row(b, &x, r, scores->cols, &row));
        for (uint32_t c = 0, i = 0; c < scores->cols; c++) {
            if (i < row.len && row.items[i] == c) {
                i++;
                continue;
            }
            // Into its place among the best so far. Items come in order, so the smaller of equals stays ahead.
            uint32_t at = have;
            while (at > 0 && better(score[c], values[at - 1])) at--;
            if (at == k) continue;
            if (have < k) have++;
            for (uint32_t to = have - 1; to > at; to--) {
                values[to] = values[to - 1];
                items[to] = items[to - 1];
            }
            values[at] = score[c];
            items[at] = c;
        }
        for (; have < k; have++) {
            values[have] = -INFINITY;
            items[have] = UINT32_MAX;
        }
    }
    return VAECF_CODE_OK;
}

// ---- the table ----

static int32_t info(void *ctx, vaecf_info *info)
{
    (void)ctx;
    snprintf(info->name, sizeof info->name, "plugin_c");
    snprintf(info->device, sizeof info->device, "one thread of plain C");
    snprintf(info->precision, sizeof info->precision, "f32");
    info->master = VAECF_MASTER_F32;
    info->memory = available();
    info->host_memory = 1;
    info->act_bytes = sizeof(float);
    info->weight_bytes = sizeof(float);
    info->align = 1;
    info->loss_scale = 1.0f;
    info->deterministic = 1;
    info->capture = 0;
    return VAECF_CODE_OK;
}

static size_t last_error(void *ctx, char *text, size_t len)
{
    const char *error = ctx ? ((backend *)ctx)->error : opening_error;
    if (text) snprintf(text, len, "%s", error);
    return strlen(error);
}

static void destroy(void *ctx)
{
    backend *b = ctx;
    for (uint32_t i = 0; i < b->count; i++) free(b->buffers[i].data);
    free(b->buffers);
    free(b->scratch);
    free(b);
}

int32_t vaecf_backend_v1(uint32_t host_version, vaecf_backend *out)
{
    if (host_version != VAECF_VERSION) {
        out->version = VAECF_VERSION;
        return VAECF_CODE_UNSUPPORTED;
    }
    // Nothing after `top_k` is filled: the host makes the fused operations of those that are here. Every host
    // of this version has room for that much.
    out->size = offsetof(vaecf_backend, logits_rows);
    out->version = VAECF_VERSION;
    out->last_error = last_error;
    if (out->device > 0) {
        snprintf(opening_error, sizeof opening_error, "there is one device, 0");
        return VAECF_CODE_OTHER;
    }
    if (strcmp(out->precision, "auto") != 0 && strcmp(out->precision, "f32") != 0) {
        snprintf(opening_error, sizeof opening_error, "it computes in f32, not in %.15s", out->precision);
        return VAECF_CODE_OTHER;
    }
    out->ctx = calloc(1, sizeof(backend));
    if (!out->ctx) {
        snprintf(opening_error, sizeof opening_error, "out of memory");
        return VAECF_CODE_OUT_OF_MEMORY;
    }
    out->destroy = destroy;
    out->info = info;
    out->alloc = alloc_;
    out->free = free_;
    out->upload = upload;
    out->download = download;
    out->sync = NULL; // every call has done its work when it returns
    out->encode_sparse = encode_sparse;
    out->encode_sparse_grad = encode_sparse_grad;
    out->linear = linear;
    out->linear_grad_weight = linear_grad_weight;
    out->linear_grad_input = linear_grad_input;
    out->sample_latent = sample_latent;
    out->sample_latent_grad = sample_latent_grad;
    out->likelihood = likelihood;
    out->adam = adam;
    out->top_k = top_k;
    return VAECF_CODE_OK;
}
