/* test_export — 各格式的排法：造一个量化的线性层的内容，照各项目的公式独立解开，须得回原来的编码、零点、缩放与组号 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "export.h"

enum { ROWS = 64, COLS = 96, GROUP = 32, GROUPS = 3 };

typedef struct Made {
    Linear l;
    PackedLinear p;
    uint8_t code[ROWS * COLS];
    float scale[ROWS * GROUPS], zero[ROWS * GROUPS];
    int32_t group[COLS], perm[COLS];
} Made;

static void make(Made *m, int bits, ZeroKind zero, bool permuted) {
    *m = (Made){.l = {.name = "x", .rows = ROWS, .cols = COLS}};
    m->l.q = (QTensor){.rows = ROWS, .cols = COLS, .n_groups = GROUPS,
                       .spec = {.bits = bits, .group_size = GROUP, .zero = zero, .scale_dtype = DT_F16}, .perm = permuted ? m->perm : NULL};
    for (int k = 0; k < COLS; k++) {
        m->perm[k] = (k * 35 + 7) % COLS;
        m->group[permuted ? m->perm[k] : k] = k / GROUP;
    }
    for (int i = 0; i < ROWS * COLS; i++) m->code[i] = (uint8_t)(rng_unit(1, 0, (uint64_t)i) * (1 << bits));
    for (int i = 0; i < ROWS * GROUPS; i++) {
        m->scale[i] = f16_to_f32(f32_to_f16((float)rng_unit(1, 1, (uint64_t)i) + 0.01f));
        m->zero[i] = zero == ZERO_SYM ? (float)(1 << (bits - 1)) : floorf((float)rng_unit(1, 2, (uint64_t)i) * (float)(1 << bits));
    }
    m->p = (PackedLinear){bits, ROWS, COLS, GROUP, GROUPS, zero == ZERO_SYM, m->code, m->scale, m->zero, m->group};
}

static const ExportFormat *format(const char *name) {
    for (size_t i = 0; i < N_EXPORT_FORMATS; i++)
        if (strcmp(EXPORT_FORMATS[i].name, name) == 0) return &EXPORT_FORMATS[i];
    fail_msg("没有格式 %s", name);
    return NULL;
}

/* 名为 suffix 的张量的内容；没有返回 NULL。大小与 parts 所说的相符（多写会被 ASan 捉住）。 */
static void *part(const ExportFormat *f, const Made *m, const char *suffix) {
    ExportPart p[EXPORT_MAX_PARTS];
    int n = f->parts(&m->l, p);
    for (int i = 0; i < n; i++) {
        if (strcmp(p[i].suffix, suffix) != 0) continue;
        size_t count = (size_t)p[i].shape[0] * (size_t)(p[i].n_dims == 2 ? p[i].shape[1] : 1);
        void *data = test_malloc(dtype_bytes(p[i].dtype, count));
        f->fill(&m->p, p[i].kind, data);
        return data;
    }
    return NULL;
}

/* 位流里的第 i 个 bits 位的数；相邻两个字相距 step。 */
static int stream_at(const uint32_t *w, int64_t step, int64_t i, int bits) {
    int64_t bit = i * bits;
    int value = 0;
    for (int b = 0; b < bits; b++, bit++) value |= (int)(w[bit / 32 * step] >> bit % 32 & 1) << b;
    return value;
}

static void test_gptq(void **state) {
    (void)state;
    static const int BITS[] = {2, 3, 4, 8};
    const ExportFormat *f = format("gptq");
    for (int b = 0; b < 4; b++)
        for (int permuted = 0; permuted < 2; permuted++) {
            Made m;
            make(&m, BITS[b], ZERO_INT, permuted);
            assert_true(f->check(&m.l, NULL));
            uint32_t *w = part(f, &m, ".qweight"), *z = part(f, &m, ".qzeros");
            uint16_t *s = part(f, &m, ".scales");
            int32_t *g = part(f, &m, ".g_idx");
            for (int r = 0; r < ROWS; r++) {
                for (int c = 0; c < COLS; c++)
                    assert_int_equal(stream_at(w + r, ROWS, c, BITS[b]), m.code[r * COLS + c]);
                for (int k = 0; k < GROUPS; k++) {
                    assert_int_equal(stream_at(z + k * (ROWS * BITS[b] / 32), 1, r, BITS[b]), (int)m.zero[r * GROUPS + k]);
                    assert_true(f16_to_f32(s[k * ROWS + r]) == m.scale[r * GROUPS + k]);
                }
            }
            assert_memory_equal(g, m.group, sizeof m.group);
            test_free(w);
            test_free(z);
            test_free(s);
            test_free(g);
        }
}

static void test_awq(void **state) {
    (void)state;
    static const int AT[8] = {0, 4, 1, 5, 2, 6, 3, 7}; /* 第 k 个输出在第几个半字节 */
    const ExportFormat *f = format("awq");
    Made m;
    make(&m, 4, ZERO_INT, false);
    assert_true(f->check(&m.l, NULL));
    uint32_t *w = part(f, &m, ".qweight"), *z = part(f, &m, ".qzeros");
    uint16_t *s = part(f, &m, ".scales");
    for (int r = 0; r < ROWS; r++) {
        for (int c = 0; c < COLS; c++)
            assert_int_equal(w[c * (ROWS / 8) + r / 8] >> 4 * AT[r % 8] & 15, m.code[r * COLS + c]);
        for (int k = 0; k < GROUPS; k++) {
            assert_int_equal(z[k * (ROWS / 8) + r / 8] >> 4 * AT[r % 8] & 15, (int)m.zero[r * GROUPS + k]);
            assert_true(f16_to_f32(s[k * ROWS + r]) == m.scale[r * GROUPS + k]);
        }
    }
    test_free(w);
    test_free(z);
    test_free(s);
}

static void test_compressed_tensors(void **state) {
    (void)state;
    const ExportFormat *f = format("compressed-tensors");
    for (int i = 0; i < 4; i++) {
        Made m;
        int bits = i == 0 ? 2 : i == 1 ? 8 : 4;
        make(&m, bits, i == 3 ? ZERO_SYM : ZERO_INT, i == 2);
        assert_true(f->check(&m.l, NULL));
        uint32_t *w = part(f, &m, ".weight_packed"), *z = part(f, &m, ".weight_zero_point");
        uint16_t *s = part(f, &m, ".weight_scale");
        int64_t *shape = part(f, &m, ".weight_shape");
        int32_t *g = part(f, &m, ".weight_g_idx");
        assert_true((z != NULL) == (i != 3) && (g != NULL) == (i == 2));
        for (int r = 0; r < ROWS; r++) {
            for (int c = 0; c < COLS; c++)
                assert_int_equal(stream_at(w + r * (COLS * bits / 32), 1, c, bits), m.code[r * COLS + c]);
            for (int k = 0; k < GROUPS; k++) {
                if (z) assert_int_equal(stream_at(z + k, GROUPS, r, bits), (int)m.zero[r * GROUPS + k]);
                assert_true(f16_to_f32(s[r * GROUPS + k]) == m.scale[r * GROUPS + k]);
            }
        }
        assert_true(shape[0] == ROWS && shape[1] == COLS);
        if (g) assert_memory_equal(g, m.group, sizeof m.group);
        void *all[] = {w, z, s, shape, g};
        for (int k = 0; k < 5; k++)
            if (all[k]) test_free(all[k]);
    }
    Made m; /* W8A8：有号的编码 */
    make(&m, 8, ZERO_SYM, false);
    m.l.act = (ActQuant){.kind = ACT_TOKEN, .bits = 8};
    assert_true(f->check(&m.l, NULL));
    int8_t *w = part(f, &m, ".weight");
    for (int i = 0; i < ROWS * COLS; i++) assert_int_equal(w[i], m.code[i] - 128);
    test_free(w);
}

/* 放不下的：说明是哪一层、为什么。 */
static void test_refused(void **state) {
    (void)state;
    Made m;
    Err e = {0};
    make(&m, 3, ZERO_INT, false);
    assert_false(format("awq")->check(&m.l, &e));
    assert_non_null(strstr(e.msg, "没有 3 位"));
    make(&m, 4, ZERO_INT, true);
    assert_false(format("awq")->check(&m.l, &e));
    assert_non_null(strstr(e.msg, "act-order"));
    make(&m, 4, ZERO_FLOAT, false);
    for (size_t i = 0; i < 3; i++) {
        assert_false(EXPORT_FORMATS[i].check(&m.l, &e));
        assert_non_null(strstr(e.msg, "hf-dequantized"));
    }
    make(&m, 8, ZERO_INT, false);
    m.l.act = (ActQuant){.kind = ACT_TOKEN, .bits = 8};
    for (size_t i = 0; i < N_EXPORT_FORMATS; i++) assert_false(EXPORT_FORMATS[i].check(&m.l, &e));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_gptq), cmocka_unit_test(test_awq),
                                       cmocka_unit_test(test_compressed_tensors), cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
