/* tokenize — 把文件分词成 ids，供与其他程序对照
 * --file: 整个文件一串 ids；--jsonl: 每行一个 JSON 字符串进，每行一个 ids 数组出。结果只写到标准输出。 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "config.h"
#include "env_info.h"
#include "io/file.h"
#include "io/json.h"
#include "model/tokenizer.h"
#include "scripts/cli.h"
#include "scripts/commands.h"

typedef struct Args {
    const char *model, *file, *jsonl;
    bool no_special;
} Args;

/* 含 tokenizer.json 的文件夹，或 GGUF 文件。 */
static bool open_path(Tokenizer **t, const char *path, Err *e) {
    if (file_is_dir(path)) return tokenizer_open_dir(t, path, e);
    Gguf g;
    if (!gguf_open(&g, path, e)) return false;
    bool ok = tokenizer_open_gguf(t, &g, e);
    gguf_close(&g);
    return ok;
}

/* 按配置名（或只含 GGUF 的文件夹）找到模型，再打开它的分词器。 */
static bool open_configured(Tokenizer **t, const char *model, Err *e) {
    Config c;
    ConfigRequest r = {.root = env_project_root(), .model = model, .method = "fp16", .track = "A"};
    if (!config_load(&c, &r, e)) return false;
    const char *path = config_fetch_model(&c, e);
    bool ok = path && open_path(t, path, e);
    config_free(&c);
    return ok;
}

static bool open_model(Tokenizer **t, const char *model, Err *e) {
    Arena a = {0};
    char *json = file_join(&a, model, "tokenizer.json", e);
    bool direct = json && (file_exists(json) || (file_exists(model) && !file_is_dir(model)));
    bool ok = json && (direct ? open_path(t, model, e) : open_configured(t, model, e));
    arena_free(&a);
    return ok;
}

static void print_ids(const TokenIds *ids) {
    putchar('[');
    for (size_t i = 0; i < ids->n; i++) printf(i ? ", %d" : "%d", ids->ids[i]);
    puts("]");
}

static bool run_file(const Tokenizer *t, const Args *a, Err *e) {
    FileMap m;
    TokenIds ids = {0};
    if (!file_map(&m, a->file, e)) return false;
    const char *text = m.size ? (const char *)m.data : "";
    bool ok = tokenizer_encode(t, text, m.size, !a->no_special, &ids, e);
    if (ok) print_ids(&ids);
    token_ids_free(&ids);
    file_unmap(&m);
    return ok;
}

static bool run_line(const Tokenizer *t, const Args *a, const char *line, size_t len, size_t number,
                     Err *e) {
    json_t *v = json_parse("JSON", line, len, e);
    if (!v) return err_wrap(e, "%s:%zu", a->jsonl, number);
    TokenIds ids = {0};
    bool ok = json_is_string(v) ||
              err_set(e, ERR_FORMAT, "%s:%zu: 应是一个 JSON 字符串", a->jsonl, number);
    ok = ok && tokenizer_encode(t, json_string_value(v), json_string_length(v), !a->no_special, &ids,
                                e);
    if (ok) print_ids(&ids);
    token_ids_free(&ids);
    json_decref(v);
    return ok;
}

static bool run_jsonl(const Tokenizer *t, const Args *a, Err *e) {
    FileMap m;
    if (!file_map(&m, a->jsonl, e)) return false;
    const char *p = (const char *)m.data;
    bool ok = true;
    for (size_t at = 0, number = 1; ok && at < m.size; number++) {
        const char *end = memchr(p + at, '\n', m.size - at);
        size_t len = end ? (size_t)(end - (p + at)) : m.size - at;
        ok = run_line(t, a, p + at, len, number, e);
        at += len + 1;
    }
    file_unmap(&m);
    return ok;
}

int cmd_tokenize(int argc, char **argv) {
    Args a = {0};
    const CliFlag flags[] = {
        {"--model", CLI_STR, &a.model, "名字|路径",
         "configs/models/ 里的名字、含 tokenizer.json 的文件夹或 GGUF 文件", true},
        {"--file", CLI_STR, &a.file, "文件", "打印整个文件的 ids（一个 JSON 数组）", false},
        {"--jsonl", CLI_STR, &a.jsonl, "文件", "每行一个 JSON 字符串，每行打印一个 ids 数组", false},
        {"--no_special", CLI_BOOL, &a.no_special, NULL, "不添加 BOS/EOS", false},
        {0}};
    const CliSpec spec = {.command = "tokenize", .about = "把文件分词成 ids", .flags = flags,
                          .epilog = "例: ptq-bench tokenize --model demo --file text.txt"};
    CliResult parsed = cli_parse(&spec, argc, argv);
    if (parsed != CLI_GO) return parsed == CLI_DONE ? 0 : err_exit_code(ERR_USAGE);
    Err e = {0};
    if (!a.file == !a.jsonl) {
        err_set(&e, ERR_USAGE, "--file 与 --jsonl 要给且只给一个");
        return cli_fail(&e);
    }
    Tokenizer *t = NULL;
    bool ok = open_model(&t, a.model, &e) &&
              (a.file ? run_file(t, &a, &e) : run_jsonl(t, &a, &e));
    tokenizer_close(t);
    if (ok && (fflush(stdout) != 0 || ferror(stdout)))
        ok = err_set(&e, ERR_IO, "写标准输出失败");
    return ok ? 0 : cli_fail(&e);
}
