/* dump — 线性层的导出 */
#include "dump.h"

#include <stdio.h>

#include "io/file.h"
#include "io/npy.h"
#include "model/kvcache.h"

static bool write_array(const char *dir, const char *part, DType type, int64_t rows, int64_t cols,
                        const void *data, Err *e) {
    char path[1024];
    int64_t shape[2] = {rows, cols};
    snprintf(path, sizeof path, "%s/%s.npy", dir, part);
    return npy_write(path, type, cols ? 2 : 1, shape, data, e);
}

static bool dump_values(const Model *m, const Linear *l, const char *dir, Err *e) {
    Backend *b = m->backend;
    Arena tensors = backend_arena(b);
    float *w = ARENA_ARRAY(&tensors, float, l->rows * l->cols, e);
    HostView v = host_view(b);
    bool ok = w != NULL;
    if (ok) {
        op_dequantize(b, tensor_f32(w, l->rows, l->cols), &l->q);
        const float *host = HOST_MAP(&v, float, w, l->rows * l->cols, HOST_READ);
        ok = backend_check(b, e) && write_array(dir, "w", DT_F32, l->rows, l->cols, host, e);
    }
    host_end(&v);
    arena_free(&tensors);
    return ok;
}

/* 每组的统计：值，两级的还有码。 */
static bool dump_groups(const QTensor *q, const char *dir, Arena *a, Err *e) {
    int64_t n = q->rows * q->n_groups;
    for (StatKind kind = STAT_SCALE; kind <= STAT_ZERO; kind++) {
        bool coded = kind == STAT_SCALE ? q->two.scale_bits : q->two.zero_bits;
        float *value = ARENA_ARRAY(a, float, n, e);
        uint8_t *code = ARENA_ARRAY(a, uint8_t, n, e);
        if (!value || !code) return false;
        for (int64_t i = 0; i < n; i++) {
            int64_t r = i / q->n_groups, g = i % q->n_groups;
            value[i] = kind == STAT_SCALE ? qtensor_scale(q, r, g) : qtensor_zero(q, r, g);
            if (coded) code[i] = (uint8_t)qtensor_stat_code(q, kind, r, g);
        }
        const char *part = kind == STAT_SCALE ? "scale" : "zero";
        const char *codes = kind == STAT_SCALE ? "qscale" : "qzero";
        if (!write_array(dir, part, DT_F32, q->rows, q->n_groups, value, e) ||
            (coded && !write_array(dir, codes, DT_U8, q->rows, q->n_groups, code, e)))
            return false;
    }
    return true;
}

static bool dump_codes(const QTensor *q, const char *dir, Arena *a, Err *e) {
    int64_t n = q->rows * q->cols;
    uint8_t *code = ARENA_ARRAY(a, uint8_t, n, e);
    float *outlier = ARENA_ARRAY(a, float, n, e);
    if (!code || !outlier) return false;
    for (int64_t i = 0; i < n; i++) {
        code[i] = (uint8_t)qtensor_code(q, i / q->cols, i % q->cols);
        qtensor_outlier(q, i / q->cols, i % q->cols, &outlier[i]);
    }
    return write_array(dir, "code", DT_U8, q->rows, q->cols, code, e) &&
           (!q->perm || write_array(dir, "perm", DT_I32, q->cols, 0, q->perm, e)) &&
           (!q->outliers.start ||
            write_array(dir, "outliers", DT_F32, q->rows, q->cols, outlier, e));
}

static bool dump_vector(const char *dir, char side, const char *what, int layer, const float *x,
                        int64_t n, Err *e) {
    char part[32];
    snprintf(part, sizeof part, "%c%s%d", side, what, layer);
    return write_array(dir, part, DT_F32, n, 0, x, e);
}

/* 键的上下阈值，在后端内存。 */
static bool dump_limits(const Model *m, const Linear *l, const char *dir, char side,
                        const KvFormat *f, Err *e) {
    HostView v = host_view(m->backend);
    const float *lower = HOST_MAP(&v, float, f->lower, l->rows, HOST_READ);
    const float *upper = HOST_MAP(&v, float, f->upper, l->rows, HOST_READ);
    bool ok = backend_check(m->backend, e) &&
              dump_vector(dir, side, "lower", l->layer, lower, l->rows, e) &&
              dump_vector(dir, side, "upper", l->layer, upper, l->rows, e);
    host_end(&v);
    return ok;
}

/* 键值缓存查表量化的这一侧：表，以及键的上下阈值。 */
static bool dump_cache(const Model *m, const Linear *l, const char *dir, Err *e) {
    if (!m->kv || (l->role != ROLE_K && l->role != ROLE_V)) return true;
    bool keys = l->role == ROLE_K;
    const KvSpec *s = &m->kv[l->layer];
    const KvFormat *f = keys ? &s->k : &s->v;
    char side = keys ? 'k' : 'v';
    if (f->form != KV_LUT) return true;
    return dump_vector(dir, side, "lut", l->layer, f->lut, (int64_t)1 << f->bits, e) &&
           (!f->per_channel || dump_limits(m, l, dir, side, f, e));
}

bool dump_linear(const Model *m, const char *name, const char *dir, Err *e) {
    const Linear *l = model_find_linear((Model *)m, name);
    if (!l) return err_set(e, ERR_USAGE, "模型没有名为 '%s' 的线性层", name);
    Arena a = {0};
    QTensor q;
    bool ok = model_need_block((Model *)m, l->layer, e) && file_mkdirs(dir, e) &&
              dump_values(m, l, dir, e);
    if (l->q.dense == DT_NONE)
        ok = ok && qtensor_to_host(m->backend, &l->q, &q, &a, e) && dump_groups(&q, dir, &a, e) &&
             dump_codes(&q, dir, &a, e);
    ok = ok && dump_cache(m, l, dir, e);
    arena_free(&a);
    return ok;
}
