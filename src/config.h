/* config — 五层配置的合并与检查
 * configs/config.yaml < models/{m}.yaml < methods/{m}.yaml < tracks/track_{x}.yaml < --override。
 * 合并是平的：同一个键后者覆盖前者（映射逐键合并，列表整体替换）；各层的 name 分别记作 model、method、track，
 * display_name 记作 model_display_name 等。
 * 每个叶子都要在某张选项表里：未知键、类型不符、越界都报 文件:行 与最近的名字。 */
#ifndef PTQ_CONFIG_H
#define PTQ_CONFIG_H
#include "base/option.h"
#include "io/json.h"
#include "io/yaml.h"
#include "methods/base.h"

/* 运行选项（config.yaml 与轨道可设），字段与键的对应见 config.c 的 RUN_OPTIONS。 */
typedef struct RunOptions {
    /* 运行 */
    int64_t seed;
    int device;            /* 下标: auto cpu cuda */
    int64_t threads;       /* 0 = 全部核 */
    const char *max_memory; /* 如 "400MB"；NULL 为不限 */
    size_t max_memory_bytes; /* 由上得出，0 为不限 */
    const char *stats_cache; /* 如 "2GB" */
    size_t stats_cache_bytes; /* 由上得出，0 为不存 */
    int compute;           /* 下标: auto float32 bfloat16；auto = float32 */
    const char *results_dir;
    const char *data_dir;
    /* 评测 */
    const char *ppl_protocol; /* 如 "gptq-2048"；"auto" 按模型 max_seq_len 取 gptq-2048 或较短者 */
    int64_t limit;         /* 每个数据集最多多少个窗口，0 = 全部 */
    int64_t kl_windows;    /* 对照基线算 KL 的窗口数（从头数），0 = 不算 */
    bool speed;            /* 是否测 prefill / decode 速度 */
    int64_t decode_tokens; /* decode 测速的 token 数 */
    int64_t speed_batch, speed_context; /* decode 测速一批几条、各接在多少个 token 之后 */
    int kv_mode;           /* 下标即 KvMode: decode all prefill_fp */
    int kv_dtype;          /* 下标: float16 float32 */
    const char **ppl_datasets; /* eval.ppl_datasets（列表） */
    size_t n_ppl_datasets;
    const char **lm_eval_tasks; /* eval.lm_eval_tasks（列表） */
    size_t n_lm_eval_tasks;
    const char *lm_eval_command; /* 不是原生的任务交给它；空为不用 */
    const char *lm_eval_args;    /* 加给它的参数，空格分开 */
    int64_t task_limit;    /* 每个任务最多多少份文档，0 = 全部 */
    int64_t num_fewshot;   /* 少样本数，-1 = 各任务自己的 */
    int baseline;          /* 下标: auto off */
    double equivalence_delta; /* 任务的等价界 δ（准确率之差） */
    bool log_samples;      /* 写出逐文档的样本文件 */
} RunOptions;
enum { BASELINE_AUTO, BASELINE_OFF };
extern const char *const KV_MODES[]; /* kv_mode 的取值 */
/* 不量化的键值的存放类型。 */
static inline DType run_kv_dtype(const RunOptions *o) {
    return o->kv_dtype == 1 ? DT_F32 : DT_F16;
}

/* 模型选项（模型 YAML 可设）。 */
typedef struct ModelOptions {
    const char *name, *model_id, *revision, *tokenizer_id;
    const char *adapter; /* 家族适配器；"auto" 由模型文件决定 */
    int dtype; /* 下标: auto float32 float16 bfloat16；auto = 文件自身的类型（GGUF 量化类型 → float32） */
    int head_quant; /* 下标: none int8；词嵌入与输出头的存放 */
    int64_t max_seq_len; /* 0 = 取模型文件的值 */
    bool trust_remote_code;
} ModelOptions;

/* 校准选项：只对需要校准的方法有效。 */
typedef struct CalibOptions {
    const char *dataset; /* 登记的文本名或本地文本文件 */
    int64_t samples, length, seed;
} CalibOptions;

typedef struct ConfigRequest {
    const char *root;   /* 项目根（含 configs/） */
    const char *model;  /* 名字、模型文件夹或 GGUF 文件 */
    const char *method, *track; /* track: "A" "B" "C"（大小写不限）或 "track_a" */
    const char *const *overrides; /* "key.sub=value" */
    size_t n_overrides;
    bool no_download; /* 不从 Hub 下载模型（--dry_run） */
} ConfigRequest;

typedef struct Config {
    Arena arena;        /* 本结构全部内存 */
    YamlNode *merged;   /* 合并后的映射；每个叶子带来源 文件:行 */
    RunOptions run;
    ModelOptions model;
    CalibOptions calib;
    const Method *method;
    const char *method_name, *method_display_name;
    const char *model_display_name, *track_display_name; /* 前者可为 NULL */
    void *method_options; /* method->options 填好的结构体 */
    char track;           /* 'A' 'B' 'C' */
    const char *pretrained_id; /* 方法是 pretrained:… 时模型 YAML 里指明的检查点，代替 model_id；没有为 NULL */
    bool model_is_path;   /* --model 给的是路径而非配置名 */
    bool no_download;     /* 同 ConfigRequest */
    const char *root;     /* 项目根 */
    const char *hub_commit; /* 取自 Hub 的模型的提交，NULL 为不是 */
    const char **warnings; /* 配置引出的警告（已打印），应写进结果 */
    size_t n_warnings;
} Config;

/* 读、合并、检查。错误见上；方法未注册或轨道不支持也在此报出（先于任何计算）。 */
bool config_load(Config *c, const ConfigRequest *r, Err *e);
void config_free(Config *c);
/* 模型文件的位置：绝对/相对路径、data_dir/raw/{name}、Hub 的缓存；找不到时置 e，说明怎样取得。不碰网络。
 * 返回: 文件夹或 GGUF 文件路径。 */
const char *config_model_path(Config *c, Err *e);
/* 同上，而 model_id 是 Hub 的模型（组织/名字）时按 revision 下载到缓存（HF_HUB_OFFLINE 时只用缓存）。 */
const char *config_fetch_model(Config *c, Err *e);
/* 影响数值结果的设置的规范 JSON 文本（键排序；不含线程数、目录等），用来算 run_key。 */
char *config_canonical(const Config *c, Arena *a, Err *e);
/* 合并后全部生效的设置 → JSON 对象：点号键 → {"value": 值, "from": "文件:行" | "命令行 --override" | "默认值"}，
 * 供结果与 --dry_run。只含设置，不含 name、library 之类的说明。内存不足返回 NULL；返回值须 json_decref。 */
json_t *config_merged_json(const Config *c);
/* 合并好的设置（上面的 JSON）→ 权重的存放规格；方法不改权重位宽时返回 false。 */
bool config_weight_spec(const json_t *merged, QSpec *spec);
/* 所有选项表（run、model），供 list/--help/文档；以 OPT_END 结尾。 */
extern const Option RUN_OPTIONS[], MODEL_OPTIONS[], CALIB_OPTIONS[];
#endif
