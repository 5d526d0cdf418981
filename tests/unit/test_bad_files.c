/* test_bad_files — tests/data/{bad,ok} 的每个文件都给出 expected.tsv 所写的结果
 * 表的第一列是种类；要加一种（如整个模型文件夹），在 KINDS 中加一行。
 * 另查：文件夹里没有漏登记的文件，出错后内存全部归还。 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "io/gguf.h"
#include "io/json.h"
#include "io/parquet.h"
#include "io/yaml.h"
#include "model/tokenizer_internal.h"
#include "result_writer.h"

/* 打开文件。返回: 顶层项数；出错为 -1 并置 e。 */
typedef long (*OpenFn)(const char *path, Err *e);

static long open_yaml(const char *path, Err *e) {
    Arena a = {0};
    YamlNode *v = yaml_load(&a, path, e);
    long n = v ? (long)v->n : -1;
    arena_free(&a);
    return n;
}

static long open_json(const char *path, Err *e) {
    json_t *v = json_load(path, e);
    long n = !v ? -1 : (long)(json_is_array(v) ? json_array_size(v) : json_object_size(v));
    json_decref(v);
    return n;
}

static long open_safetensors(const char *path, Err *e) {
    TensorFile f;
    if (!safetensors_open(&f, path, e)) return -1;
    long n = (long)f.n_tensors;
    tensorfile_close(&f);
    return n;
}

static long open_gguf(const char *path, Err *e) {
    Gguf g;
    if (!gguf_open(&g, path, e)) return -1;
    long n = (long)g.file.n_tensors;
    gguf_close(&g);
    return n;
}

static long open_tokenizer(const char *path, Err *e) {
    FileMap m;
    Tokenizer *t = NULL;
    if (!file_map(&m, path, e)) return -1;
    bool ok = tokenizer_open_json(&t, path, m.data, m.size, NULL, e);
    long n = ok ? tokenizer_vocab_size(t) : -1;
    tokenizer_close(t);
    file_unmap(&m);
    return n;
}

static long open_gguf_tokenizer(const char *path, Err *e) {
    Gguf g;
    Tokenizer *t = NULL;
    if (!gguf_open(&g, path, e)) return -1;
    long n = tokenizer_open_gguf(&t, &g, e) ? tokenizer_vocab_size(t) : -1;
    tokenizer_close(t);
    gguf_close(&g);
    return n;
}

/* 内存的上限取得很小：炸弹须在其内被拒绝。 */
static long open_parquet(const char *path, Err *e) {
    FileMap m;
    if (!file_map(&m, path, e)) return -1;
    json_t *rows = parquet_rows(path, m.data, m.size, (size_t)32 << 20, e);
    long n = rows ? (long)json_array_size(rows) : -1;
    json_decref(rows);
    file_unmap(&m);
    return n;
}

/* 结果还要过内容的检查；项数为数据集的个数。 */
static long open_result(const char *path, Err *e) {
    json_t *v = json_load(path, e);
    bool ok = v && result_check(v, path, e);
    json_t *ppl = json_object_get(json_object_get(v, "results"), "ppl");
    long n = ok ? (long)json_object_size(ppl) : -1;
    json_decref(v);
    return n;
}

static const struct {
    const char *kind;
    OpenFn open;
} KINDS[] = {
    {"yaml", open_yaml},
    {"json", open_json},
    {"safetensors", open_safetensors},
    {"gguf", open_gguf},
    {"tokenizer", open_tokenizer},
    {"tokenizer_gguf", open_gguf_tokenizer},
    {"result", open_result},
    {"parquet", open_parquet},
};

static OpenFn opener(const char *kind) {
    for (size_t i = 0; i < sizeof KINDS / sizeof *KINDS; i++)
        if (strcmp(KINDS[i].kind, kind) == 0) return KINDS[i].open;
    fail_msg("expected.tsv 中的种类 %s 没有登记", kind);
    return NULL;
}

/* 把一行按制表符切开。返回: 列数。 */
static int split(char *line, char *cols[4]) {
    int n = 0;
    for (char *save = NULL, *p = strtok_r(line, "\t", &save); p && n < 4;
         p = strtok_r(NULL, "\t", &save))
        cols[n++] = p;
    return n;
}

/* 依次取表中的行。返回: 处理的行数。 */
static int each_row(const char *folder, int want_cols, void (*check)(char *cols[4])) {
    Arena a = {0};
    Err e = {0};
    char *path = arena_printf(&a, &e, "tests/data/%s/expected.tsv", folder);
    char *text = file_read(&a, path, 1 << 20, NULL, &e);
    if (!text) fail_msg("%s（要在仓库根目录运行）", e.msg);
    int rows = 0;
    for (char *save = NULL, *line = strtok_r(text, "\n", &save); line;
         line = strtok_r(NULL, "\n", &save)) {
        if (*line == '#') continue;
        char *cols[4];
        assert_int_equal(split(line, cols), want_cols);
        check(cols);
        rows++;
    }
    arena_free(&a);
    return rows;
}

static void check_bad(char *cols[4]) {
    char path[512];
    snprintf(path, sizeof path, "tests/data/bad/%s", cols[1]);
    Err e = {0};
    size_t before = allocator_default()->used;
    long n = opener(cols[0])(path, &e);
    if (n >= 0) fail_msg("%s 应当出错，却打开了", path);
    if (strcmp(err_code_name(e.code), cols[2]) != 0)
        fail_msg("%s 的错误码是 %s，应为 %s（%s）", path, err_code_name(e.code), cols[2], e.msg);
    if (!strstr(e.msg, cols[3])) fail_msg("%s 的消息「%s」中没有「%s」", path, e.msg, cols[3]);
    if (strncmp(e.msg, path, strlen(path)) != 0) fail_msg("消息没有以文件名开头: %s", e.msg);
    assert_int_equal(allocator_default()->used, before);
}

static void check_ok(char *cols[4]) {
    char path[512];
    snprintf(path, sizeof path, "tests/data/ok/%s", cols[1]);
    Err e = {0};
    size_t before = allocator_default()->used;
    long n = opener(cols[0])(path, &e);
    if (n < 0) fail_msg("%s 应当打开，却出错: %s", path, e.msg);
    if (n != strtol(cols[2], NULL, 10)) fail_msg("%s 有 %ld 项，应为 %s", path, n, cols[2]);
    assert_int_equal(allocator_default()->used, before);
}

static void test_bad(void **state) {
    (void)state;
    assert_true(each_row("bad", 4, check_bad) > 100);
}

static void test_ok(void **state) {
    (void)state;
    assert_true(each_row("ok", 3, check_ok) > 15);
}

static void one_listed(const char *folder, const char *kind, const char *table) {
    Arena a = {0};
    Err e = {0};
    char **names, *dir = arena_printf(&a, &e, "tests/data/%s/%s", folder, kind);
    size_t n;
    if (!file_list(&a, dir, "", &names, &n, &e)) fail_msg("%s", e.msg);
    assert_true(n > 0);
    for (size_t i = 0; i < n; i++) {
        if (strcmp(names[i], "README.md") == 0) continue;
        char *want = arena_printf(&a, &e, "%s\t%s/%s\t", kind, kind, names[i]);
        if (!strstr(table, want)) fail_msg("%s/%s 没有登记在 expected.tsv", dir, names[i]);
    }
    arena_free(&a);
}

static void test_all_listed(void **state) {
    (void)state;
    static const char *const FOLDERS[] = {"bad", "ok"};
    for (int i = 0; i < 2; i++) {
        Arena a = {0};
        Err e = {0};
        char *path = arena_printf(&a, &e, "tests/data/%s/expected.tsv", FOLDERS[i]);
        char *table = file_read(&a, path, 1 << 20, NULL, &e);
        if (!table) fail_msg("%s", e.msg);
        for (size_t k = 0; k < sizeof KINDS / sizeof *KINDS; k++)
            one_listed(FOLDERS[i], KINDS[k].kind, table);
        arena_free(&a);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bad), cmocka_unit_test(test_ok),
                                       cmocka_unit_test(test_all_listed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
