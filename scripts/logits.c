/* logits — 算出一串 ids 各位置的 logits，写成 .npy（f32，一行一个位置），供与其他程序对照
 * 走的是与评测相同的路径：会话 → 最终归一化 → 语言模型头；按段计算，不要求分词器。 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "config.h"
#include "env_info.h"
#include "io/npy.h"
#include "methods/job.h"
#include "model/session.h"
#include "scripts/cli.h"
#include "scripts/commands.h"

enum { PIECE = 256 };

/* "1,2,3" → ids。 */
static bool parse_ids(const char *text, Arena *a, int32_t **ids, int64_t *n, Err *e) {
    size_t cap = 1;
    for (const char *p = text; *p; p++) cap += *p == ',';
    *ids = ARENA_ARRAY(a, int32_t, cap, e);
    if (!*ids) return false;
    *n = 0;
    for (const char *p = text;;) {
        char *end;
        errno = 0;
        long v = strtol(p, &end, 10);
        if (end == p || errno || v < 0 || v > INT32_MAX || (*end && *end != ','))
            return err_set(e, ERR_USAGE, "--ids 的第 %lld 个数不对：'%.20s'（写法：--ids 1,2,3）",
                           (long long)*n + 1, p);
        (*ids)[(*n)++] = (int32_t)v;
        if (!*end) return true;
        p = end + 1;
    }
}

static bool compute_logits(Model *m, const int32_t *ids, int64_t n, const char *path, Err *e) {
    Arena a = backend_arena(m->backend);
    Session s;
    int64_t vocab = m->config.vocab, d = m->config.hidden;
    float *hidden = ARENA_ARRAY(&a, float, n * d, e);
    float *out = ARENA_ARRAY(&a, float, n * vocab, e);
    bool ok = hidden && out && session_open(&s, m, n, PIECE, e);
    if (ok) {
        ok = session_forward(&s, ids, n, hidden, e);
        session_close(&s);
    }
    if (ok) {
        model_logits(m, out, hidden, n);
        int64_t shape[2] = {n, vocab};
        HostView v = host_view(m->backend);
        const float *host = HOST_MAP(&v, float, out, n *vocab, HOST_READ);
        ok = backend_check(m->backend, e) && npy_write(path, DT_F32, 2, shape, host, e);
        host_end(&v);
    }
    arena_free(&a);
    return ok;
}

static bool run(const ConfigRequest *r, const char *ids_text, const char *output, Err *e) {
    static const DType DTYPES[] = {DT_NONE, DT_F32, DT_F16, DT_BF16};
    Config c;
    Backend b;
    Model m;
    Arena a = {0};
    int32_t *ids;
    int64_t n;
    if (!parse_ids(ids_text, &a, &ids, &n, e) || !config_load(&c, r, e)) {
        arena_free(&a);
        return false;
    }
    if (c.method->calibrated) {
        err_set(e, ERR_UNSUPPORTED, "logits 只支持不需校准的方法，%s 需要校准；请用 run_one", c.method->name);
        config_free(&c);
        arena_free(&a);
        return false;
    }
    const char *path = config_fetch_model(&c, e);
    ComputeMode mode = c.run.compute == 2 ? COMPUTE_BF16 : COMPUTE_F32;
    bool cuda = c.run.device == DEVICE_CUDA || (c.run.device == DEVICE_AUTO && backend_has_cuda());
    bool ok = path && (cuda ? backend_open_cuda(&b, (int)c.run.threads, mode, e)
                            : backend_open_cpu(&b, (int)c.run.threads, mode, NULL, e));
    if (ok) {
        const char *adapter = c.model.adapter && strcmp(c.model.adapter, "auto") ? c.model.adapter : NULL;
        ok = model_open_as(&m, path, adapter, DTYPES[c.model.dtype], &b, e);
        if (ok) {
            QuantJob job = {0};
            ok = session_check_ids(&m.config, ids, n, e) &&
                 job_run(&job, c.method, c.method_options, &m, NULL, e) &&
                 compute_logits(&m, ids, n, output, e);
            job_close(&job);
            if (ok)
                log_line(LOG_OK, "%lld 个位置 × %lld 个 logits → %s", (long long)n,
                         (long long)m.config.vocab, output);
            model_close(&m);
        }
        backend_close(&b);
    }
    config_free(&c);
    arena_free(&a);
    return ok;
}

int cmd_logits(int argc, char **argv) {
    const char *model = NULL, *method = "fp16", *ids = NULL, *output = NULL;
    const char *items[256];
    CliList overrides = {.items = items};
    const CliFlag flags[] = {
        {"--model", CLI_STR, &model, "名字|路径", "configs/models/ 里的名字、模型文件夹或 GGUF 文件", true},
        {"--ids", CLI_STR, &ids, "1,2,3", "token id，逗号分开", true},
        {"--output", CLI_STR, &output, "F.npy", "写到哪里（f32，一行一个位置）", true},
        {"--method", CLI_STR, &method, "名字", "量化方法（默认 fp16）", false},
        {"--override", CLI_LIST, &overrides, "键=值", "覆盖一个设置，如 dtype=float32", false},
        {0}};
    const CliSpec spec = {.command = "logits", .about = "算出一串 ids 各位置的 logits，写成 .npy",
                          .flags = flags,
                          .epilog = "例: ptq-bench logits --model demo --ids 1,2,3 --output l.npy"};
    if (argc > 250) {
        log_line(LOG_FAIL, "参数太多");
        return err_exit_code(ERR_USAGE);
    }
    CliResult parsed = cli_parse(&spec, argc, argv);
    if (parsed != CLI_GO) return parsed == CLI_DONE ? 0 : err_exit_code(ERR_USAGE);
    interrupt_install();
    ConfigRequest r = {.root = env_project_root(), .model = model, .method = method, .track = "A",
                       .overrides = overrides.items, .n_overrides = overrides.n};
    Err e = {0};
    return run(&r, ids, output, &e) ? 0 : cli_fail(&e);
}
