/* gguf_write — GGUF 的写出；布局见 ggml 的 docs/gguf.md */
#include "io/gguf_write.h"

#include <string.h>

enum { ALIGNMENT = 32, VERSION = 3 };

/* 小端的整数。 */
static void put_int(Str *s, uint64_t v, int bytes) {
    for (int i = 0; i < bytes; i++) {
        char c = (char)(v >> 8 * i & 255);
        str_addn(s, &c, 1);
    }
}
static void put_text(Str *s, const char *text, size_t len) {
    put_int(s, len, 8);
    str_addn(s, text, len);
}
static Str *begin(GgufWriter *w, const char *key, GgufType type) {
    w->n_values++;
    put_text(&w->values, key, strlen(key));
    put_int(&w->values, type, 4);
    return &w->values;
}
static uint32_t bits_of(float v) {
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    return u;
}

void gguf_put_u32(GgufWriter *w, const char *key, uint32_t v) {
    put_int(begin(w, key, GGUF_U32), v, 4);
}
void gguf_put_f32(GgufWriter *w, const char *key, float v) {
    put_int(begin(w, key, GGUF_F32), bits_of(v), 4);
}
void gguf_put_bool(GgufWriter *w, const char *key, bool v) {
    put_int(begin(w, key, GGUF_BOOL), v, 1);
}
void gguf_put_string(GgufWriter *w, const char *key, const char *s, size_t len) {
    put_text(begin(w, key, GGUF_STRING), s, len);
}

void gguf_put_strings(GgufWriter *w, const char *key, const GgufString *s, size_t n) {
    Str *to = begin(w, key, GGUF_ARRAY);
    put_int(to, GGUF_STRING, 4);
    put_int(to, n, 8);
    for (size_t i = 0; i < n; i++) put_text(to, s[i].data, s[i].len);
}

void gguf_put_i32s(GgufWriter *w, const char *key, const int32_t *v, size_t n) {
    Str *to = begin(w, key, GGUF_ARRAY);
    put_int(to, GGUF_I32, 4);
    put_int(to, n, 8);
    for (size_t i = 0; i < n; i++) put_int(to, (uint32_t)v[i], 4);
}

void gguf_put_f32s(GgufWriter *w, const char *key, const float *v, size_t n) {
    Str *to = begin(w, key, GGUF_ARRAY);
    put_int(to, GGUF_F32, 4);
    put_int(to, n, 8);
    for (size_t i = 0; i < n; i++) put_int(to, bits_of(v[i]), 4);
}

/* ggml 的类型号；没有为 −1。 */
static int type_number(DType t) {
    switch (t) {
    case DT_F32: return 0;
    case DT_F16: return 1;
    case DT_Q4_0: return 2;
    case DT_Q4_1: return 3;
    case DT_Q8_0: return 8;
    case DT_BF16: return 30;
    default: return -1;
    }
}

static size_t padded(size_t n) {
    return (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

bool gguf_header(const GgufWriter *w, const GgufTensor *t, size_t n, Str *out, Err *e) {
    uint64_t at = 0;
    str_addn(out, "GGUF", 4);
    put_int(out, VERSION, 4);
    put_int(out, n, 8);
    put_int(out, w->n_values, 8);
    str_addn(out, w->values.data ? w->values.data : "", w->values.len);
    for (size_t i = 0; i < n; i++) {
        int type = type_number(t[i].dtype);
        if (type < 0)
            return err_set(e, ERR_UNSUPPORTED, "张量 %s 的类型 %s 写不进 GGUF", t[i].name, dtype_name(t[i].dtype));
        put_text(out, t[i].name, strlen(t[i].name));
        put_int(out, (uint64_t)t[i].n_dims, 4);
        for (int d = t[i].n_dims - 1; d >= 0; d--) put_int(out, (uint64_t)t[i].shape[d], 8);
        put_int(out, (uint64_t)type, 4);
        put_int(out, at, 8);
        at += padded(t[i].bytes);
    }
    while (out->len % ALIGNMENT && !out->failed) put_int(out, 0, 1);
    return !(out->failed || w->values.failed) || err_set(e, ERR_MEMORY, "内存不足：GGUF 的头");
}

bool gguf_save(const GgufWriter *w, const GgufTensor *t, size_t n, const char *path, Err *e) {
    static const char ZEROS[ALIGNMENT];
    Str head = {0};
    Arena a = {0};
    FilePart *parts = ARENA_ARRAY(&a, FilePart, 2 * n + 1, e);
    bool ok = parts && gguf_header(w, t, n, &head, e);
    if (ok) {
        parts[0] = (FilePart){head.data, head.len};
        for (size_t i = 0; i < n; i++) {
            parts[2 * i + 1] = (FilePart){t[i].data, t[i].bytes};
            parts[2 * i + 2] = (FilePart){ZEROS, padded(t[i].bytes) - t[i].bytes};
        }
        ok = file_write_parts(path, parts, 2 * n + 1, e);
    }
    str_free(&head);
    arena_free(&a);
    return ok;
}

void gguf_writer_free(GgufWriter *w) {
    str_free(&w->values);
    *w = (GgufWriter){0};
}
