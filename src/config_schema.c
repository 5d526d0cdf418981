/* config_schema — 选项表的解释与各层允许的键
 * 核心：一个叶子键依次在 运行、模型、列表、本方法 的表里找；都没有时再看是不是本层的说明键或别的方法的设置，
 * 仍没有就是未知键，报出 文件:行 与编辑距离最近的名字。 */
#include "config_schema.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "config.h"
#include "registry.h"

static const char *const DEVICES[] = {"auto", "cpu", "cuda", NULL};
static const char *const COMPUTES[] = {"auto", "float32", "bfloat16", NULL};
const char *const KV_MODES[] = {"decode", "all", "prefill_fp", NULL};
static const char *const KV_DTYPES[] = {"float16", "float32", NULL};
static const char *const HEADS[] = {"none", "int8", NULL};
static const char *const BASELINES[] = {"auto", "off", NULL};
static const char *const DTYPES[] = {"auto", "float32", "float16", "bfloat16", NULL};

#define MAX_COUNT 1e9

const Option RUN_OPTIONS[] = {
    OPT_INT(RunOptions, seed, "seed", 0, 0, 9007199254740991.0, "随机种子"),
    OPT_ENUM(RunOptions, device, "device", DEVICES, 0, "运行设备，auto 有 GPU（驱动与插件 libptq_cuda.so 都在）用 GPU，否则 CPU；见 docs/gpu.md"),
    OPT_INT(RunOptions, threads, "threads", 0, 0, 1024, "线程数，0 为全部核；不影响数值结果"),
    OPT_STR(RunOptions, max_memory, "max_memory", NULL,
            "内存（GPU 上是显存）的上限，如 400MB、8GB；不够时线性层逐块载入，校准的大数组放在磁盘（GPU：锁页的主机内存）上"),
    OPT_STR(RunOptions, stats_cache, "stats_cache", "2GB",
            "未量化模型的校准统计存在 data_dir/processed/stats/ 供别的运行共用，总共至多这么大；0B 为不存，数值不变"),
    OPT_ENUM(RunOptions, compute, "compute", COMPUTES, 0,
             "矩阵乘的计算类型，auto 即 float32；bfloat16 以 fp32 累加并记在结果里"),
    OPT_STR(RunOptions, results_dir, "results_dir", "results", "结果文件夹（相对项目根）"),
    OPT_STR(RunOptions, data_dir, "data_dir", "data", "数据文件夹（相对项目根），其下 raw/ 放模型与文本"),
    OPT_STR(RunOptions, ppl_protocol, "eval.ppl_protocol", "auto",
            "困惑度协议，如 gptq-2048；auto 按模型上下文长度取 gptq-2048 或较短者"),
    OPT_INT(RunOptions, limit, "eval.limit", 0, 0, MAX_COUNT,
            "每个数据集最多评测多少个窗口，0 为全部；非 0 的结果在榜上单列"),
    OPT_STR(RunOptions, lm_eval_command, "eval.lm_eval_command", "lm_eval",
            "不是原生的 lm-eval 任务交给这个命令（pip 的 lm_eval），找不到或为空则不用"),
    OPT_STR(RunOptions, lm_eval_args, "eval.lm_eval_args", "",
            "加给 lm_eval 的参数，空格分开，如 --include_path 文件夹"),
    OPT_INT(RunOptions, task_limit, "eval.task_limit", 0, 0, MAX_COUNT,
            "每个 lm-eval 任务最多评测多少份文档（从头数），0 为全部；同 lm_eval 的 --limit"),
    OPT_INT(RunOptions, num_fewshot, "eval.num_fewshot", -1, -1, 1024,
            "lm-eval 任务的少样本数，-1 为各任务自己的；同 lm_eval 的 --num_fewshot"),
    OPT_BOOL(RunOptions, log_samples, "eval.log_samples", 0,
             "把每份文档的请求、对数似然与得分写到 results/samples/；同 lm_eval 的 --log_samples"),
    OPT_ENUM(RunOptions, baseline, "eval.baseline", BASELINES, 0,
             "与 fp16 的比较缺它的存档时：auto 先跑一次同样数据与设置的 fp16（只算一次），off 不补算"),
    OPT_FLOAT(RunOptions, equivalence_delta, "eval.equivalence_delta", 0.01, 0.0001, 0.5,
              "任务对 fp16 的等价界 δ：准确率之差在 ±δ 内算等价（TOST），低不过 δ 算不差"),
    OPT_INT(RunOptions, kl_windows, "eval.kl_windows", 8, 0, MAX_COUNT,
            "与 fp16 基线逐 token 比 KL 与 top-1 的窗口数（从头数），0 为不算"),
    OPT_BOOL(RunOptions, speed, "eval.speed", 1, "是否测 prefill / decode 速度"),
    OPT_INT(RunOptions, decode_tokens, "eval.decode_tokens", 16, 1, 4096,
            "decode 测速生成的 token 数"),
    OPT_INT(RunOptions, speed_batch, "eval.speed_batch", 1, 1, 1024,
            "decode 测速一批几条时间线；速度是全批合计"),
    OPT_INT(RunOptions, speed_context, "eval.speed_context", 16, 1, 1048576,
            "decode 测速各时间线已有的 token 数"),
    OPT_ENUM(RunOptions, kv_mode, "eval.kv_mode", KV_MODES, 0,
             "量化的键值缓存怎样评测：decode 同逐 token 解码（残留窗口之外才量化）；all 每个位置都量化，连同当前的；"
             "prefill_fp 一次性预填看到的是未量化的键值"),
    OPT_ENUM(RunOptions, kv_dtype, "eval.kv_dtype", KV_DTYPES, 1,
             "未量化的键值的存放类型；轨道 C 的配置取 float16"),
    OPT_END};

const Option MODEL_OPTIONS[] = {
    OPT_STR(ModelOptions, model_id, "model_id", NULL, "HF Hub id，或本地文件夹、GGUF 文件（相对项目根）"),
    OPT_ENUM(ModelOptions, dtype, "dtype", DTYPES, 0,
             "权重的存放类型，auto 取文件自身的类型（GGUF 的量化类型解码为 float32）"),
    OPT_ENUM(ModelOptions, head_quant, "head_quant", HEADS, 0,
             "词嵌入与输出头的存放：none 同 dtype，int8 为每 64 列一个 float16 scale 的 8 位（解码快，"
             "论文的数字都不量化它们）"),
    OPT_INT(ModelOptions, max_seq_len, "max_seq_len", 0, 0, 16777216,
            "最大上下文长度，0 取模型文件的值"),
    OPT_BOOL(ModelOptions, trust_remote_code, "trust_remote_code", 0,
             "仅记录；本程序从不运行模型仓库里的代码"),
    OPT_STR(ModelOptions, revision, "revision", NULL, "Hub 上的版本（分支、标签或提交），空为 main"),
    OPT_STR(ModelOptions, tokenizer_id, "tokenizer_id", NULL, "另用的分词器（文件夹），空为随模型"),
    OPT_STR(ModelOptions, adapter, "adapter", "auto", "模型家族的适配器，auto 由模型文件决定"),
    OPT_END};

const Option CALIB_OPTIONS[] = {
    OPT_STR(CalibOptions, dataset, "calibration.dataset", "demo-calib",
            "校准文本：登记的名字或本地文本文件（不要与评测文本相同）"),
    OPT_INT(CalibOptions, samples, "calibration.samples", 128, 1, 65536, "校准样本数"),
    OPT_INT(CalibOptions, length, "calibration.length", 512, 8, 1048576, "每个样本的 token 数"),
    OPT_INT(CalibOptions, seed, "calibration.seed", 0, 0, 9007199254740991.0,
            "抽样的种子，同 Python 的 random.Random(seed)"),
    OPT_END};

/* 列表型设置：OPTION_STR 只是元素类型，offset 不用。 */
const Option LIST_OPTIONS[] = {
    {"eval.ppl_datasets", OPTION_STR, 0, 0, 0, 0, NULL, NULL,
     "困惑度数据集：demo、wikitext2、ptb 或本地文本文件的路径"},
    {"eval.lm_eval_tasks", OPTION_STR, 0, 0, 0, 0, NULL, NULL,
     "lm-evaluation-harness 的任务、组或 tag 的名字；有哪些：ptq-bench list tasks"},
    OPT_END};

/* 各层的说明键：不是设置，只标明身份。值的类型由 config 检查。 */
typedef struct Identity {
    ConfigLayer layer;
    const char *key, *help;
} Identity;
static const Identity IDENTITIES[] = {
    {LAYER_MODEL, "name", "模型名，与文件名相同"},
    {LAYER_MODEL, "display_name", "显示用的名字"},
    {LAYER_MODEL, "model_kwargs", "模型的附加参数，仅记录"},
    {LAYER_MODEL, "pretrained_quant_models.awq", "已量化好的 AWQ 检查点，方法 pretrained:awq 评测它"},
    {LAYER_MODEL, "pretrained_quant_models.gptq", "已量化好的 GPTQ 检查点，方法 pretrained:gptq 评测它"},
    {LAYER_MODEL, "pretrained_quant_models.compressed_tensors",
     "已量化好的 compressed-tensors 检查点，方法 pretrained:compressed-tensors 评测它"},
    {LAYER_MODEL, "pretrained_quant_models.bitsandbytes",
     "已量化好的 bitsandbytes 检查点，方法 pretrained:bitsandbytes 评测它"},
    {LAYER_MODEL, "pretrained_quant_models.hqq", "已量化好的 HQQ 检查点，方法 pretrained:hqq 评测它"},
    {LAYER_METHOD, "name", "方法名，与文件名、登记名相同"},
    {LAYER_METHOD, "display_name", "显示用的名字"},
    {LAYER_METHOD, "supported_tracks", "支持的轨道，须与程序中登记的一致"},
    {LAYER_METHOD, "library", "实现的出处"},
    {LAYER_METHOD, "calibration.required", "是否需要校准数据"},
    {LAYER_TRACK, "name", "轨道名，与文件名相同"},
    {LAYER_TRACK, "display_name", "显示用的名字"},
    {LAYER_TRACK, "condition", "轨道的条件"},
    {LAYER_TRACK, "methods", "属于这个轨道的方法"},
};
enum { N_IDENTITIES = sizeof IDENTITIES / sizeof *IDENTITIES };

const Option *option_find(const Option *table, const char *key) {
    for (const Option *o = table; o && o->key; o++)
        if (strcmp(o->key, key) == 0) return o;
    return NULL;
}

const char *option_type_name(const Option *o) {
    switch (o->type) {
    case OPTION_INT: return "整数";
    case OPTION_FLOAT: return "实数";
    case OPTION_BOOL: return "布尔";
    case OPTION_ENUM: return "枚举";
    case OPTION_STR: return "字符串";
    }
    return "?";
}

void option_describe_range(const Option *o, Str *out) {
    if (o->type == OPTION_INT && o->hi >= MAX_COUNT)
        str_addf(out, "≥ %.0f", o->lo);
    else if (o->type == OPTION_INT)
        str_addf(out, "%.0f 到 %.0f", o->lo, o->hi);
    else if (o->type == OPTION_FLOAT)
        str_addf(out, "%g 到 %g", o->lo, o->hi);
    else if (o->type == OPTION_BOOL)
        str_add(out, "true | false");
    else if (o->type == OPTION_ENUM)
        for (const char *const *n = o->names; *n; n++)
            str_addf(out, "%s%s", n == o->names ? "" : " | ", *n);
    else
        str_add(out, "任意文字");
}

void option_describe_default(const Option *o, Str *out) {
    if (o->type == OPTION_INT)
        str_addf(out, "%.0f", o->def);
    else if (o->type == OPTION_FLOAT)
        str_addf(out, "%g", o->def);
    else if (o->type == OPTION_BOOL)
        str_add(out, o->def != 0 ? "true" : "false");
    else if (o->type == OPTION_ENUM)
        str_add(out, o->names[(int)o->def]);
    else
        str_add(out, o->def_str ? o->def_str : "（空）");
}

char *schema_where(const YamlNode *v, char *buf, size_t cap) {
    if (str_starts(v->file, "命令行"))
        snprintf(buf, cap, "%s", v->file);
    else
        snprintf(buf, cap, "%s:%d", v->file, v->line);
    return buf;
}

static bool bad_value(const Option *o, const YamlNode *v, const char *what, Err *e) {
    char where[512];
    Str range = {0};
    option_describe_range(o, &range);
    const char *text = v->text ? v->text : yaml_kind_name(v->kind);
    err_set(e, ERR_CONFIG, "%s: '%s' %s，得到 '%.80s'。应为%s: %s（%s）",
            schema_where(v, where, sizeof where), o->key, what, text, option_type_name(o),
            range.data ? range.data : "", o->help);
    str_free(&range);
    return false;
}

static int enum_index(const Option *o, const char *text) {
    for (int i = 0; o->names[i]; i++)
        if (strcmp(o->names[i], text) == 0) return i;
    return -1;
}

bool option_check(const Option *o, const YamlNode *v, Err *e) {
    bool scalar = v->kind != YAML_LIST && v->kind != YAML_MAP;
    switch (o->type) {
    case OPTION_INT:
        if (v->kind != YAML_INT) return bad_value(o, v, "的类型不对", e);
        break;
    case OPTION_FLOAT:
        if (v->kind != YAML_INT && v->kind != YAML_FLOAT)
            return bad_value(o, v, "的类型不对", e);
        break;
    case OPTION_BOOL: return v->kind == YAML_BOOL || bad_value(o, v, "的类型不对", e);
    case OPTION_ENUM: {
        if (!scalar || v->kind == YAML_NULL) return bad_value(o, v, "的类型不对", e);
        if (enum_index(o, v->text) >= 0) return true;
        size_t n = 0;
        while (o->names[n]) n++;
        const char *near = str_nearest(v->text, o->names, n);
        char what[128];
        snprintf(what, sizeof what, "没有这个取值%s%s%s", near ? "（是否想写 '" : "",
                 near ? near : "", near ? "'）" : "");
        return bad_value(o, v, what, e);
    }
    case OPTION_STR: return scalar || bad_value(o, v, "的类型不对", e);
    }
    if (!(v->number >= o->lo && v->number <= o->hi)) return bad_value(o, v, "超出范围", e);
    return true;
}

void option_fill(const Option *table, const YamlNode *merged, void *dst) {
    for (const Option *o = table; o && o->key; o++) {
        void *field = (char *)dst + o->offset;
        const YamlNode *v = yaml_path(merged, o->key);
        switch (o->type) {
        case OPTION_INT: *(int64_t *)field = v ? v->integer : (int64_t)o->def; break;
        case OPTION_FLOAT: *(double *)field = v ? v->number : o->def; break;
        case OPTION_BOOL: *(bool *)field = v ? v->boolean : o->def != 0; break;
        case OPTION_ENUM: *(int *)field = v ? enum_index(o, v->text) : (int)o->def; break;
        case OPTION_STR:
            *(const char **)field = v && v->kind != YAML_NULL ? v->text : o->def_str;
            break;
        }
    }
}

json_t *option_to_json(const Option *o, const void *src) {
    const void *field = (const char *)src + o->offset;
    switch (o->type) {
    case OPTION_INT: return json_integer(*(const int64_t *)field);
    case OPTION_FLOAT: return json_real(*(const double *)field);
    case OPTION_BOOL: return json_boolean(*(const bool *)field);
    case OPTION_ENUM: return json_string(o->names[*(const int *)field]);
    case OPTION_STR: break;
    }
    const char *s = *(const char *const *)field;
    return s ? json_string(s) : json_null();
}

/* 收集 layer 层、方法 m 可用的全部键，用于找最近的名字。 */
static size_t known_keys(ConfigLayer layer, const Method *m, const char **keys, size_t cap) {
    size_t n = 0;
    const Option *tables[] = {RUN_OPTIONS, MODEL_OPTIONS, LIST_OPTIONS, m ? m->options : NULL,
                              m && m->calibrated ? CALIB_OPTIONS : NULL};
    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++)
        for (const Option *o = tables[t]; o && o->key && n < cap; o++) keys[n++] = o->key;
    for (size_t i = 0; i < N_IDENTITIES && n < cap; i++)
        if (IDENTITIES[i].layer == layer) keys[n++] = IDENTITIES[i].key;
    return n;
}

static bool unknown_key(ConfigLayer layer, const Method *m, const char *key, const YamlNode *v,
                        Err *e) {
    enum { CAP = 256 };
    const char *keys[CAP];
    size_t n = known_keys(layer, m, keys, CAP);
    char where[512];
    schema_where(v, where, sizeof where);
    size_t len = strlen(key);
    for (size_t i = 0; i < n; i++)
        if (strncmp(keys[i], key, len) == 0 && keys[i][len] == '.')
            return err_set(e, ERR_CONFIG, "%s: '%s' 是一组设置，要写到其中一个，如 '%s'", where, key,
                           keys[i]);
    const char *near = str_nearest(key, keys, n);
    if (!near) { /* 只写了最后一段的常见笔误：w_bits → weight.w_bits */
        const char *dot = strrchr(key, '.'), *last = dot ? dot + 1 : key;
        for (size_t i = 0; i < n && !near; i++) {
            const char *d = strrchr(keys[i], '.');
            if (d && strcmp(d + 1, last) == 0) near = keys[i];
        }
    }
    if (near)
        return err_set(e, ERR_CONFIG, "%s: 未知的键 '%s'，是否想写 '%s'？", where, key, near);
    return err_set(e, ERR_CONFIG, "%s: 未知的键 '%s'。全部设置见 docs/config.md 或 ptq-bench list options",
                   where, key);
}

/* 键属于别的方法：公共层里放行，方法层与命令行报错并列出有它的方法。 */
static bool other_method_key(ConfigLayer layer, const Method *m, const char *key,
                             const YamlNode *v, bool *found, Err *e) {
    Str owners = {0};
    size_t n;
    const Method *const *all = registry_methods(&n);
    for (size_t i = 0; i < n; i++)
        if (option_find(all[i]->options, key) ||
            (all[i]->calibrated && option_find(CALIB_OPTIONS, key)))
            str_addf(&owners, "%s%s", owners.len ? "、" : "", all[i]->name);
    *found = owners.len > 0;
    bool ok = !*found || layer == LAYER_BASE || layer == LAYER_MODEL || layer == LAYER_TRACK;
    if (!ok) {
        char where[512];
        err_set(e, ERR_CONFIG, "%s: 方法 %s 没有设置 '%s'；有它的方法: %s",
                schema_where(v, where, sizeof where), m->name, key, owners.data);
    }
    str_free(&owners);
    return ok;
}

static const Identity *find_identity(ConfigLayer layer, const char *key) {
    for (size_t i = 0; i < N_IDENTITIES; i++)
        if (IDENTITIES[i].layer == layer && strcmp(IDENTITIES[i].key, key) == 0)
            return &IDENTITIES[i];
    return NULL;
}

bool schema_is_leaf(ConfigLayer layer, const char *key) {
    return option_find(RUN_OPTIONS, key) || option_find(MODEL_OPTIONS, key) ||
           option_find(LIST_OPTIONS, key) || find_identity(layer, key) != NULL;
}

static bool check_list(const Option *o, const YamlNode *v, Err *e) {
    char where[512];
    schema_where(v, where, sizeof where);
    if (v->kind == YAML_NULL) return true;
    if (v->kind == YAML_MAP)
        return err_set(e, ERR_CONFIG, "%s: '%s' 应为列表（%s），得到映射", where, o->key, o->help);
    for (size_t i = 0; v->kind == YAML_LIST && i < v->n; i++) {
        const YamlNode *x = v->items[i];
        if (x->kind == YAML_LIST || x->kind == YAML_MAP || x->kind == YAML_NULL || !x->text[0])
            return err_set(e, ERR_CONFIG, "%s: '%s' 的第 %zu 项应为名字", where, o->key, i + 1);
    }
    return true;
}

bool schema_check_leaf(ConfigLayer layer, const Method *method, const char *key, const YamlNode *v,
                       KeyClass *class_out, Err *e) {
    *class_out = KEY_SETTING;
    const Option *o = option_find(RUN_OPTIONS, key);
    if (!o) o = option_find(MODEL_OPTIONS, key);
    if (!o) o = option_find(method->options, key);
    if (!o && method->calibrated) o = option_find(CALIB_OPTIONS, key);
    if (o) return option_check(o, v, e);
    o = option_find(LIST_OPTIONS, key);
    if (o) return check_list(o, v, e);
    *class_out = KEY_IDENTITY;
    if (find_identity(layer, key)) return true;
    if (layer == LAYER_MODEL && v->kind == YAML_NULL && strcmp(key, "pretrained_quant_models") == 0)
        return true;
    *class_out = KEY_OTHER;
    bool found;
    if (!other_method_key(layer, method, key, v, &found, e)) return false;
    return found || unknown_key(layer, method, key, v, e);
}

static void markdown_rows(const Option *table, Str *out) {
    for (const Option *o = table; o && o->key; o++) {
        bool list = option_find(LIST_OPTIONS, o->key) == o;
        Str range = {0}, def = {0};
        option_describe_range(o, &range);
        option_describe_default(o, &def);
        str_addf(out, "| `%s` | %s | `%s` | ", o->key, list ? "列表" : option_type_name(o),
                 list ? "[]" : def.data);
        for (const char *p = list ? "名字" : range.data; *p; p++)
            str_add(out, *p == '|' ? "\\|" : (char[]){*p, 0});
        str_addf(out, " | %s |\n", o->help);
        str_free(&range);
        str_free(&def);
    }
}

static const char TABLE_HEAD[] = "| 键 | 类型 | 默认值 | 取值 | 说明 |\n|---|---|---|---|---|\n";

void schema_markdown(Str *out) {
    str_addf(out, "### 运行与评测（任何一层都可设）\n\n%s", TABLE_HEAD);
    markdown_rows(RUN_OPTIONS, out);
    markdown_rows(LIST_OPTIONS, out);
    str_addf(out, "\n### 模型\n\n%s", TABLE_HEAD);
    markdown_rows(MODEL_OPTIONS, out);
    str_addf(out, "\n### 校准（只对需要校准的方法有效）\n\n%s", TABLE_HEAD);
    markdown_rows(CALIB_OPTIONS, out);
    size_t n;
    const Method *const *all = registry_methods(&n);
    for (size_t i = 0; i < n; i++) {
        str_addf(out, "\n### 方法 %s\n\n", all[i]->name);
        if (!all[i]->options || !all[i]->options->key) {
            str_add(out, "没有设置。\n");
            continue;
        }
        str_add(out, TABLE_HEAD);
        markdown_rows(all[i]->options, out);
    }
    static const char *const LAYERS[] = {"", "configs/models/*.yaml", "configs/methods/*.yaml",
                                         "configs/tracks/*.yaml"};
    str_add(out, "\n### 各层的说明键（只在所列文件里）\n\n| 文件 | 键 | 说明 |\n|---|---|---|\n");
    for (size_t i = 0; i < N_IDENTITIES; i++)
        str_addf(out, "| `%s` | `%s` | %s |\n", LAYERS[IDENTITIES[i].layer], IDENTITIES[i].key,
                 IDENTITIES[i].help);
}

bool schema_applies(const char *setting, const Method *m) {
    char key[128];
    size_t len = strcspn(setting, "="), n;
    if (!m || len >= sizeof key) return true;
    memcpy(key, setting, len);
    key[len] = '\0';
    if (option_find(m->options, key)) return true;
    if (option_find(CALIB_OPTIONS, key)) return m->calibrated;
    const Method *const *all = registry_methods(&n);
    for (size_t i = 0; i < n; i++)
        if (option_find(all[i]->options, key)) return false;
    return true;
}
