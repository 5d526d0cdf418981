/* export — 量化一个模型并写成别的工具能装入的文件夹
 * 打开与量化走的是 run_one 同一条路（experiment.h），写出的就是评测的。 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/str.h"
#include "env_info.h"
#include "experiment.h"
#include "export.h"
#include "export_gguf.h"
#include "model/blockfile.h"
#include "registry.h"
#include "scripts/cli.h"
#include "scripts/commands.h"

typedef struct Args {
    const char *model, *method, *track, *format, *out, *threads, *compute;
    CliList overrides;
    bool quiet;
} Args;

static CliResult parse(Args *a, int argc, char **argv, const char *formats) {
    const CliFlag flags[] = {
        {"--model", CLI_STR, &a->model, "名字|路径", "configs/models/ 里的名字或模型文件夹", true},
        {"--method", CLI_STR, &a->method, "名字", "量化方法，如 gptq", true},
        {"--format", CLI_STR, &a->format, "格式", "gptq、awq、compressed-tensors、gguf 或 hf-dequantized", true},
        {"--out", CLI_STR, &a->out, "文件夹", "写到哪里（须不存在或为空；gguf 是一个 .gguf 文件）", true},
        {"--track", CLI_STR, &a->track, "A|B", "轨道（默认方法支持的第一个）", false},
        {"--override", CLI_LIST, &a->overrides, "键=值", "覆盖一个设置，值按 YAML 定型", false},
        {"--threads", CLI_STR, &a->threads, "N", "计算线程数，0 为全部核", false},
        {"--compute", CLI_STR, &a->compute, "auto|float32|bfloat16", "矩阵乘的计算类型", false},
        {"--quiet", CLI_BOOL, &a->quiet, NULL, "只打印警告与错误", false},
        {0}};
    const CliSpec spec = {.command = "export", .about = "量化并写成 HF 文件夹，供 vLLM、transformers 等装入",
                          .flags = flags, .epilog = formats};
    return cli_parse(&spec, argc, argv);
}

static const ExportFormat *find_format(const char *name, Err *e) {
    const char *names[16];
    for (size_t i = 0; i < N_EXPORT_FORMATS; i++) {
        names[i] = EXPORT_FORMATS[i].name;
        if (strcmp(name, names[i]) == 0) return &EXPORT_FORMATS[i];
    }
    const char *near = str_nearest(name, names, (int)N_EXPORT_FORMATS);
    err_set(e, ERR_USAGE, "--format 没有 '%.40s'%s%s%s（可用：gptq、awq、compressed-tensors、gguf、hf-dequantized）", name,
            near ? "，是否想写 '" : "", near ? near : "", near ? "'？" : "");
    return NULL;
}

static int run(const Args *a) {
    Err e = {0};
    Experiment x;
    QuantJob job;
    ConfigRequest r = {.root = env_project_root(), .model = a->model, .method = a->method,
                       .track = a->track ? a->track : registry_first_track(a->method),
                       .overrides = a->overrides.items, .n_overrides = a->overrides.n};
    bool gguf = strcmp(a->format, "gguf") == 0;
    const ExportFormat *f = gguf ? NULL : find_format(a->format, &e);
    if (!f && !gguf) return cli_fail(&e);
    interrupt_install();
    bool ok = experiment_open(&x, &r, &e);
    if (ok) {
        experiment_describe(&x);
        ok = (!gguf || export_gguf_check(&x.model, a->out, &e)) && experiment_quantize(&x, &job, &e) &&
             (f ? export_model(&x.model, f, a->out, &e)
                : export_gguf(&x.model, x.tokenizer, x.config.model.name, a->out, &e));
        if (ok) {
            blockfile_clear(job.block_dir, x.model.config.n_layers);
            log_line(LOG_OK, "%s × %s 已写成 %s 格式 → %s", x.config.model.name, x.config.method_name, a->format, a->out);
        }
        job_close(&job);
    }
    experiment_close(&x);
    return ok ? 0 : cli_fail(&e);
}

int cmd_export(int argc, char **argv) {
    enum { EXTRA = 8 };
    Args a = {0};
    Str formats = {0};
    str_add(&formats, "格式:\n");
    for (size_t i = 0; i < N_EXPORT_FORMATS; i++) {
        str_add(&formats, "  ");
        str_add_padded(&formats, EXPORT_FORMATS[i].name, 20, false);
        str_addf(&formats, "%s\n", EXPORT_FORMATS[i].about);
    }
    str_add(&formats, "  gguf                llama.cpp（llama、qwen2、qwen3；放得进 Q4_0、Q4_1、Q8_0 的写成块，其余 F16）\n");
    str_add(&formats, "例: ptq-bench export --model demo --method gptq --override weight.group_size=64 "
                      "--format gptq --out demo-gptq\n说明: docs/export.md");
    a.overrides.items = calloc((size_t)argc + EXTRA, sizeof *a.overrides.items);
    if (!a.overrides.items || formats.failed) return 1;
    CliResult parsed = parse(&a, argc, argv, formats.data);
    int code = parsed == CLI_DONE ? 0 : err_exit_code(ERR_USAGE);
    if (parsed == CLI_GO) {
        char extra[2][160];
        const char *const map[2][2] = {{"threads", a.threads}, {"compute", a.compute}};
        for (int i = 0; i < 2; i++) {
            if (!map[i][1]) continue;
            snprintf(extra[i], sizeof extra[i], "%s=%s", map[i][0], map[i][1]);
            a.overrides.items[a.overrides.n++] = extra[i];
        }
        a.overrides.items[a.overrides.n++] = "eval.ppl_datasets=[]"; /* 不评测，不必找数据 */
        a.overrides.items[a.overrides.n++] = "eval.lm_eval_tasks=[]";
        log_set_quiet(a.quiet);
        code = run(&a);
    }
    str_free(&formats);
    free(a.overrides.items);
    return code;
}
