// A backend that does nothing, with one fault at a time: what the loader must find. Each -D is one.

#include <stdio.h>
#include <string.h>

#include "vaecf_backend.h"

static const char *text = "";

static size_t last_error(void *ctx, char *to, size_t len)
{
    (void)ctx;
    if (to) snprintf(to, len, "%s", text);
    return strlen(text);
}

static int32_t info(void *ctx, vaecf_info *info)
{
    (void)ctx;
    snprintf(info->name, sizeof info->name, "faulty");
    snprintf(info->device, sizeof info->device, "nothing");
    snprintf(info->precision, sizeof info->precision, "f32");
    info->master = VAECF_MASTER_F32;
    info->memory = UINT64_MAX;
    info->act_bytes = 4;
    info->weight_bytes = 6;
    info->align = 1;
    info->loss_scale = 1.0f;
#ifdef ALIGN_ZERO
    info->align = 0;
#endif
#ifdef ALIGN_HUGE
    info->align = 0x80000000u;
#endif
#ifdef NO_ENDING_ZERO
    memset(info->name, 'x', sizeof info->name);
#endif
#ifdef NOT_UTF8
    info->device[0] = (char)0xff;
#endif
#ifdef UNKNOWN_PRECISION
    snprintf(info->precision, sizeof info->precision, "fp32");
#endif
#ifdef CAPTURES
    info->capture = 1;
#endif
#ifdef UNKNOWN_MASTER
    info->master = 7;
#endif
#ifdef INFO_FAILS
    text = "nobody knows";
    return VAECF_CODE_OTHER;
#endif
    return VAECF_CODE_OK;
}

static int32_t alloc(void *ctx, uint32_t role, uint64_t len, vaecf_buf *buf)
{
    static vaecf_buf last = 0;
    (void)ctx, (void)role;
    if (len > UINT32_MAX) return VAECF_CODE_OUT_OF_MEMORY;
#ifdef NO_HANDLE
    return VAECF_CODE_OK;
#endif
    *buf = ++last;
    return VAECF_CODE_OK;
}

static void free_(void *ctx, vaecf_buf buf)
{
    (void)ctx, (void)buf;
}

static int32_t upload(void *ctx, vaecf_buf dst, uint64_t at, uint32_t type, const void *src, uint64_t len)
{
    (void)ctx, (void)dst, (void)at, (void)type, (void)src, (void)len;
    return VAECF_CODE_OK;
}

static int32_t download(void *ctx, vaecf_buf src, uint64_t at, uint32_t type, void *dst, uint64_t len)
{
    (void)ctx, (void)src, (void)at, (void)type, (void)dst, (void)len;
    return VAECF_CODE_OK;
}

#ifndef CODE
#define CODE VAECF_CODE_OK
#endif

// Returns the code that was asked for.
static int32_t linear(void *ctx, const vaecf_mat *x, const vaecf_mat *w, const vaecf_mat *b, uint32_t curve,
                      const vaecf_mat *y)
{
    (void)ctx, (void)x, (void)w, (void)b, (void)curve, (void)y;
    text = "the words\n  of the plugin";
#ifdef SILENT
    text = "";
#endif
    return CODE;
}

#ifdef NO_SYMBOL
#define vaecf_backend_v1 vaecf_backend_v9
VAECF_EXPORT int32_t vaecf_backend_v9(uint32_t host_version, vaecf_backend *out);
#endif

int32_t vaecf_backend_v1(uint32_t host_version, vaecf_backend *out)
{
    out->size = sizeof *out < out->size ? sizeof *out : out->size;
    out->version = host_version;
#ifdef VERSION
    out->version = VERSION;
    return VAECF_CODE_UNSUPPORTED;
#endif
#ifdef SIZE
    out->size = SIZE;
#endif
#ifndef NO_CTX
    static int nothing;
    out->ctx = &nothing;
#endif
    out->last_error = last_error;
    out->info = info;
    out->alloc = alloc;
    out->free = free_;
    out->upload = upload;
    out->download = download;
    out->linear = linear;
#ifdef NO_ALLOC
    out->alloc = NULL;
#endif
#ifdef NO_INFO
    out->info = NULL;
#endif
#ifdef SILENT
    out->last_error = NULL;
#endif
#ifdef REFUSES
    text = "no such card is plugged in";
    return VAECF_CODE_LOST;
#endif
    return VAECF_CODE_OK;
}
