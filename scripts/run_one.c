/* run_one — 跑一个实验并写出结果
 * 标志变成最高层的 --override，其余全交给 runner；失败的实验也写成结果（带原因），被中断的不写。 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "scripts/child.h"
#include "scripts/cli.h"
#include "scripts/commands.h"
#include "env_info.h"
#include "io/file.h"
#include "result_writer.h"
#include "runner.h"

typedef struct Args {
    const char *model, *method, *track, *device, *threads, *limit, *results, *compute, *max_memory;
    const char *dump_linear, *dump_dir;
    CliList overrides;
    bool dry_run, json, quiet;
} Args;

static CliResult parse(Args *a, int argc, char **argv) {
    const CliFlag flags[] = {
        {"--model", CLI_STR, &a->model, "名字|路径", "configs/models/ 里的名字、模型文件夹或 GGUF 文件",
         true},
        {"--method", CLI_STR, &a->method, "名字", "量化方法，如 fp16、rtn", true},
        {"--track", CLI_STR, &a->track, "A|B|C", "轨道", true},
        {"--override", CLI_LIST, &a->overrides, "键=值", "覆盖一个设置，值按 YAML 定型", false},
        {"--dry_run", CLI_BOOL, &a->dry_run, NULL, "只解析与检查，打印计划，不计算", false},
        {"--device", CLI_STR, &a->device, "auto|cpu|cuda", "运行设备", false},
        {"--threads", CLI_STR, &a->threads, "N", "线程数，0 为全部核", false},
        {"--limit", CLI_STR, &a->limit, "N", "每个数据集最多多少个窗口", false},
        {"--compute", CLI_STR, &a->compute, "auto|float32|bfloat16", "矩阵乘的计算类型", false},
        {"--max_memory", CLI_STR, &a->max_memory, "大小", "内存（GPU 上是显存）上限，如 400MB：装不下时逐块载入", false},
        {"--results", CLI_STR, &a->results, "文件夹", "结果写到哪里（默认 results/）", false},
        {"--dump_linear", CLI_STR, &a->dump_linear, "层名", "把这一层量化后的 w、scale、zero、code 写成 .npy",
         false},
        {"--dump_dir", CLI_STR, &a->dump_dir, "文件夹", "--dump_linear 写到哪里", false},
        {"--json", CLI_BOOL, &a->json, NULL, "标准输出只有结果的 JSON", false},
        {"--quiet", CLI_BOOL, &a->quiet, NULL, "只打印警告与错误", false},
        {0}};
    const CliSpec spec = {.command = "run_one", .about = "跑一个实验：模型 × 方法 × 轨道",
                          .flags = flags,
                          .epilog = "例: ptq-bench run_one --model demo --method rtn --track A "
                                    "--override weight.w_bits=3 --override weight.group_size=64\n"
                                    "全部设置: ptq-bench list options"};
    return cli_parse(&spec, argc, argv);
}

/* 标志 → override；值为 NULL 的不加。 */
static bool add_override(Args *a, const char *key, const char *value) {
    if (!value) return true;
    Str s = {0};
    str_addf(&s, "%s=%s", key, value);
    if (s.failed) return false;
    a->overrides.items[a->overrides.n++] = s.data;
    return true;
}

/* --results 相对当前目录，而配置里的 results_dir 相对项目根，所以先变成绝对路径。 */
static bool add_results(Args *a) {
    if (!a->results) return true;
    char *cwd = getcwd(NULL, 0);
    Str path = {0};
    if (a->results[0] != '/') str_addf(&path, "%s/", cwd ? cwd : ".");
    str_add(&path, a->results);
    char *text = path.failed ? NULL : cli_quoted_override("results_dir", path.data);
    free(cwd);
    str_free(&path);
    if (text) a->overrides.items[a->overrides.n++] = text;
    return text != NULL;
}

static void print_ppl(const json_t *result) {
    const char *name;
    json_t *d;
    json_object_foreach(json_object_get(json_object_get(result, "results"), "ppl"), name, d) {
        const char *protocol = json_string_value(json_object_get(d, "protocol"));
        Str line = {0};
        str_addf(&line, "%s（%s）: PPL %.4f", name, protocol ? protocol : "",
                 json_number_value(json_object_get(d, "ppl")));
        const json_t *se = json_object_get(d, "ppl_stderr");
        if (json_is_number(se)) str_addf(&line, " ± %.4f", json_number_value(se));
        const json_t *base = json_object_get(d, "baseline");
        const json_t *delta = json_object_get(base, "delta_nll");
        if (json_is_object(delta))
            str_addf(&line, " · 对 fp16 ΔNLL %+.5f [%+.5f, %+.5f]",
                     json_number_value(json_object_get(delta, "mean")),
                     json_number_value(json_object_get(delta, "ci_low")),
                     json_number_value(json_object_get(delta, "ci_high")));
        const json_t *kl = json_object_get(base, "kl");
        if (json_is_object(kl))
            str_addf(&line, " · KL %.5f", json_number_value(json_object_get(kl, "mean")));
        const json_t *kv = json_object_get(d, "kv_cache");
        const char *mode = json_string_value(json_object_get(kv, "mode"));
        if (mode)
            str_addf(&line, " · kv_mode: %s，键值 %.2f 位", mode,
                     json_number_value(json_object_get(kv, "bits_per_value")));
        if (!line.failed) log_line(LOG_EVAL, "%s", line.data);
        str_free(&line);
    }
}

static void print_summary(const json_t *result, const char *path) {
    const json_t *config = json_object_get(result, "config");
    const json_t *quant = json_object_get(result, "quantization");
    const json_t *bits = json_object_get(quant, "effective_bits");
    const char *model = json_string_value(json_object_get(config, "model"));
    const char *method = json_string_value(json_object_get(config, "method"));
    const char *track = json_string_value(json_object_get(config, "track"));
    print_ppl(result);
    if (json_is_number(json_object_get(bits, "linear"))) {
        char size[32];
        const json_t *total = json_object_get(json_object_get(quant, "bytes"), "total");
        log_line(LOG_EVAL, "有效位宽 %.3f（线性层）/ %.3f（整个模型）· 权重 %s",
                 json_number_value(json_object_get(bits, "linear")),
                 json_number_value(json_object_get(bits, "model")),
                 str_bytes(size, sizeof size, json_number_value(total)));
    }
    log_line(LOG_OK, "%s × %s × Track %s 完成 → %s", model, method, track, path);
}

static int finish(const Args *a, const char *dir, bool ok, json_t *result, Err *e) {
    int code = ok ? 0 : err_exit_code(e->code);
    Arena arena = {0};
    const char *path = NULL;
    if (!ok) cli_fail(e);
    if (result && e->code != ERR_INTERRUPTED) {
        Err we = {0};
        if (!result_write(result, dir, &arena, &path, &we)) {
            log_line(LOG_FAIL, "结果没有写成: %s", we.msg);
            code = code ? code : err_exit_code(we.code);
        } else if (ok) {
            print_summary(result, path);
        } else {
            log_line(LOG_FAIL, "失败的原因已记在 %s", path);
        }
    }
    if (a->json && result) {
        json_dumpf(result, stdout, JSON_INDENT(2));
        putchar('\n');
    }
    if (fflush(stdout) != 0 || ferror(stdout)) {
        log_line(LOG_FAIL, "写标准输出失败");
        code = code ? code : 1;
    }
    arena_free(&arena);
    return code;
}

/* 另开一个 run_one 跑 fp16 基线：结果写到同一文件夹。 */
static bool make_baseline(void *ctx, const ConfigRequest *r, Err *e) {
    const Args *a = ctx;
    size_t n = 0;
    char **argv = calloc(2 * r->n_overrides + 16, sizeof *argv);
    if (!argv) return err_set(e, ERR_MEMORY, "内存不足");
    const char *fixed[] = {program_name, "run_one", "--model", r->model, "--method", r->method,
                           "--track", r->track};
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) argv[n++] = (char *)fixed[i];
    for (size_t i = 0; i < r->n_overrides; i++) {
        argv[n++] = "--override";
        argv[n++] = (char *)r->overrides[i];
    }
    if (a->quiet) argv[n++] = "--quiet";
    bool ok = child_run(argv, e);
    free(argv);
    return ok;
}

static int run(Args *a, int argc, char **argv) {
    Err e = {0};
    char *command = cli_command_line(program_name, argc, argv);
    RunRequest r = {.config = {.root = env_project_root(), .model = a->model, .method = a->method,
                               .track = a->track, .overrides = a->overrides.items,
                               .n_overrides = a->overrides.n},
                    .command = command, .make_baseline = make_baseline, .make_baseline_ctx = a,
                    .dump_linear = a->dump_linear, .dump_dir = a->dump_dir};
    int code;
    if (a->dry_run) {
        code = run_plan(&r, &e) ? 0 : cli_fail(&e);
    } else {
        Config c;
        if (!config_load(&c, &r.config, &e)) {
            code = cli_fail(&e);
        } else {
            json_t *result = NULL;
            interrupt_install();
            bool ok = file_mkdirs(c.run.results_dir, &e) && run_experiment(&r, &result, &e);
            code = finish(a, c.run.results_dir, ok, result, &e);
            json_decref(result);
            config_free(&c);
        }
    }
    free(command);
    return code;
}

int cmd_run_one(int argc, char **argv) {
    enum { EXTRA = 8 };
    Args a = {0};
    a.overrides.items = calloc((size_t)argc + EXTRA, sizeof *a.overrides.items);
    if (!a.overrides.items) return 1;
    CliResult parsed = parse(&a, argc, argv);
    int code = parsed == CLI_DONE ? 0 : err_exit_code(ERR_USAGE);
    if (parsed == CLI_GO && (a.dump_linear == NULL) != (a.dump_dir == NULL)) {
        log_line(LOG_FAIL, "--dump_linear 与 --dump_dir 要一起给出");
    } else if (parsed == CLI_GO) {
        size_t own = a.overrides.n;
        if (a.quiet || a.json) log_set_quiet(a.quiet);
        bool ok = add_override(&a, "device", a.device) && add_override(&a, "threads", a.threads) &&
                  add_override(&a, "eval.limit", a.limit) &&
                  add_override(&a, "compute", a.compute) &&
                  add_override(&a, "max_memory", a.max_memory) && add_results(&a);
        code = ok ? run(&a, argc, argv) : 1;
        while (a.overrides.n > own) free((char *)a.overrides.items[--a.overrides.n]);
    }
    free(a.overrides.items);
    return code;
}
