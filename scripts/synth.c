/* synth — 造一个随机权重的模型文件夹，供测速与显存 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/str.h"
#include "scripts/cli.h"
#include "scripts/commands.h"
#include "synth.h"

typedef struct Args {
    const char *like, *out, *layers, *seed, *dtype, *threads;
    bool quiet;
} Args;

static CliResult parse(Args *a, int argc, char **argv, const char *names) {
    const CliFlag flags[] = {
        {"--like", CLI_STR, &a->like, "名字", "形状同哪个模型，如 llama3.1-8b", true},
        {"--output", CLI_STR, &a->out, "文件夹", "写到哪里（须不存在或为空）", true},
        {"--layers", CLI_STR, &a->layers, "N", "只造前 N 层（默认全部）", false},
        {"--seed", CLI_STR, &a->seed, "N", "种子（默认 0）；同样的种子得同样的文件，与线程数无关", false},
        {"--dtype", CLI_STR, &a->dtype, "bf16|f16", "权重的类型（默认 bf16）", false},
        {"--threads", CLI_STR, &a->threads, "N", "线程数，0 为全部核", false},
        {"--quiet", CLI_BOOL, &a->quiet, NULL, "只打印警告与错误", false},
        {0}};
    const CliSpec spec = {.command = "synth", .about = "造一个随机权重的模型文件夹（测速与显存用，没有意义的数）",
                          .flags = flags, .epilog = names};
    return cli_parse(&spec, argc, argv);
}

/* 选项的整数值；没有给就是 0。 */
static bool get_int(const char *flag, const char *text, long long lo, long long hi, long long *out, Err *e) {
    *out = 0;
    if (!text) return true;
    char *end;
    errno = 0;
    *out = strtoll(text, &end, 10);
    if (end != text && !*end && !errno && *out >= lo && *out <= hi) return true;
    return err_set(e, ERR_USAGE, "%s 应为 %lld 到 %lld 的整数，得到 '%.40s'", flag, lo, hi, text);
}

static bool get_dtype(const char *text, DType *out, Err *e) {
    *out = !text || strcmp(text, "bf16") == 0 ? DT_BF16 : DT_F16;
    if (*out == DT_BF16 || strcmp(text, "f16") == 0) return true;
    return err_set(e, ERR_USAGE, "--dtype 应为 bf16 或 f16，得到 '%.40s'", text);
}

static bool run(const Args *a, Err *e) {
    long long layers, seed, threads;
    DType dtype;
    SynthPlan p;
    Backend b;
    const SynthShape *s = synth_find(a->like, e);
    if (!s || !get_int("--layers", a->layers, 1, 1024, &layers, e) ||
        !get_int("--seed", a->seed, 0, 9007199254740991, &seed, e) ||
        !get_int("--threads", a->threads, 0, 1024, &threads, e) || !get_dtype(a->dtype, &dtype, e) ||
        !synth_plan(&p, s, layers, dtype, e))
        return false;
    bool ok = backend_open_cpu(&b, (int)threads, COMPUTE_F32, NULL, e);
    if (ok) {
        char size[32], took[32];
        double started = clock_seconds();
        interrupt_install();
        log_line(LOG_LOAD, "%s：%lld 层，%s，%zu 个分片 → %s", s->name, (long long)p.shape.layers,
                 str_bytes(size, sizeof size, (double)p.bytes), p.n_shards, a->out);
        ok = synth_write(&p, (uint64_t)seed, a->out, &b, e);
        if (ok)
            log_line(LOG_OK, "已写成 %s，%s（%s）", a->out, size,
                     str_seconds(took, sizeof took, clock_seconds() - started));
        backend_close(&b);
    }
    synth_plan_free(&p);
    return ok;
}

int cmd_synth(int argc, char **argv) {
    Args a = {0};
    Err e = {0};
    Str names = {0};
    str_add(&names, "模型:\n");
    for (size_t i = 0; i < N_SYNTH_SHAPES; i++) {
        const SynthShape *s = &SYNTH_SHAPES[i];
        str_add(&names, "  ");
        str_add_padded(&names, s->name, 16, false);
        str_addf(&names, "%lld 层，隐藏维 %lld，词表 %lld\n", (long long)s->layers, (long long)s->hidden,
                 (long long)s->vocab);
    }
    str_add(&names, "例: ptq-bench synth --like llama3.1-8b --output /dev/shm/synth-8b\n说明: docs/synth.md");
    if (names.failed) return 1;
    CliResult parsed = parse(&a, argc, argv, names.data);
    int code = parsed == CLI_DONE ? 0 : err_exit_code(ERR_USAGE);
    if (parsed == CLI_GO) {
        log_set_quiet(a.quiet);
        code = run(&a, &e) ? 0 : cli_fail(&e);
    }
    str_free(&names);
    return code;
}
