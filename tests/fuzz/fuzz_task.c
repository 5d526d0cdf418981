/* fuzz_task — 任务文件与任务数据的模糊测试
 * 输入以第一个 0x00 分成任务 YAML 与数据（首字节为偶数当 JSONL，奇数当 CSV）。除不崩溃外还查：出错必有错误码；
 * 打开成功的任务，每份文档都有请求，选择题的请求数与选项数相符。 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/file.h"
#include "tasks/task_run.h"

static char dir[64];

static void save(const char *path, const void *data, size_t len) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, len, f) != len || fclose(f) != 0) abort();
}

static void check_rows(const uint8_t *data, size_t size, bool csv) {
    Err e = {0};
    json_t *rows = csv ? task_rows_csv("fuzz", (const char *)data, size, &e)
                       : task_rows_jsonl("fuzz", (const char *)data, size, &e);
    if (!rows && e.code == ERR_NONE) abort();
    for (size_t i = 0; i < json_array_size(rows); i++)
        if (!json_is_object(json_array_get(rows, i))) abort();
    json_decref(rows);
}

static void check_task(const Task *t) {
    for (size_t d = 0; d < t->n_docs; d++) {
        const TaskDoc *doc = &t->docs[d];
        if (doc->n_requests == 0 || !doc->target) abort();
        if (t->output == OUT_CHOICE && doc->n_requests < json_array_size(doc->choices)) abort();
    }
}

static void prepare(void) {
    Err e = {0};
    char path[128];
    snprintf(dir, sizeof dir, "/tmp/fuzz-task-%d", (int)getpid());
    snprintf(path, sizeof path, "%s/data/raw/tasks/t", dir);
    if (!file_mkdirs(path, &e)) abort();
    snprintf(path, sizeof path, "%s/tasks", dir);
    if (!file_mkdirs(path, &e)) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    if (!dir[0]) prepare();
    bool csv = data[0] % 2;
    const uint8_t *yaml = data + 1, *cut = memchr(yaml, 0, size - 1);
    size_t n_yaml = cut ? (size_t)(cut - yaml) : size - 1, n_rows = cut ? size - n_yaml - 2 : 0;
    const uint8_t *rows = cut ? cut + 1 : yaml;
    char path[160], root[128];
    check_rows(rows, n_rows, csv);
    snprintf(path, sizeof path, "%s/tasks/t.yaml", dir);
    save(path, yaml, n_yaml);
    Err e = {0};
    TaskChoice choice = {.name = "t", .file = "t.yaml", .config = task_config_load(path, &e)};
    if (!choice.config && e.code == ERR_NONE) abort();
    if (!choice.config) return 0;
    snprintf(root, sizeof root, "%s/data", dir);
    snprintf(path, sizeof path, "%s/raw/tasks/t/test.%s", root, csv ? "csv" : "jsonl");
    save(path, rows, n_rows);
    Task t;
    TaskOptions o = {.data_dir = root, .limit = 8, .fewshot = -1};
    bool opened = task_open(&t, &choice, &o, &e);
    bool ok = opened && task_build(&t, &e);
    if (ok) check_task(&t);
    if (!ok && e.code == ERR_NONE) abort();
    if (opened) task_close(&t);
    json_decref(choice.config);
    unlink(path);
    return 0;
}
