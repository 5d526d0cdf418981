/* test_dtype — 数值类型：解码逐位对照 gguf 包的结果，F16、BF16 的舍入穷举
 * 对照文件由 tests/tools/make_gguf_blocks.py 生成（张量名即类型名）。 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "io/gguf.h"

static uint32_t bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static float from_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static void check_tensor(const FileTensor *t, const FileTensor *want) {
    assert_non_null(want);
    assert_string_equal(dtype_name(t->dtype), t->name);
    assert_int_equal(t->n_dims, want->n_dims);
    assert_memory_equal(t->shape, want->shape, sizeof t->shape);
    size_t n = want->bytes / 4;
    float *got = malloc(want->bytes), *ref = malloc(want->bytes);
    assert_true(got && ref);
    assert_true(dtype_decode(t->dtype, t->data, got, n));
    memcpy(ref, want->data, want->bytes);
    for (size_t i = 0; i < n; i++)
        if (bits(got[i]) != bits(ref[i]))
            fail_msg("%s[%zu] = %.9g，应为 %.9g", t->name, i, got[i], ref[i]);
    free(got);
    free(ref);
}

static void test_blocks(void **state) {
    (void)state;
    Err e = {0};
    Gguf g;
    TensorFile want;
    const char *other = getenv("PTQ_GGUF_BLOCKS"); /* 另一份（大量的随机块） */
    char blocks[1024], decoded[1024];
    snprintf(blocks, sizeof blocks, "%s.gguf", other ? other : "tests/data/gguf_blocks");
    snprintf(decoded, sizeof decoded, "%s.safetensors", other ? other : "tests/data/gguf_blocks");
    if (!gguf_open(&g, blocks, &e) || !safetensors_open(&want, decoded, &e)) fail_msg("%s", e.msg);
    assert_int_equal(g.file.n_tensors, 27);
    for (size_t i = 0; i < g.file.n_tensors; i++)
        check_tensor(&g.file.tensors[i], tensorfile_find(&want, g.file.tensors[i].name));
    gguf_close(&g);
    tensorfile_close(&want);
}

/* F16 的定义：符号 × 2^(指数-15) × 1.尾数；指数 0 为次正规，31 为 Inf/NaN。 */
static float f16_reference(unsigned h) {
    int exp = (int)(h >> 10 & 31), man = (int)(h & 1023);
    double sign = h & 0x8000 ? -1.0 : 1.0;
    if (exp == 31) return man ? NAN : (float)(sign * INFINITY);
    return (float)(sign * (exp ? ldexp(1024 + man, exp - 25) : ldexp(man, -24)));
}

static void test_f16_all(void **state) {
    (void)state;
    for (unsigned h = 0; h < 65536; h++) {
        float got = f16_to_f32((uint16_t)h), want = f16_reference(h);
        if (isnan(want)) {
            assert_true(isnan(got) && isnan(f16_to_f32(f32_to_f16(got))));
            assert_int_equal(f32_to_f16(got) & 0x8000, h & 0x8000);
        } else {
            assert_int_equal(bits(got), bits(want));
            assert_int_equal(f32_to_f16(got), h);
        }
    }
}

/* 相邻两数 h、h+1 的中点舍入到偶数者，中点两侧各归最近者；正负对称。 */
static void check_halfway(unsigned h, float low, float high, uint16_t (*convert)(float)) {
    float mid = (float)(((double)low + (double)high) / 2);
    unsigned even = h & 1 ? h + 1 : h;
    for (unsigned sign = 0; sign < 2; sign++) {
        float s = sign ? -1.0f : 1.0f;
        unsigned top = sign << 15;
        if (convert(s * mid) != (top | even) || convert(s * nextafterf(mid, 0)) != (top | h) ||
            convert(s * nextafterf(mid, INFINITY)) != (top | (h + 1)))
            fail_msg("%#x 与 %#x 之间舍入不对", h, h + 1);
    }
}

static void test_f16_rounding(void **state) {
    (void)state;
    for (unsigned h = 0; h < 0x7BFF; h++)
        check_halfway(h, f16_reference(h), f16_reference(h + 1), f32_to_f16);
    check_halfway(0x7BFF, 65504.0f, 65536.0f, f32_to_f16); /* 溢出到 Inf */
    assert_int_equal(f32_to_f16(3.4e38f), 0x7C00);
    assert_int_equal(f32_to_f16(-INFINITY), 0xFC00);
    assert_int_equal(f32_to_f16(1e-45f), 0);
    assert_int_equal(f32_to_f16(-0.0f), 0x8000);
}

static void test_bf16_rounding(void **state) {
    (void)state;
    for (unsigned h = 0; h < 0x7F7F; h++)
        check_halfway(h, from_bits(h << 16), from_bits((h + 1) << 16), f32_to_bf16);
    for (unsigned h = 0; h < 65536; h++) {
        float f = bf16_to_f32((uint16_t)h);
        if (isnan(f))
            assert_true(isnan(bf16_to_f32(f32_to_bf16(f))));
        else
            assert_int_equal(f32_to_bf16(f), h);
    }
    assert_int_equal(f32_to_bf16(3.4028235e38f), 0x7F80); /* FLT_MAX 舍入到 Inf */
    assert_true(isnan(bf16_to_f32(f32_to_bf16(from_bits(0x7F800001u))))); /* 低位 NaN 不变成 Inf */
}

static void test_sizes(void **state) {
    (void)state;
    assert_int_equal(dtype_bytes(DT_F32, 3), 12);
    assert_int_equal(dtype_bytes(DT_Q4_K, 512), 288);
    assert_int_equal(dtype_bytes(DT_Q8_0, 0), 0);
    assert_int_equal(dtype_bytes(DT_Q8_0, 33), SIZE_MAX);
    assert_int_equal(dtype_bytes(DT_F64, SIZE_MAX / 4), SIZE_MAX);
    assert_int_equal(dtype_bytes(DT_NONE, 1), SIZE_MAX);
    assert_int_equal(dtype_bytes((DType)1000, 1), SIZE_MAX);
    assert_string_equal(dtype_name((DType)1000), "?");
    float out[32];
    assert_false(dtype_decode(DT_I32, "0123", out, 1));
    assert_false(dtype_decode(DT_Q8_0, "", out, 31));
    assert_false(dtype_decode(DT_NONE, "", out, 0));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks),        cmocka_unit_test(test_f16_all),
        cmocka_unit_test(test_f16_rounding),  cmocka_unit_test(test_bf16_rounding),
        cmocka_unit_test(test_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
