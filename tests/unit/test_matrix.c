/* test_matrix — 实验 YAML 的展开：次序、公共设置、值的写法、错误的位置 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "config.h"
#include "io/file.h"
#include "matrix.h"
#include "tmp.h"

static bool load(Matrix *m, const char *text, Err *e) {
    *e = (Err){0};
    const char *path = tmp_path("x.yaml");
    tmp_write(path, text, strlen(text));
    static const char *const EXTRA[] = {"eval.limit=2", "weight.group_size=32"};
    return matrix_load(m, ".", path, EXTRA, 2, e);
}

static void test_expand(void **state) {
    (void)state;
    Matrix m;
    Err e;
    assert_true(load(&m,
                     "name: x\nmodels: [demo, other]\ntracks: [A, b]\nmethods:\n"
                     "  - {name: rtn, label: L, overrides: {weight.w_bits: 3, eval: {speed: false}}}\n"
                     "  - fp16\noverrides: {weight.scheme: 'asymmetric', seed: 7}\n", &e));
    assert_int_equal(m.n, 8);
    for (size_t i = 0; i < m.n; i++) { /* 每个模型与轨道里 fp16 在前 */
        assert_string_equal(m.cells[i].method, i % 2 ? "rtn" : "fp16");
        assert_string_equal(m.cells[i].model, i < 4 ? "demo" : "other");
        assert_string_equal(m.cells[i].track, i % 4 < 2 ? "A" : "b");
    }
    const Cell *fp16 = &m.cells[0], *rtn = &m.cells[1];
    /* 别的方法才有的公共设置不用于 fp16 */
    assert_int_equal(fp16->n_overrides, 2);
    assert_string_equal(fp16->overrides[0], "seed=7");
    assert_string_equal(fp16->overrides[1], "eval.limit=2");
    const char *want[] = {"weight.scheme='asymmetric'", "seed=7", "weight.w_bits=3",
                          "eval.speed=false", "eval.limit=2", "weight.group_size=32"};
    assert_int_equal(rtn->n_overrides, 6);
    for (size_t i = 0; i < 6; i++) assert_string_equal(rtn->overrides[i], want[i]);
    assert_string_equal(rtn->label, "L");
    matrix_free(&m);
}

/* 任何字符串经 "键=值" 往返后不变。 */
static void test_quoting(void **state) {
    (void)state;
    Matrix m;
    Err e;
    assert_true(load(&m, "name: x\nmodels: [demo]\ntracks: [A]\nmethods: [fp16]\n"
                         "overrides: {data_dir: \"it's # 1\", eval.ppl_datasets: [\"4\", 'a, b', c]}\n",
                     &e));
    assert_string_equal(m.cells[0].overrides[0], "data_dir='it''s # 1'");
    assert_string_equal(m.cells[0].overrides[1], "eval.ppl_datasets=['4', 'a, b', 'c']");
    Config c;
    ConfigRequest r = {.root = ".", .model = "demo", .method = "fp16", .track = "A",
                       .overrides = m.cells[0].overrides, .n_overrides = 2};
    assert_true(config_load(&c, &r, &e));
    assert_string_equal(c.run.data_dir, "./it's # 1");
    assert_int_equal(c.run.n_ppl_datasets, 3);
    assert_string_equal(c.run.ppl_datasets[0], "4");
    assert_string_equal(c.run.ppl_datasets[1], "a, b");
    config_free(&c);
    matrix_free(&m);
}

static void refuse(const char *text, const char *want) {
    Matrix m;
    Err e;
    if (load(&m, text, &e)) {
        matrix_free(&m);
        fail_msg("本应拒绝: %s", want);
    }
    if (!strstr(e.msg, want)) fail_msg("消息 '%s' 里没有 '%s'", e.msg, want);
}

static void test_errors(void **state) {
    (void)state;
    refuse("models: [a]\n", "缺少 'name'");
    refuse("name: x\nmodls: [a]\n", "x.yaml:2: 未知的键 'modls'，是否想写 'models'");
    refuse("name: x\nmodels: []\ntracks: [A]\nmethods: [fp16]\n", "x.yaml:2: 'models'");
    refuse("name: x\nmodels: [[a]]\ntracks: [A]\nmethods: [fp16]\n", "每一项应为名字");
    refuse("name: x\nmodels: [a]\nmethods: [fp16]\n", "缺少 'tracks'");
    refuse("name: x\nmodels: [a]\ntracks: [A]\nmethods: fp16\n", "x.yaml:4: 'methods'");
    refuse("name: x\nmodels: [a]\ntracks: [A]\nmethods: [{label: y}]\n", "x.yaml:4: methods");
    refuse("name: x\nmodels: [a]\ntracks: [A]\nmethods: [{name: rtn, overides: {}}]\n", "'overrides'");
    refuse("name: x\nmodels: [a]\ntracks: [A]\nmethods: [fp16]\noverrides: 3\n", "x.yaml:5");
    refuse("name: x\nmodels: [a]\ntracks: [A]\nmethods: [fp16]\noverrides: {a: [[1]]}\n", "简单的值");
    refuse("[1]\n", "最外层应为映射");
    Matrix m;
    Err e = {0};
    assert_false(matrix_load(&m, ".", "no-such-experiment", NULL, 0, &e));
    assert_int_equal(e.code, ERR_MISSING);
}

/* 随项目发布的每个实验：展开后每个单元的配置都读得通。 */
static void test_shipped(void **state) {
    (void)state;
    Arena a = {0};
    char **names;
    size_t n;
    Err e = {0};
    assert_true(file_list(&a, "configs/experiments", ".yaml", &names, &n, &e));
    assert_true(n >= 1);
    for (size_t i = 0; i < n; i++) {
        Matrix m;
        char *path = file_join(&a, "configs/experiments", names[i], &e);
        if (!matrix_load(&m, ".", path, NULL, 0, &e)) fail_msg("%s", e.msg);
        for (size_t k = 0; k < m.n; k++) {
            Config c;
            ConfigRequest r = {.root = ".", .model = m.cells[k].model,
                               .method = m.cells[k].method, .track = m.cells[k].track,
                               .overrides = m.cells[k].overrides,
                               .n_overrides = m.cells[k].n_overrides};
            if (!config_load(&c, &r, &e)) fail_msg("%s: %s", path, e.msg);
            config_free(&c);
        }
        matrix_free(&m);
    }
    arena_free(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_expand), cmocka_unit_test(test_quoting),
        cmocka_unit_test(test_errors), cmocka_unit_test(test_shipped),
    };
    return cmocka_run_group_tests(tests, tmp_make, tmp_done);
}
