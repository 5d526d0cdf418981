/* serve — 把量化后的模型开成 OpenAI 兼容的 HTTP 服务（/v1/completions）
 * 打开与量化走的是 run_one 同一条路（experiment.h），服务的就是装包后的形式；Ctrl-C 干净退出。 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/str.h"
#include "env_info.h"
#include "experiment.h"
#include "io/file.h"
#include "model/blockfile.h"
#include "registry.h"
#include "scripts/cli.h"
#include "scripts/commands.h"
#include "serve/http.h"

typedef struct Args {
    const char *model, *method, *track, *threads, *compute, *max_memory, *device;
    const char *host, *port, *key_file, *max_body, *max_connections, *max_queue, *idle;
    CliList overrides;
    bool quiet;
} Args;

static CliResult parse(Args *a, int argc, char **argv) {
    const CliFlag flags[] = {
        {"--model", CLI_STR, &a->model, "名字|路径", "configs/models/ 里的名字、模型文件夹或 GGUF 文件",
         true},
        {"--method", CLI_STR, &a->method, "名字", "量化方法（默认 fp16）", false},
        {"--track", CLI_STR, &a->track, "A|B|C", "轨道（默认方法支持的第一个）", false},
        {"--override", CLI_LIST, &a->overrides, "键=值", "覆盖一个设置，值按 YAML 定型", false},
        {"--host", CLI_STR, &a->host, "地址", "监听的地址（默认 127.0.0.1，只有本机能连）", false},
        {"--port", CLI_STR, &a->port, "N", "端口（默认 8000），0 为任选空闲的", false},
        {"--api_key_file", CLI_STR, &a->key_file, "文件",
         "首行是密钥，请求须带 Authorization: Bearer；也可用环境变量 PTQ_API_KEY", false},
        {"--max_body", CLI_STR, &a->max_body, "大小", "请求体的上限（默认 16MB）", false},
        {"--max_connections", CLI_STR, &a->max_connections, "N", "同时的连接数（默认 256）", false},
        {"--max_queue", CLI_STR, &a->max_queue, "N", "排队与在算的请求数（默认 128）", false},
        {"--idle", CLI_STR, &a->idle, "秒", "连接上这么久没有动静就断开（默认 60）", false},
        {"--threads", CLI_STR, &a->threads, "N", "计算线程数，0 为全部核", false},
        {"--compute", CLI_STR, &a->compute, "auto|float32|bfloat16", "矩阵乘的计算类型", false},
        {"--device", CLI_STR, &a->device, "auto|cpu|cuda", "运行设备", false},
        {"--max_memory", CLI_STR, &a->max_memory, "大小", "内存（GPU 上是显存）上限，如 400MB：装不下时逐块载入", false},
        {"--quiet", CLI_BOOL, &a->quiet, NULL, "只打印警告与错误", false},
        {0}};
    const CliSpec spec = {.command = "serve",
                          .about = "把量化后的模型开成 OpenAI 兼容的 HTTP 服务",
                          .flags = flags,
                          .epilog = "例: ptq-bench serve --model demo --method rtn --port 8000\n"
                                    "    curl http://127.0.0.1:8000/v1/completions -d "
                                    "'{\"prompt\": \"Once\", \"max_tokens\": 8, \"temperature\": 0}'\n"
                                    "说明: docs/serve.md"};
    return cli_parse(&spec, argc, argv);
}

static bool number(const char *flag, const char *text, long def, long lo, long hi, long *out, Err *e) {
    char *end;
    *out = def;
    if (!text) return true;
    errno = 0;
    *out = strtol(text, &end, 10);
    if (!errno && end != text && !*end && *out >= lo && *out <= hi) return true;
    return err_set(e, ERR_USAGE, "%s 应为 %ld 到 %ld 的整数，实为 '%.40s'", flag, lo, hi, text);
}

/* 密钥：文件的首行，或环境变量。 */
static bool api_key(const Args *a, Arena *arena, const char **key, Err *e) {
    const char *env = getenv("PTQ_API_KEY");
    *key = env && *env ? env : NULL;
    if (!a->key_file) return true;
    FileMap m;
    if (!file_map(&m, a->key_file, e)) return err_wrap(e, "--api_key_file");
    size_t n = 0;
    const char *text = (const char *)m.data;
    while (n < m.size && n < 4096 && text[n] > ' ') n++;
    *key = arena_strndup(arena, text ? text : "", n, e);
    file_unmap(&m);
    return *key && (n > 0 || err_set(e, ERR_USAGE, "--api_key_file %s: 首行是空的", a->key_file));
}

static bool server_options(const Args *a, Arena *arena, ServerOptions *o, Err *e) {
    long port, connections, queue, idle;
    size_t body = (size_t)16 << 20;
    if (!number("--port", a->port, 8000, 0, 65535, &port, e) ||
        !number("--max_connections", a->max_connections, 256, 1, 10000, &connections, e) ||
        !number("--max_queue", a->max_queue, 128, 1, 10000, &queue, e) ||
        !number("--idle", a->idle, 60, 1, 86400, &idle, e))
        return false;
    if (a->max_body && (!str_parse_bytes(a->max_body, &body) || body > (size_t)256 << 20))
        return err_set(e, ERR_USAGE, "--max_body 应为至多 256MB 的大小，如 16MB，实为 '%.40s'", a->max_body);
    *o = (ServerOptions){.host = a->host ? a->host : "127.0.0.1", .port = (int)port, .max_body = body,
                         .max_connections = (unsigned)connections, .idle_seconds = (unsigned)idle};
    o->engine.max_queue = (size_t)queue;
    return api_key(a, arena, &o->api_key, e);
}

static bool is_loopback(const char *host) {
    return str_starts(host, "127.") || strcmp(host, "::1") == 0 || strcmp(host, "localhost") == 0;
}

/* 聊天模板：分词器文件夹的，或 GGUF 自带的。 */
static bool open_chat(Experiment *x, ServerOptions *o, Err *e) {
    const char *id = x->config.model.tokenizer_id, *dir = NULL;
    const Gguf *gguf = x->model.weights.is_gguf ? &x->model.weights.gguf : NULL;
    if (id && *id && !(dir = file_join(&x->arena, x->config.root, id, e))) return false;
    if (!dir && !gguf) dir = x->model_path;
    Err why = {0};
    if (!chat_template_open(&o->chat, &x->arena, dir, gguf, x->tokenizer, &why))
        log_line(LOG_WARN, "聊天模板不能用（%s），不提供 /v1/chat/completions", why.msg);
    if (why.code != ERR_NONE) o->chat = (ChatTemplate){0};
    return true;
}

/* 开着，直到 Ctrl-C。 */
static bool serve(Experiment *x, ServerOptions *o, Err *e) {
    const ModelConfig *c = &x->model.config;
    Server *s;
    EngineCounts n;
    o->engine.model = &x->model;
    o->engine.tokenizer = x->tokenizer;
    o->engine.eos = &x->eos;
    o->engine.name = x->config.model.name;
    o->engine.max_length = x->config.model.max_seq_len > 0 ? x->config.model.max_seq_len
                                                           : c->max_position;
    if (!open_chat(x, o, e) || !server_open(&s, o, e)) return false;
    if (!is_loopback(o->host) && !o->api_key)
        log_line(LOG_WARN, "监听 %s 而没有密钥：同一网络里谁都能用，请加 --api_key_file", o->host);
    const char *open = strchr(o->host, ':') ? "[" : "", *close = *open ? "]" : "";
    log_line(LOG_OK, "服务已开：http://%s%s%s:%d/v1（模型 %s × %s，上下文 %lld），Ctrl-C 停止", open, o->host,
             close, server_port(s), o->engine.name, x->config.method_name,
             (long long)o->engine.max_length);
    printf("http://%s%s%s:%d/v1\n", open, o->host, close, server_port(s));
    fflush(stdout);
    bool broken = false;
    while (!interrupt_requested() && !(broken = server_broken(s, e))) usleep(50000);
    log_line(LOG_INFO, "正在停止…");
    server_close(s, &n);
    log_line(LOG_OK, "服务已停：%lld 个请求，提示 %lld、写出 %lld 个 token%s", (long long)n.requests,
             (long long)n.prompt_tokens, (long long)n.completion_tokens,
             n.dropped ? "（有客户中途离开）" : "");
    return !broken;
}

static int run(const Args *a) {
    Err e = {0};
    Arena arena = {0};
    ServerOptions o;
    Experiment x;
    QuantJob job;
    const char *method = a->method ? a->method : "fp16";
    ConfigRequest r = {.root = env_project_root(), .model = a->model, .method = method,
                       .track = a->track ? a->track : registry_first_track(method),
                       .overrides = a->overrides.items, .n_overrides = a->overrides.n};
    bool ok = server_options(a, &arena, &o, &e);
    if (ok) {
        interrupt_install();
        ok = experiment_open(&x, &r, &e);
        if (ok) {
            experiment_describe(&x);
            ok = experiment_quantize(&x, &job, &e);
            if (ok) blockfile_clear(job.block_dir, x.model.config.n_layers);
            ok = ok && serve(&x, &o, &e);
            job_close(&job);
        }
        experiment_close(&x);
    }
    arena_free(&arena);
    return ok ? 0 : cli_fail(&e);
}

int cmd_serve(int argc, char **argv) {
    enum { EXTRA = 8 };
    Args a = {0};
    a.overrides.items = calloc((size_t)argc + EXTRA, sizeof *a.overrides.items);
    if (!a.overrides.items) return 1;
    CliResult parsed = parse(&a, argc, argv);
    int code = parsed == CLI_DONE ? 0 : err_exit_code(ERR_USAGE);
    if (parsed == CLI_GO) {
        char extra[4][160];
        const struct {
            const char *key, *value;
        } map[] = {{"threads", a.threads}, {"compute", a.compute}, {"max_memory", a.max_memory},
                   {"device", a.device}};
        for (int i = 0; i < 4; i++) {
            if (!map[i].value) continue;
            snprintf(extra[i], sizeof extra[i], "%s=%s", map[i].key, map[i].value);
            a.overrides.items[a.overrides.n++] = extra[i];
        }
        a.overrides.items[a.overrides.n++] = "eval.ppl_datasets=[]"; /* 不评测，不必找数据 */
        a.overrides.items[a.overrides.n++] = "eval.lm_eval_tasks=[]";
        log_set_quiet(a.quiet);
        code = run(&a);
    }
    free(a.overrides.items);
    return code;
}
