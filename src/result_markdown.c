/* result_markdown — 一个结果的 Markdown 页（指南 §8）
 * 只把结果 JSON 里的事实排成表，不另算任何数；缺的项写 —，所以失败的、旧的结果也能排出来。 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "markdown.h"
#include "result_writer.h"

static void row(Str *out, const char *label, const char *text) {
    str_addf(out, "| %s | ", label);
    md_text(out, text);
    str_add(out, " |\n");
}

static void row_code(Str *out, const char *label, const char *text) {
    str_addf(out, "| %s | ", label);
    md_code(out, text);
    str_add(out, " |\n");
}

static void row_number(Str *out, const char *label, const char *fmt, const json_t *v) {
    str_addf(out, "| %s | ", label);
    md_number(out, fmt, v);
    str_add(out, " |\n");
}

static void row_value(Str *out, const char *label, const json_t *v) {
    str_addf(out, "| %s | ", label);
    md_value(out, v);
    str_add(out, " |\n");
}

static void table_head(Str *out, const char *title) {
    str_addf(out, "\n## %s\n\n| 项目 | 值 |\n|---|---|\n", title);
}

static void add_list(Str *out, const json_t *list) {
    for (size_t i = 0; i < json_array_size(list); i++) {
        str_add(out, "- ");
        md_value(out, json_array_get(list, i));
        str_add(out, "\n");
    }
}

static void add_head(Str *out, const json_t *r) {
    str_add(out, "# ");
    md_text(out, json_text_at(r, "config.model", "?"));
    str_add(out, " × ");
    md_text(out, json_text_at(r, "config.method", "?"));
    str_add(out, " × Track ");
    md_text(out, json_text_at(r, "config.track", "?"));
    str_add(out, "\n\n");
    if (json_is_true(json_at(r, "status.ok"))) {
        str_add(out, "✅ 成功\n");
    } else {
        str_add(out, "❌ 失败（");
        md_text(out, json_text_at(r, "status.code", "unknown"));
        str_add(out, "）\n\n> ");
        md_text(out, json_text_at(r, "status.message", "没有记下原因"));
        str_add(out, "\n");
    }
    if (json_is_true(json_at(r, "limited")))
        str_add(out, "\n⚠️ 只评测了前一部分窗口（`eval.limit`），不可与完整的结果相比\n");
    if (json_array_size(json_at(r, "fallbacks"))) {
        str_add(out, "\n## ⚠️ fallback detected\n\n");
        add_list(out, json_at(r, "fallbacks"));
    }
    if (json_array_size(json_at(r, "warnings"))) {
        str_add(out, "\n## ⚠️ 警告\n\n");
        add_list(out, json_at(r, "warnings"));
    }
}

static void add_run(Str *out, const json_t *r) {
    table_head(out, "运行");
    row(out, "开始时间", json_text_at(r, "time.started", NULL));
    row_number(out, "总用时（秒）", "%.2f", json_at(r, "time.seconds"));
    if (json_at(r, "time.eval_seconds"))
        row_number(out, "其中评测（秒）", "%.2f", json_at(r, "time.eval_seconds"));
    row_number(out, "其中量化（秒）", "%.3f", json_at(r, "quant_time_seconds"));
    if (json_is_true(json_at(r, "quant_time.shared_statistics")))
        row(out, "校准统计", "有取自存档的（别的运行算过），量化用时里没有算它");
    row_value(out, "方法", json_at(r, "config.display_name"));
    row_value(out, "计算类型", json_at(r, "compute.mode"));
    row_value(out, "指令集", json_at(r, "compute.isa"));
    row_value(out, "线程数", json_at(r, "compute.threads"));
    row_code(out, "run_key", json_text_at(r, "run_key", NULL));
    const char *command = json_text_at(r, "command", "");
    size_t fence = 3, run = 0; /* 围栏比命令里最长的反引号串还长 */
    for (const char *p = command; *p; p++) {
        run = *p == '`' ? run + 1 : 0;
        if (run >= fence) fence = run + 1;
    }
    str_add(out, "\n命令行：\n\n");
    for (size_t i = 0; i < fence; i++) str_add(out, "`");
    str_addf(out, "bash\n%s\n", command);
    for (size_t i = 0; i < fence; i++) str_add(out, "`");
    str_add(out, "\n");
}

static void add_model(Str *out, const json_t *r) {
    const json_t *m = json_at(r, "model");
    if (!json_is_object(m)) return;
    table_head(out, "模型");
    row_code(out, "路径", json_text_at(m, "path", NULL));
    row_value(out, "格式", json_at(m, "format"));
    row_value(out, "架构", json_at(m, "architecture"));
    row_value(out, "dtype", json_at(m, "dtype"));
    row_value(out, "参数量", json_at(m, "n_params"));
    row_value(out, "HF 版本", json_at(m, "revision"));
    row_code(out, "权重 SHA-256", json_text_at(m, "weights_sha256", NULL));
    row_code(out, "分词器 SHA-256", json_text_at(m, "tokenizer_sha256", NULL));
    row_value(out, "BOS", json_at(m, "bos_policy"));
}

static void add_settings(Str *out, const json_t *r) {
    const char *key;
    json_t *v;
    json_t *q = json_object_get(r, "quantization");
    json_t *settings = json_object_get(q, "settings");
    str_add(out, "\n## 量化设置\n\n");
    if (json_object_size(settings)) {
        str_add(out, "| 设置 | 值 |\n|---|---|\n");
        json_object_foreach(settings, key, v) {
            str_add(out, "| ");
            md_code(out, key);
            str_add(out, " | ");
            md_value(out, v);
            str_add(out, " |\n");
        }
    } else {
        str_add(out, "没有量化设置。\n");
    }
    if (!json_is_object(q)) return;
    table_head(out, "存储（按实际字节数）");
    row_number(out, "有效位宽，线性层（bit/参数）", "%.4f", json_at(q, "effective_bits.linear"));
    row_number(out, "有效位宽，整个模型（bit/参数）", "%.4f", json_at(q, "effective_bits.model"));
    row_value(out, "量化码（字节）", json_at(q, "bytes.codes"));
    row_value(out, "scale（字节）", json_at(q, "bytes.scales"));
    row_value(out, "零点（字节）", json_at(q, "bytes.zeros"));
    row_value(out, "未量化（字节）", json_at(q, "bytes.unquantized"));
    row_value(out, "合计（字节）", json_at(q, "bytes.total"));
    row_number(out, "权重均方误差", "%.6g", json_at(q, "weight_mse"));
    row_value(out, "未量化的张量", json_at(q, "unquantized_tensors"));
}

static void add_datasets(Str *out, const json_t *r) {
    const char *name;
    json_t *d;
    str_add(out, "\n## 数据集\n\n| 数据集 | 协议 | token 数 | 窗口（已评 / 共） | 打分位置 | BOS | 文件 "
                 "| SHA-256 |\n|---|---|---:|---:|---:|---|---|---|\n");
    json_object_foreach(json_object_get(json_object_get(r, "results"), "ppl"), name, d) {
        str_add(out, "| ");
        md_text(out, name);
        str_add(out, " | ");
        md_value(out, json_object_get(d, "protocol"));
        str_add(out, " | ");
        md_value(out, json_object_get(d, "n_tokens"));
        str_add(out, " | ");
        md_value(out, json_object_get(d, "n_windows"));
        str_add(out, " / ");
        md_value(out, json_object_get(d, "n_windows_total"));
        str_add(out, " | ");
        md_value(out, json_object_get(d, "n_scored"));
        str_add(out, " | ");
        md_value(out, json_object_get(d, "bos"));
        str_add(out, " | ");
        md_code(out, json_text_at(d, "text_path", NULL));
        str_add(out, " | ");
        md_code(out, json_text_at(d, "text_sha256", NULL));
        str_add(out, " |\n");
    }
    str_add(out, "\n校准数据: ");
    const json_t *calib = json_object_get(r, "calibration");
    if (calib && !json_is_null(calib))
        md_value(out, calib);
    else
        str_add(out, "没有用到");
    str_add(out, "；种子: ");
    md_value(out, json_object_get(json_object_get(json_at(r, "config.merged"), "seed"), "value"));
    str_add(out, "\n");
}

static void add_ppl(Str *out, const json_t *r) {
    const char *name;
    json_t *d;
    str_add(out, "\n## 困惑度\n\n| 数据集 | 协议 | PPL | ± 标准误 | PPL（GPTQ 算法） | 平均 NLL | ± 标准误 "
                 "| 窗口 NLL 中位数 | 最差窗口 | 用时（秒） | token/秒 "
                 "|\n|---|---|---:|---:|---:|---:|---:|---:|---|---:|---:|\n");
    json_object_foreach(json_object_get(json_object_get(r, "results"), "ppl"), name, d) {
        static const struct {
            const char *path, *fmt;
        } COLUMNS[] = {{"ppl", "%.4f"}, {"ppl_stderr", "%.4f"}, {"ppl_gptq", "%.4f"},
                       {"nll_mean", "%.6f"}, {"nll_stderr", "%.6f"},
                       {"median_window_nll", "%.4f"}};
        str_add(out, "| ");
        md_text(out, name);
        str_add(out, " | ");
        md_value(out, json_object_get(d, "protocol"));
        for (size_t i = 0; i < sizeof COLUMNS / sizeof *COLUMNS; i++) {
            str_add(out, " | ");
            md_number(out, COLUMNS[i].fmt, json_at(d, COLUMNS[i].path));
        }
        str_add(out, " | #");
        md_value(out, json_at(d, "worst_window.index"));
        str_add(out, "：");
        md_number(out, "%.4f", json_at(d, "worst_window.nll"));
        str_add(out, " | ");
        md_number(out, "%.2f", json_at(d, "seconds"));
        str_add(out, " | ");
        md_number(out, "%.0f", json_at(d, "tok_per_s"));
        str_add(out, " |\n");
    }
}

static void add_baseline(Str *out, const char *name, const json_t *d) {
    const json_t *b = json_object_get(d, "baseline");
    if (!json_is_object(b)) return;
    str_add(out, "\n### 与 fp16 基线的配对比较：");
    md_text(out, name);
    str_add(out, "\n\n| 项目 | 值 |\n|---|---|\n");
    row_code(out, "基线结果", json_text_at(b, "result_file", NULL));
    row_code(out, "基线 run_key", json_text_at(b, "run_key", NULL));
    row_number(out, "ΔNLL（每 token，量化 − 基线）", "%+.6f", json_at(b, "delta_nll.mean"));
    str_add(out, "| 95 % 块自助区间 | [");
    md_number(out, "%+.6f", json_at(b, "delta_nll.ci_low"));
    str_add(out, ", ");
    md_number(out, "%+.6f", json_at(b, "delta_nll.ci_high"));
    str_add(out, "] |\n");
    row_number(out, "PPL 比", "%.6f", json_at(b, "ppl_ratio"));
    row_value(out, "比较的窗口数", json_at(b, "n_windows"));
    row_number(out, "KL(基线 ‖ 量化) 均值", "%.6f", json_at(b, "kl.mean"));
    row_number(out, "KL 中位数", "%.6f", json_at(b, "kl.median"));
    row_number(out, "KL 第 99 百分位", "%.6f", json_at(b, "kl.p99"));
    row_number(out, "KL 最大值", "%.6f", json_at(b, "kl.max"));
    row_value(out, "KL 的位置数", json_at(b, "kl.n"));
    row_number(out, "top-1 相同的比例", "%.4f", json_at(b, "same_top1"));
}

static void add_metrics(Str *out, const json_t *r) {
    const char *name;
    json_t *d;
    json_t *results = json_object_get(r, "results");
    if (!json_is_object(results)) return;
    add_datasets(out, r);
    add_ppl(out, r);
    json_object_foreach(json_object_get(results, "ppl"), name, d) add_baseline(out, name, d);
    result_tasks_markdown(json_object_get(results, "lm_eval"), out);
    const json_t *s = json_object_get(results, "system_metrics");
    table_head(out, "系统指标");
    row_number(out, "峰值显存（MB）", "%.1f", json_at(s, "vram_peak_mb"));
    row_number(out, "峰值常驻内存（MB）", "%.1f", json_at(s, "rss_peak_mb"));
    row_number(out, "分配器峰值（MB）", "%.1f", json_at(s, "alloc_peak_mb"));
    row_number(out, "权重（MB）", "%.2f", json_at(s, "weights_mb"));
    row_number(out, "KV 缓存（字节/token，残留窗口在内）", "%.1f", json_at(s, "kv_bytes_per_token"));
    row_number(out, "KV 缓存（位/值）", "%.3f", json_at(s, "kv_bits_per_value"));
    if (json_is_string(json_at(s, "kv_mode")))
        row_value(out, "KV 缓存的评测方式（kv_mode）", json_at(s, "kv_mode"));
    row_number(out, "prefill（token/秒）", "%.1f", json_at(s, "prefill_tok_s"));
    double batch = json_number_value(json_at(s, "decode_batch")), context = json_number_value(json_at(s, "decode_context"));
    char label[96] = "decode，批大小 1（token/秒）";
    if (batch > 0) snprintf(label, sizeof label, "decode，批大小 %.0f，接在 %.0f 个 token 之后（token/秒）", batch, context);
    row_number(out, label, "%.1f", json_at(s, "decode_tok_s"));
}

static void add_merged(Str *out, const json_t *r) {
    const char *key;
    json_t *v;
    json_t *merged = json_object_get(json_object_get(r, "config"), "merged");
    if (!json_object_size(merged)) return;
    str_add(out, "\n## 全部设置及出处\n\n| 设置 | 值 | 出处 |\n|---|---|---|\n");
    json_object_foreach(merged, key, v) {
        str_add(out, "| ");
        md_code(out, key);
        str_add(out, " | ");
        md_value(out, json_object_get(v, "value"));
        str_add(out, " | ");
        md_value(out, json_object_get(v, "from"));
        str_add(out, " |\n");
    }
}

static void add_environment(Str *out, const json_t *r) {
    const char *key;
    json_t *v;
    table_head(out, "环境");
    json_object_foreach(json_object_get(r, "environment"), key, v) {
        str_add(out, "| ");
        md_text(out, key);
        str_add(out, " | ");
        md_value(out, v);
        str_add(out, " |\n");
    }
}

bool result_markdown(const json_t *result, Str *out, Err *e) {
    add_head(out, result);
    add_run(out, result);
    add_model(out, result);
    add_settings(out, result);
    add_metrics(out, result);
    add_merged(out, result);
    add_environment(out, result);
    return out->failed ? err_set(e, ERR_MEMORY, "内存不足：生成结果的 Markdown") : true;
}
