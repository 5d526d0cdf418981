/* base — 量化方法的契约（冻结：内容改变则测试失败）
 *
 * 一个方法 = src/methods/{name}.c + configs/methods/{name}.yaml。方法文件只包含本头文件。
 * 方法只看得到模型（逐块、逐线性层）与校准统计，看不到评测任务。
 *
 *     PTQ_METHOD(rtn) = {.name = "rtn", .tracks = "A", .options = OPTIONS,
 *                        .options_size = sizeof(RtnOptions), .quantize = rtn_quantize};
 *
 * 编译时自动收集 src/methods/ 下所有 .c 生成登记表，不改任何其他文件；文件名与登记名不一致是链接错误。 */
#ifndef PTQ_METHODS_BASE_H
#define PTQ_METHODS_BASE_H
#include <math.h>
#include <string.h>

#include "base/log.h"
#include "base/option.h"
#include "base/rng.h"
#include "compute/linalg.h"
#include "compute/ops.h"
#include "model/calib.h"
#include "model/linear.h"

typedef struct QuantJob QuantJob; /* 一次量化：模型、后端、校准数据、方法设置、记录 */

typedef struct Method {
    const char *name;       /* 与文件名、YAML 的 name 相同 */
    const char *tracks;     /* 支持的轨道，如 "ABC" */
    const Option *options;  /* 以 OPT_END 结尾；可为 NULL */
    size_t options_size;    /* 选项结构体的字节数 */
    bool calibrated;        /* 需要校准数据 */
    bool (*quantize)(QuantJob *job, Err *e);
} Method;

#define PTQ_METHOD(ident) const Method ptq_method_##ident

/* 填好的选项结构体（类型由方法的 options 决定）。 */
const void *job_options(const QuantJob *job);
Backend *job_backend(QuantJob *job);
/* 只活到当前线性层（或块）结束的临时内存。 */
Arena *job_scratch(QuantJob *job);
/* 与打包后的权重同寿命的内存。 */
Arena *job_model_arena(QuantJob *job);
/* 并行执行 fn(ctx, 0..n-1)，各任务须互不相干（结果才与线程数无关）。 */
void job_parallel(QuantJob *job, int64_t n, void (*fn)(void *ctx, int64_t task), void *ctx);
/* 记录一次退让（阻尼升高、组宽不整除等），写入结果的「⚠️ fallback detected」；相同的只记一次。 */
void job_fallback(QuantJob *job, const char *fmt, ...) PTQ_PRINTF(2, 3);
/* 组宽不整除行长时按末组较短处理并记录；组宽为 -1 或整除则不做事。 */
void job_note_remainder(QuantJob *job, const QSpec *spec, int64_t cols);

/* 按模型的 dtype 原样存放 w（不量化）。 */
bool job_keep_dense(QuantJob *job, Linear *l, Tensor w, Err *e);

/* 处理一个线性层：w 是稠密权重 (rows,cols) f32，可改写；st 是它的输入的统计（没有要则 NULL）。
 * 须以 linear_set_quantized 或 job_keep_dense 换上存放形式。 */
typedef bool (*LinearFn)(QuantJob *job, Linear *l, Tensor w, const InputStats *st, Err *e);
/* 依次对每个块的每个线性层：载入稠密权重 → fn → 由存放形式反量化算出误差 → 释放。错误带层名。
 * stats 为 StatKinds 的或；非 0 时每块先以稠密权重让校准样本过一遍收集统计，量化后再以存放形式推进到下一块。 */
bool quantize_each_linear(QuantJob *job, unsigned stats, LinearFn fn, Err *e);
#endif
