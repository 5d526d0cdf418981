/* test_npy — .npy 的写与读
 * 文件头逐字节对照 numpy 2 写出的样本；坏文件逐一报错。 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "io/file.h"
#include "io/npy.h"
#include "tests/unit/tmp.h"

/* numpy.save(np.float32([[1,2,3],[4,5,6]])) 的头 128 字节：字典后补空格到 127，再换行。 */
static void test_header_like_numpy(void **state) {
    (void)state;
    Err e = {0};
    Arena a = {0};
    float data[6] = {1, 2, 3, 4, 5, 6};
    int64_t shape[2] = {2, 3};
    const char *p = tmp_path("a.npy");
    if (!npy_write(p, DT_F32, 2, shape, data, &e)) fail_msg("%s", e.msg);
    size_t len;
    char *got = file_read(&a, p, 1000, &len, &e), want[128];
    const char *dict = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
    memset(want, ' ', sizeof want);
    memcpy(want, "\x93NUMPY\x01\x00\x76\x00", 10);
    memcpy(want + 10, dict, strlen(dict));
    want[127] = '\n';
    assert_int_equal(len, 128 + sizeof data);
    assert_memory_equal(got, want, 128);
    assert_memory_equal(got + 128, data, sizeof data);
    arena_free(&a);
}

static void round_trip(DType t, int n_dims, const int64_t *shape, size_t n) {
    Err e = {0};
    Arena a = {0};
    Npy v;
    uint8_t data[512];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i * 7);
    const char *p = tmp_path("r.npy");
    if (!npy_write(p, t, n_dims, shape, data, &e) || !npy_read(&a, p, &v, &e))
        fail_msg("%s", e.msg);
    assert_int_equal(v.dtype, t);
    assert_int_equal(v.n_dims, n_dims);
    assert_int_equal(v.n, n);
    for (int i = 0; i < n_dims; i++) assert_int_equal(v.shape[i], shape[i]);
    assert_memory_equal(v.data, data, dtype_bytes(t, n));
    arena_free(&a);
}

static void test_round_trip(void **state) {
    (void)state;
    static const DType TYPES[] = {DT_F32, DT_F16, DT_F64, DT_I8,  DT_U8,
                                  DT_I16, DT_I32, DT_I64, DT_BOOL};
    for (size_t i = 0; i < sizeof TYPES / sizeof *TYPES; i++) {
        round_trip(TYPES[i], 0, NULL, 1);
        round_trip(TYPES[i], 1, (int64_t[]){7}, 7);
        round_trip(TYPES[i], 2, (int64_t[]){0, 5}, 0);
        round_trip(TYPES[i], 8, (int64_t[]){1, 2, 1, 3, 1, 2, 1, 1}, 12);
    }
}

static void expect_error(const char *head, size_t data_bytes, ErrCode code, const char *text) {
    uint8_t file[1200] = "\x93NUMPY\x01";
    size_t n = strlen(head);
    file[8] = (uint8_t)n;
    memcpy(file + 10, head, n);
    const char *p = tmp_path("bad.npy");
    tmp_write(p, file, 10 + n + data_bytes);
    Err e = {0};
    Arena a = {0};
    Npy v;
    if (npy_read(&a, p, &v, &e)) fail_msg("应当出错: %s", head);
    if (e.code != code || !strstr(e.msg, text)) fail_msg("「%s」得到: %s", head, e.msg);
    arena_free(&a);
}

static void test_bad(void **state) {
    (void)state;
    expect_error("", 0, ERR_FORMAT, "不支持的元素类型");
    expect_error("{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }", 4, ERR_UNSUPPORTED,
                 "不支持的元素类型");
    expect_error("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2), }", 16,
                 ERR_UNSUPPORTED, "Fortran");
    expect_error("{'descr': '<f4', 'shape': (2, 2), }", 16, ERR_UNSUPPORTED, "Fortran");
    expect_error("{'descr': '<f4', 'fortran_order': False, }", 4, ERR_FORMAT, "缺少 shape");
    expect_error("{'descr': '<f4', 'fortran_order': False, 'shape': (2", 8, ERR_FORMAT, "shape");
    expect_error("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)", 8, ERR_FORMAT,
                 "shape");
    expect_error("{'descr': '<f4', 'fortran_order': False, 'shape': (x,)", 8, ERR_FORMAT, "shape");
    expect_error("{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1)", 4,
                 ERR_FORMAT, "8 维");
    expect_error("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4)", 4,
                 ERR_FORMAT, "溢出");
    expect_error("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)", 4, ERR_FORMAT,
                 "数据应为 8 字节，实有 4 字节");
}

static void test_bad_container(void **state) {
    (void)state;
    Err e = {0};
    Arena a = {0};
    Npy v;
    const char *p = tmp_path("c.npy");
    tmp_write(p, "\x93NUMPY\x02\x00\x10\x00\x00\x00", 12);
    assert_false(npy_read(&a, p, &v, &e));
    assert_int_equal(e.code, ERR_UNSUPPORTED);
    tmp_write(p, "\x93NUMPY\x01\x00\xff\xff", 10);
    assert_false(npy_read(&a, p, &v, &e));
    assert_non_null(strstr(e.msg, "文件头被截断"));
    tmp_write(p, "", 0);
    assert_false(npy_read(&a, p, &v, &e));
    assert_non_null(strstr(e.msg, "不是 .npy"));
    assert_false(npy_read(&a, tmp_path("absent.npy"), &v, &e));
    assert_int_equal(e.code, ERR_IO);
    assert_false(npy_write(p, DT_Q4_0, 1, (int64_t[]){32}, "", &e));
    assert_int_equal(e.code, ERR_UNSUPPORTED);
    assert_false(npy_write(p, DT_F32, 1, (int64_t[]){-1}, "", &e));
    assert_int_equal(e.code, ERR_FORMAT);
    arena_free(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_header_like_numpy), cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_bad), cmocka_unit_test(test_bad_container),
    };
    return cmocka_run_group_tests(tests, tmp_make, tmp_done);
}
